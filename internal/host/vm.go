package host

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/user"
	"strconv"
	"sync"
	"time"

	"spillway/internal/channel"
	"spillway/internal/config"
	"spillway/internal/loglimit"
	"spillway/internal/session"
	"spillway/internal/wire"
)

// window is how many DATA bytes of a lease may be on their way in each direction: what a channel moves in a round trip or two, and little enough
// for thousands of leases, whose clients may all take nothing.
const window = 64 << 10

// vm is one virtual machine: what it is allowed and what it has.
type vm struct {
	daemon    *Daemon
	log       *slog.Logger
	name      string
	channels  []channel.Address
	gid       int // the group of the channels' sockets, or channel.NoGroup
	addresses map[netip.Addr]bool
	shares    map[string]vmShare
	maxLeases int
	maxFiles  int
	mark      uint32 // SO_MARK of its clients' sockets; 0: none
	counters  counters
	complain  loglimit.Limiter // for what a guest can cause at will
	blind     blindness
	expects   expectations

	mu        sync.Mutex
	held      chan struct{} // not nil: the VM moves, and gets no session; closed when that is over
	holdTimer *time.Timer
	returns   *comebacks           // not nil: a Hold is under way
	carriage  *carriage            // not nil: a Halt is in force
	arrival   *arrival             // not nil: the VM comes with its sessions
	files     map[wire.FileRef]int // how many SENDs and READs under way use each file
	leases    map[*leaseConn]struct{}
	handlers  map[*handler]struct{} // live sessions
}

// expectations of what leases wait for.
type expectations struct {
	replies   session.Expectation // to what the client has said
	answers   session.Expectation // to HANDBACK
	handovers session.Expectation // of a connection that was just given back with the client's request
}

func newVM(d *Daemon, cfg config.VM, shares map[string]files) (*vm, error) {
	v := &vm{
		daemon: d, name: cfg.Name, log: d.log.With("vm", cfg.Name),
		addresses: make(map[netip.Addr]bool), shares: make(map[string]vmShare),
		maxLeases: cfg.MaxLeases, maxFiles: cfg.MaxOpenFiles, mark: cfg.Mark,
		files:  make(map[wire.FileRef]int),
		leases: make(map[*leaseConn]struct{}), handlers: make(map[*handler]struct{}),
	}
	var err error
	if v.gid, err = groupID(cfg.Group); err != nil {
		return nil, fmt.Errorf("VM %s: %w", cfg.Name, err)
	}
	for _, s := range cfg.Channels {
		a, err := channel.ParseAddress(s)
		if err != nil {
			return nil, fmt.Errorf("VM %s: %w", cfg.Name, err)
		}
		v.channels = append(v.channels, a)
	}
	for _, a := range cfg.Addresses {
		v.addresses[a] = true
	}
	for _, name := range cfg.Shares {
		v.shares[name] = newVMShare(shares[name], d.shareConfig(name).Cache)
	}
	return v, nil
}

// groupID is the number of a group that is named or numbered in the configuration.
func groupID(group string) (int, error) {
	if group == "" {
		return channel.NoGroup, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("its group: %w; use the one that QEMU runs with (`ps -o group= -C qemu-system-x86_64`), or its number", err)
	}
	return strconv.Atoi(g.Gid)
}

// serve speaks with the guest over one connection of a channel until it fails or ctx is done. begins is the channel's limiter for the
// beginnings of sessions.
func (v *vm) serve(ctx context.Context, index int, conn channel.Conn, begins *loglimit.Limiter) error {
	var arrived *coming // the next session, if another host has had it
	hello := wire.Hello{Window: window, MaxLeases: uint32(v.maxLeases)}
	opts := session.Options{
		Silent:   v.daemon.cfg.Limits.SessionTimeout.Value(),
		BusyPoll: v.daemon.cfg.BusyPoll.Value(),
		Ended:    func(err error) { v.tellEnd(ctx, err) },
		Offer: func(ctx context.Context) (*session.State, error) {
			var err error
			if arrived, err = v.mayOffer(ctx, index); arrived == nil {
				return nil, err
			}
			return arrived.session.state(), nil
		},
	}
	return session.Host(ctx, conn, hello, opts, func(s *session.Session) session.Handler {
		h := newHandler(v, s, index)
		if arrived != nil {
			h.adopt(arrived)
		}
		// A guest can begin sessions as fast as it likes.
		if skipped, ok := begins.Allow(); ok {
			v.log.Info("session begins", "session", fmt.Sprintf("%08x", s.ID), "not_logged", skipped)
		}
		return h
	})
}

// tellEnd logs why a session ended. A guest can end sessions as fast as it likes.
func (v *vm) tellEnd(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // the daemon stops or a newer connection has come: both are logged, and err is only how the session was interrupted
	}
	if skipped, ok := v.complain.Allow(); ok {
		v.log.Info("session ended", "error", err, "not_logged", skipped)
	}
}

// enlist counts a new lease in, if the limit allows it.
func (v *vm) enlist(l *leaseConn) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.leases) >= v.maxLeases {
		return false
	}
	v.leases[l] = struct{}{}
	return true
}

// leaseCount returns how many leases there are.
func (v *vm) leaseCount() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.leases)
}

func (v *vm) delist(l *leaseConn) {
	v.mu.Lock()
	delete(v.leases, l)
	v.mu.Unlock()
}

// eachLease calls f for every lease that there is now.
func (v *vm) eachLease(f func(*leaseConn)) int {
	v.mu.Lock()
	leases := make([]*leaseConn, 0, len(v.leases))
	for l := range v.leases {
		leases = append(leases, l)
	}
	v.mu.Unlock()
	for _, l := range leases {
		f(l)
	}
	return len(leases)
}

// eachHandler calls f for every session that is live now.
func (v *vm) eachHandler(f func(*handler)) int {
	v.mu.Lock()
	handlers := make([]*handler, 0, len(v.handlers))
	for h := range v.handlers {
		handlers = append(handlers, h)
	}
	v.mu.Unlock()
	for _, h := range handlers {
		f(h)
	}
	return len(handlers)
}

// acquire opens a file that the guest means. The caller calls release when it has got one.
// ctx bounds the wait for an origin, offset is where the file will be read from.
func (v *vm) acquire(ctx context.Context, ref wire.FileRef, offset int64) (file, wire.Reason) {
	s, ok := v.shares[ref.Share]
	if !ok {
		return nil, wire.ReasonShareUnknown
	}
	if !s.may(ref.Path) || !v.useFile(ref) {
		return nil, wire.ReasonLimit
	}
	f, err := s.Acquire(ctx, ref, offset)
	if err != nil {
		v.disuseFile(ref)
		return nil, v.fileReason(err)
	}
	return f, wire.ReasonOK
}

func (v *vm) release(f file, ref wire.FileRef) {
	f.Release()
	v.disuseFile(ref)
}

// useFile counts a user of a file, if the limit of files allows it. However many use one version of a file, it is open once
// (share.Acquire). Counted before it is opened, a file beyond the limit takes no descriptor from the other VMs for a moment either.
func (v *vm) useFile(ref wire.FileRef) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.files[ref] == 0 && len(v.files) >= v.maxFiles {
		return false
	}
	v.files[ref]++
	return true
}

func (v *vm) disuseFile(ref wire.FileRef) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.files[ref]--; v.files[ref] == 0 {
		delete(v.files, ref)
	}
}

// fileReason is what the guest is told about err; what it is not its business to know is logged.
func (v *vm) fileReason(err error) wire.Reason {
	reason := reasonOf(err)
	if reason == wire.ReasonKernel {
		if skipped, ok := v.complain.Allow(); ok {
			v.log.Warn("a shared file could not be used", "error", err, "not_logged", skipped)
		}
	}
	return reason
}
