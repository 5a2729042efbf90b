package config

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/BurntSushi/toml"
)

// Host is the configuration of `spillway host`, the daemon on the machine that the VMs run on.
type Host struct {
	LogLevel LogLevel    `toml:"log_level"`
	Admin    string      `toml:"admin"`     // path of the unix socket for status and recalls, empty for none
	Metrics  string      `toml:"metrics"`   // TCP address for Prometheus, empty for none
	BusyPoll Duration    `toml:"busy_poll"` // how long to ask a channel for an expected answer before sleeping; 0: not at all
	Redirect Redirect    `toml:"redirect"`
	Limits   Limits      `toml:"limits"`
	Shares   []HostShare `toml:"share"`
	VMs      []VM        `toml:"vm"`
}

// Redirect holds the names and numbers under which the packets of leased connections reach the host's own sockets. They are
// the same as the defaults of package redirect, which says how they were chosen; they only matter where they collide with
// something else on the machine.
type Redirect struct {
	Table      string `toml:"table"`       // the nftables table, family inet
	Mark       uint32 `toml:"mark"`        // the firewall mark of redirected packets
	RouteTable uint32 `toml:"route_table"` // the routing table that delivers them locally
	Priority   uint32 `toml:"priority"`    // the preference of the policy rules
}

// Limits bound how long the host waits for somebody.
type Limits struct {
	DrainTimeout   Duration `toml:"drain_timeout"`   // at a handback, for the client to acknowledge what it was sent
	StallTimeout   Duration `toml:"stall_timeout"`   // for a client that takes no byte
	SessionTimeout Duration `toml:"session_timeout"` // for a guest that says nothing, not even PING
}

// HostShare is a tree of files that VMs may send from.
type HostShare struct {
	Name   string     `toml:"name"`
	Path   string     `toml:"path"`   // a directory of this machine, or
	Origin string     `toml:"origin"` // where the files come from that Cache keeps here
	Cache  ShareCache `toml:"cache"`
}

// VM is one virtual machine, and what it is allowed.
type VM struct {
	Name         string       `toml:"name"`
	Channels     []string     `toml:"channels"`  // addresses that the daemon listens at; to connect there is to be this VM
	Group        string       `toml:"group"`     // name or number of the group that may connect to unix channels beside root, empty for none
	Addresses    []netip.Addr `toml:"addresses"` // the VM's own; it may hand over no other address's connections
	Shares       []string     `toml:"shares"`    // names of the shares it may send from
	MaxLeases    int          `toml:"max_leases"`
	MaxOpenFiles int          `toml:"max_open_files"`
	Mark         uint32       `toml:"mark"` // SO_MARK of the host's sockets with its clients, for the machine's own rules; 0: none
}

// DefaultHost returns the configuration that an empty file means. It has no VM yet, so it is not valid.
func DefaultHost() Host {
	return Host{
		Admin:    "/run/spillway/admin.sock",
		BusyPoll: DefaultBusyPoll,
		Redirect: Redirect{
			Table:      "spillway",
			Mark:       0x53,
			RouteTable: 5383,
			Priority:   83,
		},
		Limits: Limits{
			DrainTimeout:   Duration(10 * time.Second),
			StallTimeout:   Duration(60 * time.Second),
			SessionTimeout: Duration(6 * time.Second), // docs/wire.md, Synchronization
		},
	}
}

// DefaultVM returns what a [[vm]] table means that says nothing.
func DefaultVM() VM {
	return VM{MaxLeases: 4096, MaxOpenFiles: 256}
}

// LoadHost reads a file over the defaults. The result is complete but not validated.
func LoadHost(file string) (Host, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Host{}, err // an *fs.PathError, which names the file
	}
	return parseHost(file, string(text))
}

func parseHost(file, text string) (Host, error) {
	h := DefaultHost()
	// The outer VMs hides the inner one from the decoder: each VM must be decoded over its own defaults.
	wrapped := struct {
		*Host
		VMs []toml.Primitive `toml:"vm"`
	}{Host: &h}
	err := decode(file, text, &wrapped, func(meta toml.MetaData) error {
		for i, p := range wrapped.VMs {
			vm := DefaultVM()
			if err := meta.PrimitiveDecode(p, &vm); err != nil {
				return &elementError{index: i, err: err}
			}
			h.VMs = append(h.VMs, vm)
		}
		return nil
	}, reflect.TypeFor[Host]())
	if err != nil {
		return Host{}, err
	}
	return h, nil
}

// minSessionTimeout leaves room for one lost turn: each side sends PING after 2 s of silence (docs/wire.md).
const minSessionTimeout = 3 * time.Second

// Kernel limits of the redirect's numbers.
const (
	maxRulePriority  = 32765 // the main table's rule is 32766, net/ipv4/fib_rules.c
	firstKernelTable = 253   // RT_TABLE_DEFAULT, include/uapi/linux/rtnetlink.h
	lastKernelTable  = 255   // RT_TABLE_LOCAL
	maxRouteTable    = 1<<31 - 1
)

// Validate reports every mistake, each as an *Error that says what to do.
func (h Host) Validate() error {
	var p problems
	if h.Admin != "" {
		p.absolutePath("admin", h.Admin, ` or ""`)
	}
	p.tcpAddress("metrics", h.Metrics)
	p.busyPoll("busy_poll", h.BusyPoll)
	h.Redirect.validate(&p)
	p.positive("limits.drain_timeout", h.Limits.DrainTimeout)
	p.positive("limits.stall_timeout", h.Limits.StallTimeout)
	if t := h.Limits.SessionTimeout.Value(); t < minSessionTimeout || t%time.Second != 0 {
		p.add("limits.session_timeout", "%v is not possible; use whole seconds from %v up", t, minSessionTimeout)
	}
	shares := map[string]int{}
	for i, s := range h.Shares {
		key := fmt.Sprintf("share[%d]", i)
		p.name(key, s.Name, shares, i)
		s.validate(&p, key)
	}
	h.validateVMs(&p)
	return p.join()
}

func (r Redirect) validate(p *problems) {
	p.word("redirect.table", r.Table, maxTableName, tableRunes, "letters, digits, '_', '-' and '.'")
	if r.Mark == 0 {
		p.add("redirect.mark", "0 marks nothing; use any other number, best one with bits that no other program uses")
	}
	switch t := r.RouteTable; {
	case t == 0 || t > maxRouteTable:
		p.add("redirect.route_table", "%d is not possible; use 1 to %d", t, maxRouteTable)
	case t >= firstKernelTable && t <= lastKernelTable:
		p.add("redirect.route_table", "%d belongs to the kernel; use another number", t)
	}
	if r.Priority < 1 || r.Priority > maxRulePriority {
		p.add("redirect.priority", "%d is not possible; use 1 to %d, so that it goes before the main table", r.Priority, maxRulePriority)
	}
}

func (h Host) validateVMs(p *problems) {
	if len(h.VMs) == 0 {
		p.add("vm", "there is none; add a [[vm]] table for each VM that this daemon serves")
	}
	names, channels, addresses := map[string]int{}, map[string]string{}, map[netip.Addr]string{}
	admin := listensAt("unix:" + h.Admin)
	for i, vm := range h.VMs {
		key := fmt.Sprintf("vm[%d]", i)
		p.name(key, vm.Name, names, i)
		if len(vm.Channels) == 0 {
			p.add(key+".channels", `there is none; add the socket that QEMU connects to, as "unix:/run/spillway/%s.sock"`, vm.Name)
		}
		for j, c := range vm.Channels {
			k := fmt.Sprintf("%s.channels[%d]", key, j)
			p.channel(k, c, "unix:", "vsock:")
			p.unique(k, listensAt(c), channels, "a channel tells which VM is speaking")
			if h.Admin != "" && listensAt(c) == admin {
				p.add(k, "%s is the socket of admin, too; write another path here or there, one is the VM's and one the operator's", admin)
			}
		}
		if len(vm.Addresses) == 0 {
			p.add(key+".addresses", "there is none; list the IP addresses that clients reach this VM at")
		}
		for j, a := range vm.Addresses {
			k := fmt.Sprintf("%s.addresses[%d]", key, j)
			if reason := notUnicast(a); reason != "" {
				p.add(k, "%v is %s; use the address that clients reach this VM at", a, reason)
			}
			unique(p, k, a, addresses, "a VM could take over another one's connections")
		}
		if len(vm.Shares) == 0 {
			p.add(key+".shares", "there is none, so the VM could send nothing; name one of the [[share]] tables")
		}
		for j, s := range vm.Shares {
			if !slices.ContainsFunc(h.Shares, func(share HostShare) bool { return share.Name == s }) {
				p.add(fmt.Sprintf("%s.shares[%d]", key, j), "there is no share %q; add a [[share]] table, or correct the name", s)
			}
		}
		p.atLeastOne(key+".max_leases", vm.MaxLeases)
		p.atLeastOne(key+".max_open_files", vm.MaxOpenFiles)
		if vm.Mark != 0 && vm.Mark == h.Redirect.Mark {
			p.add(key+".mark", "%#x is redirect.mark, which would deliver what is meant for clients to this machine; use another number", vm.Mark)
		}
	}
}
