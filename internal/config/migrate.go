package config

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
)

// Migrate is the configuration of `spillway migrate`: where each VM may be.
type Migrate struct {
	VMs []MigrateVM `toml:"vm"`
}

// MigrateVM is a VM that may move, by the name that it has in the hosts' own configurations.
type MigrateVM struct {
	Name  string        `toml:"name"`
	Hosts []MigrateHost `toml:"host"`
}

// MigrateHost is one host that a VM may be at. All paths are those of the machine that `spillway migrate` runs on: sockets of another one are forwarded.
type MigrateHost struct {
	Name      string       `toml:"name"`
	Admin     string       `toml:"admin"`     // the daemon's admin socket
	QMP       string       `toml:"qmp"`       // the VM's QMP socket there
	Addresses []netip.Addr `toml:"addresses"` // the host's own, on the segment on which the VM's addresses move: one of each family
	Incoming  string       `toml:"incoming"`  // where a QEMU there waits for the memory: unix:PATH or tcp:ADDRESS:PORT
	Start     []string     `toml:"start"`     // the command that starts a QEMU there that waits: -incoming defer -S
	Stop      []string     `toml:"stop"`      // the command that ends it, whatever state it is in
}

// LoadMigrate reads and checks a file.
func LoadMigrate(file string) (Migrate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Migrate{}, err // an *fs.PathError, which names the file
	}
	var m Migrate
	if err := decode(file, string(text), &m, nil, reflect.TypeFor[Migrate]()); err != nil {
		return Migrate{}, err
	}
	return m, m.Validate()
}

// Validate reports every mistake, each as an *Error that says what to do.
func (m Migrate) Validate() error {
	var p problems
	if len(m.VMs) == 0 {
		p.add("vm", "there is none; add a [[vm]] table for each VM that may move")
	}
	names := map[string]int{}
	for i, vm := range m.VMs {
		key := fmt.Sprintf("vm[%d]", i)
		p.name(key, vm.Name, names, i)
		if len(vm.Hosts) < 2 {
			p.add(key+".host", "there are %d; a VM needs two [[vm.host]] tables to move", len(vm.Hosts))
		}
		hosts := map[string]int{}
		for j, h := range vm.Hosts {
			h.validate(&p, fmt.Sprintf("%s.host[%d]", key, j), hosts, j)
		}
	}
	return p.join()
}

func (h MigrateHost) validate(p *problems, key string, names map[string]int, i int) {
	p.name(key, h.Name, names, i)
	p.absolutePath(key+".admin", h.Admin, "")
	p.absolutePath(key+".qmp", h.QMP, "")
	if len(h.Addresses) == 0 {
		p.add(key+".addresses", "there is none; list the host's addresses on the segment that the VM's clients are reached by, one of each family")
	}
	if !strings.HasPrefix(h.Incoming, "unix:") && !strings.HasPrefix(h.Incoming, "tcp:") {
		p.add(key+".incoming", "%q: write unix:PATH or tcp:ADDRESS:PORT", h.Incoming)
	}
	for _, c := range []struct {
		key     string
		command []string
	}{{"start", h.Start}, {"stop", h.Stop}} {
		if len(c.command) == 0 {
			p.add(key+"."+c.key, "there is no command")
		}
	}
}

// Sides finds the host that a VM is at, the one of whose QMP sockets somebody answers, and the one that it is to move to.
func (m Migrate) Sides(vm, to string, answers func(MigrateHost) bool) (from, dest MigrateHost, err error) {
	for _, v := range m.VMs {
		if v.Name != vm {
			continue
		}
		var at []string
		found := false
		for _, h := range v.Hosts {
			if h.Name == to {
				dest, found = h, true
			} else if answers(h) {
				from, at = h, append(at, h.Name)
			}
		}
		switch {
		case !found:
			return from, dest, fmt.Errorf("VM %s has no host %q in the configuration", vm, to)
		case answers(dest):
			return from, dest, fmt.Errorf("a QEMU of VM %s is at %s already; is it left over from a move that failed?", vm, to)
		case len(at) == 0:
			return from, dest, fmt.Errorf("VM %s runs at none of its hosts: nobody answers at their QMP sockets", vm)
		case len(at) > 1:
			return from, dest, fmt.Errorf("there is a QEMU of VM %s at each of %v; end the one that is paused", vm, at)
		}
		return from, dest, nil
	}
	return from, dest, fmt.Errorf("there is no VM %q in the configuration", vm)
}
