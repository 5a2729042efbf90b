package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"spillway/internal/channel"
	"spillway/internal/config"
	"spillway/internal/loglimit"
	"spillway/internal/redirect"
	"spillway/internal/share"
	"spillway/internal/tcprepair"
)

// poolSize is how many sockets of each family wait for a handover: as many as may come in the time that it takes to make new ones.
const poolSize = 64

// Daemon is the host daemon. Make it with New, run it once with Run.
type Daemon struct {
	cfg    config.Host
	env    environment
	log    *slog.Logger
	kernel kernel
	shares map[string]files
	vms    []*vm

	started  time.Time
	ready    chan struct{} // closed when the daemon serves
	buffers  sync.Pool     // of *buffer
	cold     coldReader
	running  sync.WaitGroup // goroutines of leases and desks
	active   atomic.Int64   // leases whose sender runs
	draining atomic.Bool
	ran      atomic.Bool
	sees     func(local, remote netip.Addr) error // whether a client's packets pass the redirect
}

// environment is what a test replaces to run the daemon in a network namespace that is not the process's.
type environment struct {
	do      func(func() error) error // runs a function in the network namespace
	sockets func(f *tcprepair.Freezer, size int) sockets
}

func hostEnvironment() environment {
	return environment{
		do:      func(f func() error) error { return f() },
		sockets: func(f *tcprepair.Freezer, size int) sockets { return tcprepair.NewPool(f, size) },
	}
}

// New checks cfg against this machine and opens its shares. The caller calls Run, or Close.
func New(cfg config.Host, logger *slog.Logger) (*Daemon, error) {
	return newDaemon(cfg, logger, hostEnvironment())
}

func newDaemon(cfg config.Host, logger *slog.Logger, env environment) (*Daemon, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := env.do(func() error { return foreignAddresses(cfg.VMs) }); err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, env: env, log: logger, shares: make(map[string]files), started: time.Now(), ready: make(chan struct{})}
	d.buffers.New = func() any { return new(buffer) }
	d.cold = newColdReader()
	maxFiles := 0
	for _, v := range cfg.VMs {
		maxFiles += v.MaxOpenFiles
	}
	for _, s := range cfg.Shares {
		// Twice, so that a VM that uses all that it may does not keep the others from their files, and idle ones stay open.
		opened, err := d.openFiles(s, max(2*maxFiles, share.DefaultMaxOpenFiles), logger)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.shares[s.Name] = opened
	}
	for _, c := range cfg.VMs {
		v, err := newVM(d, c, d.shares)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.vms = append(d.vms, v)
	}
	return d, nil
}

// shareConfig is the configuration of a share.
func (d *Daemon) shareConfig(name string) (c config.HostShare) {
	for _, s := range d.cfg.Shares {
		if s.Name == name {
			c = s
		}
	}
	return c
}

// foreignAddresses checks that no VM's address is one of this machine: the host's own connections would be the VM's to claim.
func foreignAddresses(vms []config.VM) error {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list this host's addresses: %w", err)
	}
	var errs []error
	for _, v := range vms {
		for _, a := range v.Addresses {
			for _, o := range own {
				p, err := netip.ParsePrefix(o.String())
				if err == nil && p.Addr().Unmap() == a {
					errs = append(errs, fmt.Errorf("VM %s: %v is an address of this host; list the addresses that the VM itself has", v.Name, a))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Close closes what New opened. Run does it too.
func (d *Daemon) Close() {
	for _, s := range d.shares {
		s.Close()
	}
}

// Ready is closed when Run has come so far that it serves.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// Run installs the redirect, listens at the channels of all VMs and serves until ctx is done. Then it drains: it tells the guests, gives the
// connections back that can be, waits for the others up to the drain timeout, and closes what remains. When it returns, nothing is left
// of all that it has made; an error says what could not be installed, or not removed.
func (d *Daemon) Run(ctx context.Context) (err error) {
	defer d.Close()
	if d.ran.Swap(true) {
		return errors.New("host: Run was called twice")
	}
	if err := d.openKernel(); err != nil {
		return err
	}
	defer d.closeKernel()
	var installed *redirect.Redirect
	err = d.env.do(func() (err error) {
		r := d.cfg.Redirect
		installed, err = redirect.Install(redirect.Config{
			Table: r.Table, Mark: r.Mark, RouteTable: int(r.RouteTable), RulePriority: int(r.Priority),
		})
		return err
	})
	if err != nil {
		return err
	}
	// After all sockets are closed: a packet that came later would reach the guest, which answers with a RST.
	defer func() { err = errors.Join(err, installed.Remove()) }()
	d.sees = installed.Sees
	if installed.IPv6Off != nil {
		d.log.Warn("IPv6 connections stay in the VMs", "reason", installed.IPv6Off)
	}

	listeners, err := d.listen()
	if err != nil {
		return err
	}
	operators, err := d.serveOperators()
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.listener.Close())
		}
		return err
	}
	defer operators.close()
	d.serve(ctx, listeners)
	return nil
}

// openKernel loads what all leases use.
func (d *Daemon) openKernel() error {
	freezer, err := tcprepair.NewFreezer()
	if err != nil {
		return err
	}
	names, err := tcprepair.CongestionControls()
	if err != nil {
		return errors.Join(err, freezer.Close())
	}
	var holder *tcprepair.Holder
	err = d.env.do(func() (err error) { holder, err = tcprepair.NewHolder(d.kernel.mayGo); return err })
	if err != nil {
		return errors.Join(err, freezer.Close())
	}
	start, err := tcprepair.NewStartWindow()
	if err != nil {
		d.log.Warn("connections that are handed over begin slowly", "reason", err)
	}
	halter, err := tcprepair.NewHalter()
	if err != nil {
		d.log.Warn("a connection that is recalled in the middle of a file sends first what it has queued", "reason", err)
	}
	k := &d.kernel
	k.freezer, k.holder, k.halter, k.start = freezer, holder, halter, start
	k.pool, k.congestion = d.env.sockets(freezer, poolSize), make(map[string]bool)
	for _, n := range names {
		d.kernel.congestion[n] = true
	}
	return nil
}

func (d *Daemon) closeKernel() {
	d.kernel.pool.Close()
	_ = d.kernel.freezer.Close() // closing a program's descriptor cannot fail in a way that leaves something
	_ = d.kernel.holder.Close()
	_ = d.kernel.halter.Close()
	_ = d.kernel.start.Close()
}

// vmListener is one channel of one VM.
type vmListener struct {
	vm       *vm
	index    int // of the channel
	listener channel.Listener
	begins   *loglimit.Limiter // so that what happens at one channel keeps no beginning at another one from the log
}

func (l vmListener) serve(ctx context.Context, conn channel.Conn) error {
	return l.vm.serve(ctx, l.index, conn, l.begins)
}

// listen listens at all channels, or at none.
func (d *Daemon) listen() ([]vmListener, error) {
	var all []vmListener
	for _, v := range d.vms {
		for i, a := range v.channels {
			l, err := channel.Listen(a, v.gid)
			if err != nil {
				for _, open := range all {
					err = errors.Join(err, open.listener.Close())
				}
				return nil, fmt.Errorf("VM %s: %w", v.name, err)
			}
			all = append(all, vmListener{v, i, l, new(loglimit.Limiter)})
		}
	}
	return all, nil
}

// serve serves until ctx is done, drains, and returns when no goroutine of the daemon runs any more.
func (d *Daemon) serve(ctx context.Context, listeners []vmListener) {
	// The channels outlive ctx: the guests must hear of the end.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var channels, sweeper sync.WaitGroup
	for _, l := range listeners {
		channels.Go(func() {
			_ = channel.Serve(serving, l.listener, l.serve, l.vm.log) // its error is the end of serving
		})
	}
	swept, stopSweeper := context.WithCancel(serving)
	sweeper.Go(func() { d.sweep(swept) })
	d.log.Info("host daemon serves", "vms", len(d.vms), "channels", len(listeners))
	close(d.ready)

	<-ctx.Done()
	d.drain()
	stop()
	channels.Wait()
	d.stopLeases()
	d.running.Wait()
	stopSweeper()
	sweeper.Wait()
	d.log.Info("host daemon has stopped")
}
