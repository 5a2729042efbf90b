package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// State is what Check found of one part of the redirect.
type State int

// The states of a Part.
const (
	Missing   State = iota // not there
	Installed              // there, as configured
	Outdated               // ours, but not as configured: an earlier run had another configuration, or somebody changed it
)

func (s State) String() string {
	switch s {
	case Missing:
		return "missing"
	case Installed:
		return "installed"
	case Outdated:
		return "outdated"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// A Part is one kernel object of the redirect.
type Part struct {
	Name   string // in the words of ip(8) or nft(8)
	Remove string // the command that removes it by hand
	State  State
}

// Status is what is installed in a network namespace.
type Status struct {
	Config     Config            // what was looked for, defaults filled in
	Held       bool              // a living process holds the redirect
	Parts      []Part            // table, then rule and route of each family that is on
	IPv6Off    error             // why IPv6 is not looked at, nil when it is
	Collisions []*CollisionError // what the operator uses of the same names and numbers
}

// Complete reports whether every part is installed.
func (s Status) Complete() bool { return s.every(Installed) }

// Empty reports whether nothing of ours is there.
func (s Status) Empty() bool { return s.every(Missing) }

// Stale reports whether a process left something behind: parts are there and nobody holds them.
func (s Status) Stale() bool { return !s.Held && !s.Empty() }

func (s Status) every(want State) bool {
	for _, p := range s.Parts {
		if p.State != want {
			return false
		}
	}
	return true
}

// Check looks at the network namespace of the calling thread and changes nothing. It needs CAP_NET_ADMIN.
func Check(cfg Config) (Status, error) {
	const op = "check"
	if err := cfg.Validate(); err != nil {
		return Status{}, &Error{Op: op, Step: "configuration", Err: err}
	}
	cfg = cfg.WithDefaults()
	st := Status{Config: cfg}
	var err error
	// Looked up, not taken: a daemon that starts at this moment must not be told that somebody is there.
	if st.Held, err = anyHeld(lockNames(cfg)...); err != nil {
		return st, &Error{Op: op, Step: "lock", Err: err}
	}
	k, err := openKernel()
	if err != nil {
		return st, &Error{Op: op, Step: "netlink", Err: err}
	}
	defer k.close()
	if err := k.check(&st); err != nil {
		return st, &Error{Op: op, Step: "list", Err: err}
	}
	return st, nil
}

func (k *kernel) check(st *Status) error {
	cfg := st.Config
	table, stale, err := k.table(cfg)
	var clash *CollisionError
	switch {
	case errors.As(err, &clash):
		st.Collisions = append(st.Collisions, clash)
	case err != nil:
		return err
	}
	name := "nft table inet " + cfg.Table
	st.Parts = append(st.Parts, Part{
		Name: name, Remove: "nft delete table inet " + cfg.Table,
		State: stateOf(table.exists && table.foreign == "", table.current),
	})
	for _, f := range families() {
		if f.af == unix.AF_INET6 {
			if st.IPv6Off = ipv6Off(); st.IPv6Off != nil {
				continue
			}
		}
		have, err := f.inspect(k.route, cfg, stale)
		if err != nil {
			return fmt.Errorf("%s: %w", f.ip, err)
		}
		st.Collisions = append(st.Collisions, have.collisions...)
		st.Parts = append(st.Parts,
			Part{
				Name: f.ruleString(f.rule(cfg)), State: stateOf(len(have.rules) > 0, have.ruleCurrent),
				Remove: fmt.Sprintf("%s rule del pref %d fwmark %#x lookup %d", f.ip, cfg.RulePriority, cfg.Mark, cfg.RouteTable),
			},
			Part{
				Name: f.routeString(cfg), State: stateOf(len(have.routes) > 0, have.routeOK),
				Remove: fmt.Sprintf("%s route flush table %d", f.ip, cfg.RouteTable),
			})
	}
	return nil
}

// ipv6Off returns why the redirect would leave IPv6 out, nil when it would not: /proc/sys/net shows the network
// namespace of the calling thread.
func ipv6Off() error {
	const path = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
	value, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the kernel has no IPv6 or was booted with ipv6.disable=1")
	case err != nil:
		return err
	case strings.TrimSpace(string(value)) != "0":
		return errors.New("the sysctl net.ipv6.conf.lo.disable_ipv6 is set")
	}
	return nil
}

func stateOf(present, current bool) State {
	switch {
	case current:
		return Installed
	case present:
		return Outdated
	}
	return Missing
}
