package redirect

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Redirect is the installed redirect of one network namespace.
type Redirect struct {
	// Config is what is installed, defaults filled in.
	Config Config
	// IPv6Off is nil when both families are installed, else the reason why only IPv4 is.
	IPv6Off error

	paths paths

	mu     sync.Mutex
	kernel *kernel // nil once removed
	lock   *lock
}

// kernel holds the netlink sockets of one network namespace; they stay in it whatever thread uses them later.
type kernel struct {
	nft   *nftables.Conn
	route *netlink.Handle
}

func openKernel() (*kernel, error) {
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables netlink: %w", err)
	}
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = nft.CloseLasting() // nothing was sent on it
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	return &kernel{nft: nft, route: route}, nil
}

func (k *kernel) close() {
	_ = k.nft.CloseLasting() // a netlink socket has nothing to flush
	k.route.Close()
}

// Install installs the redirect in the network namespace of the calling thread and holds it until [Redirect.Remove].
//
// It takes over what an earlier process left without a moment in which the rule is missing. When another living process
// holds it the error is [ErrInUse]; when the operator uses the same table, mark or routing table it is a
// [CollisionError]; in both cases nothing was changed. After any other error nothing of ours is left, unless the [Error]
// says so. That IPv6 is off is no error: see IPv6Off.
func Install(cfg Config) (*Redirect, error) {
	const op = "install"
	if err := cfg.Validate(); err != nil {
		return nil, &Error{Op: op, Step: "configuration", Err: err}
	}
	cfg = cfg.WithDefaults()
	l, err := acquireLock(lockNames(cfg)...)
	if err != nil {
		return nil, &Error{Op: op, Step: "lock", Err: err}
	}
	k, err := openKernel()
	if err != nil {
		l.release()
		return nil, &Error{Op: op, Step: "netlink", Err: err}
	}
	v6off, err := k.install(op, cfg)
	if err != nil {
		k.close()
		l.release()
		return nil, err
	}
	return &Redirect{Config: cfg, IPv6Off: v6off, kernel: k, lock: l}, nil
}

// Remove removes all that Install made and lets another process have it. A second call does nothing. It works from any
// thread, in whatever network namespace that is. When it fails, the [Error] names what is left, and it may be
// called again.
func (r *Redirect) Remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kernel == nil {
		return nil
	}
	if err := r.kernel.remove("remove", r.Config, nil); err != nil {
		return err
	}
	r.kernel.close()
	r.lock.release()
	r.kernel = nil
	return nil
}

// RemoveStale removes what a process left that was killed. That there is nothing to remove is fine. It refuses with
// [ErrInUse] while a living process holds the redirect, and with [CollisionError] to delete a table that is not ours.
func RemoveStale(cfg Config) error {
	const op = "remove stale"
	if err := cfg.Validate(); err != nil {
		return &Error{Op: op, Step: "configuration", Err: err}
	}
	cfg = cfg.WithDefaults()
	l, err := acquireLock(lockNames(cfg)...)
	if err != nil {
		return &Error{Op: op, Step: "lock", Err: err}
	}
	defer l.release()
	k, err := openKernel()
	if err != nil {
		return &Error{Op: op, Step: "netlink", Err: err}
	}
	defer k.close()
	_, stale, err := k.table(cfg)
	if err != nil {
		return &Error{Op: op, Step: "look", Err: err}
	}
	return k.remove(op, cfg, stale)
}

// table looks at our nftables table and returns the marks of an earlier run with another configuration, less those that a
// living process with another table uses. A table that holds something foreign is a CollisionError.
func (k *kernel) table(cfg Config) (table foundTable, staleMarks []uint32, err error) {
	table, err = inspectTable(k.nft, cfg)
	if err != nil {
		return table, nil, fmt.Errorf("nft table inet %s: %w", cfg.Table, err)
	}
	if table.foreign != "" {
		return table, nil, &CollisionError{Option: "table", Value: cfg.Table, Found: table.foreign}
	}
	for _, mark := range table.marks {
		held, err := anyHeld(markLockName(mark))
		if err != nil {
			return table, nil, err
		}
		if mark != cfg.Mark && !held {
			staleMarks = append(staleMarks, mark)
		}
	}
	return table, staleMarks, nil
}

// install looks at everything before it changes anything, and undoes what it did when a step fails. The nftables batch is
// last: until then no packet is marked, so nothing before it can be noticed.
func (k *kernel) install(op string, cfg Config) (v6off, err error) {
	_, stale, err := k.table(cfg)
	if err != nil {
		return nil, &Error{Op: op, Step: "look", Err: err}
	}
	have := make(map[int]found)
	for _, f := range families() {
		got, err := f.inspect(k.route, cfg, stale)
		switch {
		case err != nil && f.af == unix.AF_INET6 && familyOff(err):
			v6off = err
		case err != nil:
			return nil, &Error{Op: op, Step: f.ip, Err: err}
		case len(got.collisions) > 0:
			return nil, &Error{Op: op, Step: f.ip, Err: got.collisions[0]}
		default:
			have[f.af] = got
		}
	}
	for _, f := range families() {
		got, present := have[f.af]
		if !present {
			continue
		}
		err := f.install(k.route, cfg, got)
		if err != nil && f.af == unix.AF_INET6 && familyOff(err) {
			v6off, err = err, f.removeAll(k.route, cfg, stale)
		}
		if err != nil {
			return nil, k.undo(op, f.ip, cfg, stale, err)
		}
	}
	if err := replaceTable(k.nft, cfg); err != nil {
		return nil, k.undo(op, "nft table inet "+cfg.Table, cfg, stale, err)
	}
	return v6off, nil
}

// undo removes everything of ours after a failed install and returns the error to report.
func (k *kernel) undo(op, step string, cfg Config, stale []uint32, cause error) error {
	out := &Error{Op: op, Step: step, Err: cause}
	if err := k.remove(op, cfg, stale); err != nil {
		out.Left = err.Error()
	}
	return out
}

// remove deletes the table first, so that no packet is marked any more, then rules and routes. A failed step does not
// keep it from the next one.
func (k *kernel) remove(op string, cfg Config, stale []uint32) error {
	var (
		errs []error
		left []string
	)
	if err := deleteTable(k.nft, cfg.Table); err != nil {
		errs = append(errs, err)
		left = append(left, "nft table inet "+cfg.Table)
	}
	for _, f := range families() {
		if err := f.removeAll(k.route, cfg, stale); err != nil && !(f.af == unix.AF_INET6 && familyOff(err)) {
			errs = append(errs, err)
			left = append(left, f.ruleString(f.rule(cfg)), f.routeString(cfg))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Op: op, Step: "delete", Left: strings.Join(left, ", "), Err: errors.Join(errs...)}
}

// removeAll deletes what is ours of one family, as it is now.
func (f family) removeAll(h *netlink.Handle, cfg Config, stale []uint32) error {
	have, err := f.inspect(h, cfg, stale)
	if err != nil {
		return err
	}
	return f.remove(h, have)
}
