package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"spillway/internal/config"
	"spillway/internal/netns"
	"spillway/internal/qemu"
)

// Kind of guest.
type Kind string

// Kinds of guests.
const (
	QEMU  Kind = "qemu"  // a real VM
	NetNS Kind = "netns" // a network namespace that stands for one
)

// Options of a lab.
type Options struct {
	Name      string // [a-z0-9-], at most 20 bytes
	VM        Kind
	Binary    string           // the spillway binary; default: this program
	Cache     string           // where scripts/setup.sh put the guest kernel; QEMU only
	Files     string           // the directory that is shared
	Peers     bool             // with nginx on the host and in the guest, from Cache
	Threshold config.Threshold // of the offloading arms
	BusyPoll  *time.Duration   // of the offloading servers; nil: what suits the guest
	CPUs      int              // of the guest, each with a channel of its own for each arm; default: 1
	MaxLeases int              // that the guest may have; 0: the daemon's default
	Link      Link             // between client and host
	InMemory  bool             // there is an arm VMTmpfs; QEMU only
	Virtiofs  bool             // there is an arm VMVirtiofs; QEMU only
	// Origin is where the daemon fills the share of the offloading servers from: a directory, or an address that the lab's host reaches, such as OwnOrigin.
	// Empty: the share is Files. The other arms serve Files all the same.
	Origin      string
	CacheConfig string // more of the cache's configuration with an Origin: lines of TOML
	SecondGuest bool   // there is one more guest, with the arm Second
	// Congestion is the congestion control of host and guest towards the client; empty: what each kernel has.
	Congestion string
	Detached   bool // outlive this process
	Progress   func(step string)
}

// maxCPUs of a guest: more than a lab is good for.
const maxCPUs = 16

// Lab is a running lab.
type Lab struct {
	Options
	Dir                 string // state, logs and sockets
	Client, Host, Guest *netns.Namespace
	SecondGuestNS       *netns.Namespace // nil: there is none

	owner    *owner // nil: the lab is up and meant to outlive this process
	daemons  map[string]*process
	machines []*machine // the VMs; none before they start, and in a lab of namespaces
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,19}$`)

// Up builds a lab. When it fails nothing is left of it but its logs, which the error quotes.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	l, err := prepare(ctx, opts)
	if err != nil {
		return nil, err
	}
	err = l.topology()
	if err == nil {
		err = l.startAll(ctx)
	}
	if err == nil {
		err = l.waitReady(ctx)
	}
	if err == nil && l.Detached {
		l.owner = nil
		err = l.saveState()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", l.Name, err), l.Down())
	}
	return l, nil
}

// Validate tells whether there can be such a lab here: a bench asks before it makes its data sets.
func (o Options) Validate() error {
	if !validName.MatchString(o.Name) {
		return fmt.Errorf("lab name %q: use 1 to 20 of a to z, 0 to 9 and '-'", o.Name)
	}
	if o.VM != QEMU && o.VM != NetNS {
		return fmt.Errorf("lab guest %q: use qemu or netns", o.VM)
	}
	if o.CPUs < 0 || o.CPUs > maxCPUs {
		return fmt.Errorf("a guest of %d CPUs: use 1 to %d", o.CPUs, maxCPUs)
	}
	if o.InMemory && o.VM != QEMU {
		return fmt.Errorf("arm %s: it needs a guest with memory of its own; use qemu", VMTmpfs)
	}
	if o.Virtiofs && o.VM != QEMU {
		return fmt.Errorf("arm %s: virtiofs needs a VM; use qemu", VMVirtiofs)
	}
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes network namespaces")
	}
	if err := taken(StateRoot, o.Name); err != nil {
		return err
	}
	if o.VM == QEMU {
		_, err := o.kernel()
		return err
	}
	return nil
}

// kernel is that of the VM.
func (o Options) kernel() (qemu.Kernel, error) {
	k, err := qemu.FindKernel(filepath.Join(o.Cache, "kernel"))
	if err != nil {
		err = fmt.Errorf("no kernel for the VM: run make setup, or scripts/setup.sh %s, or do without a VM: --vm netns (%w)", o.Cache, err)
	}
	return k, err
}

// prepare checks the options, removes what killed processes have left of their labs, and takes the lab's name.
func prepare(ctx context.Context, opts Options) (*Lab, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.CPUs = max(opts.CPUs, 1)
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	var err error
	if opts.Binary == "" {
		if opts.Binary, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	if opts.Files, err = filepath.Abs(opts.Files); err != nil {
		return nil, err
	}
	if opts.Origin != "" && !strings.Contains(opts.Origin, "://") {
		if opts.Origin, err = filepath.Abs(opts.Origin); err != nil {
			return nil, err
		}
	}
	opts.Link = opts.Link.seeded()
	l := &Lab{Options: opts, Dir: filepath.Join(StateRoot, opts.Name), daemons: map[string]*process{}}
	if l.owner, err = thisProcess(); err != nil {
		return nil, err
	}
	return l, l.makeDir(ctx)
}

// makeDir makes the lab's directory with its state in it.
func (l *Lab) makeDir(ctx context.Context) error {
	unlock, err := lockRoot(ctx, StateRoot)
	if err != nil {
		return err
	}
	defer unlock()
	// Another lab that cannot be removed is no reason to have none; the next one tries again.
	if err := sweep(ctx, StateRoot, l.Progress); err != nil {
		l.Progress(err.Error())
	}
	if err := os.Mkdir(l.Dir, 0o755); errors.Is(err, os.ErrExist) {
		return isThere(l.Name)
	} else if err != nil {
		return err
	}
	if err := l.saveState(); err != nil {
		return errors.Join(err, os.RemoveAll(l.Dir))
	}
	return nil
}

// startAll starts the daemons and the guest.
func (l *Lab) startAll(ctx context.Context) error {
	l.Progress("host daemon and bare-metal server")
	if err := l.StartHost(); err != nil {
		return err
	}
	if err := l.StartServer(Baremetal); err != nil {
		return err
	}
	if err := l.startPeers(); err != nil {
		return err
	}
	if l.VM == QEMU {
		return l.startVMs(ctx)
	}
	l.Progress("guest servers")
	for _, arm := range l.guestServers() {
		if err := l.StartServer(arm); err != nil {
			return err
		}
	}
	return nil
}

// readyTimeout bounds the wait for a server whose machine is up.
const readyTimeout = 20 * time.Second

// waitReady waits until every server answers and every channel has its session.
func (l *Lab) waitReady(ctx context.Context) error {
	l.Progress("servers and channels")
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, arm := range l.servers() {
		if err := l.WaitArm(ctx, arm); err != nil {
			return err
		}
	}
	return nil
}

// WaitArm waits until an arm's server answers and, if it offloads, has its session with the host.
func (l *Lab) WaitArm(ctx context.Context, arm Arm) error {
	var last error
	for {
		if last = l.armReady(ctx, arm); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("arm %s is not ready: %w\n%s", arm, last, l.LogTails())
		case <-time.After(5 * time.Millisecond):
		}
		for _, p := range l.daemons {
			if p.exited() {
				return fmt.Errorf("%s has ended\n%s", p.name, l.LogTails())
			}
		}
	}
}

// Health is an error when the VM or a daemon of the lab has ended by itself, with the ends of the logs.
func (l *Lab) Health() error {
	var ended []string
	for _, p := range l.daemons {
		if p.exited() {
			ended = append(ended, p.name)
		}
	}
	for _, m := range l.machines {
		if m.vm == nil {
			continue
		}
		select {
		case <-m.vm.Done():
			ended = append(ended, "the VM "+m.name)
		default:
		}
	}
	if len(ended) == 0 {
		return nil
	}
	return fmt.Errorf("ended by itself: %v\n%s", ended, l.LogTails())
}

func (l *Lab) armReady(ctx context.Context, arm Arm) error {
	stats, err := l.ServerStats(ctx, arm)
	if err != nil {
		return err
	}
	if arm.offloads() && stats.Host != "up" {
		return fmt.Errorf("its host is %q", stats.Host)
	}
	return nil
}

// getTimeout bounds get: a link that loses packets costs 1 s for a SYN (TCP_TIMEOUT_INIT, include/net/tcp.h), and 3 s for two.
const getTimeout = 5 * time.Second

// get reads a small document from inside the client's namespace.
func (l *Lab) get(ctx context.Context, method, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout+4*l.Link.RTT) // a connection, an answer, and each once more
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	c := l.HTTPClient()
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	return body, nil
}

// firstVM is the first guest's; nil in a lab of namespaces.
func (l *Lab) firstVM() *qemu.VM {
	if len(l.machines) == 0 {
		return nil
	}
	return l.machines[0].vm
}

// Accelerator is what runs the guest's instructions: kvm, tcg, or none for a namespace.
func (l *Lab) Accelerator() string {
	if vm := l.firstVM(); vm != nil {
		return string(vm.Accel())
	}
	return "none"
}

// QEMUVersion is QEMU's version, or empty.
func (l *Lab) QEMUVersion() string {
	if vm := l.firstVM(); vm != nil {
		return vm.Version().String()
	}
	return ""
}

// GuestCounters are the bytes that have gone to and from the first guest's network card, seen from the host: Tx to the guest, Rx from it.
func (l *Lab) GuestCounters() (netns.Counters, error) { return l.Host.Counters(guestLink) }
