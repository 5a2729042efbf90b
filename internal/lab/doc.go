// Package lab builds a whole deployment out of network namespaces on one machine: a client, a host with the daemon, and a guest that is a real
// VM (QEMU, whose init is our own binary) or a namespace that stands for one. Demo, benches and tests run in it.
//
//	client ── eth0 ─ veth ─ client0 ── host ── guest0 ─ tap or veth ─ eth0 ── guest
//	10.88.0.2                10.88.0.1      10.87.0.1                 10.87.0.2
//
// A link with a delay replaces the veth pair to the client by the two TUN devices of a delay line, under the same names and addresses.
//
// With Options.SecondGuest there is one more guest at 10.87.1.2, with two servers. With Options.Origin the offloading servers' share is one that the
// daemon fills from an origin (docs/cache.md), and not the directory. With Options.CacheDir there is such a share beside the directory, and a server for it.
//
// Everything runs as real processes of the spillway binary: the host daemon and a bare-metal media server in the host's namespace, and in the guest one
// media server for each way to serve, on a port of its own. Names carry the lab's, so that labs of several checkouts stand
// side by side; all state is below one directory, from which Down finds everything again.
//
// Needs root. The daemons never import it.
package lab

import (
	"net/netip"
	"slices"
)

// Addresses, the same in every lab: each has its own namespaces.
var (
	clientAddr4 = netip.MustParsePrefix("10.88.0.2/24")
	clientAddr6 = netip.MustParsePrefix("fd88::2/64")
	hostAddr4   = netip.MustParsePrefix("10.88.0.1/24")
	hostAddr6   = netip.MustParsePrefix("fd88::1/64")
	gateway4    = netip.MustParsePrefix("10.87.0.1/24")
	gateway6    = netip.MustParsePrefix("fd87::1/64")
	guestAddr4  = netip.MustParsePrefix("10.87.0.2/24")
	guestAddr6  = netip.MustParsePrefix("fd87::2/64")

	secondGateway4 = netip.MustParsePrefix("10.87.1.1/24")
	secondGateway6 = netip.MustParsePrefix("fd87:0:0:1::1/64")
	secondAddr4    = netip.MustParsePrefix("10.87.1.2/24")
	secondAddr6    = netip.MustParsePrefix("fd87:0:0:1::2/64")
)

// Links of the host's namespace; the other end of each is eth0.
const (
	clientLink = "client0"
	guestLink  = "guest0"
	secondLink = "guest1"
	peerLink   = "eth0"
)

// Interface indexes of the host's links; a new namespace gives small ones.
const (
	clientLinkIndex = 10
	guestLinkIndex  = 11
	secondLinkIndex = 12
)

// Names inside the lab.
const (
	vmName    = "vm0"
	secondVM  = "vm1"
	shareName = "media"
	cacheName = "cached" // the share of LeaseCache
	urlPrefix = "/media/"
)

// Arm is a way to serve.
type Arm string

// The arms of the evaluation.
const (
	Baremetal Arm = "baremetal" // the media server on the host
	VM        Arm = "vm"        // the same server in the guest, reading the share
	Offload   Arm = "offload"   // the seed's way: the connection is handed over and back for each response
	Lease     Arm = "lease"     // the connection stays on the host

	// VMCold is VM, whose requests find no cache in the guest (DropCaches before each).
	VMCold Arm = "vm-cold"
	// VMTmpfs is VM, with a copy of the files in the guest's memory. Only a lab that was made with Options.InMemory has it.
	VMTmpfs Arm = "vm-tmpfs"
	// VMVirtiofs is VM, reading the share through virtiofs. Only a lab that was made with Options.Virtiofs has it.
	VMVirtiofs Arm = "vm-virtiofs"
	// Second is Lease in the second guest, of a lab that was made with Options.SecondGuest.
	Second Arm = "second"
	// SecondVM is VM in the second guest.
	SecondVM Arm = "second-vm"
	// LeaseCache is Lease, over a share of kind cache whose origin is the directory. Only a lab that was made with Options.CacheDir has it.
	LeaseCache Arm = "lease-cache"
)

// Arms in the order of the tables.
func Arms() []Arm { return []Arm{Baremetal, VM, Offload, Lease} }

// AllArms are Arms, and those that a lab has for comparison.
func AllArms() []Arm {
	return []Arm{Baremetal, VM, VMCold, VMVirtiofs, VMTmpfs, Offload, Lease, LeaseCache, NginxHost, NginxVM}
}

// guestServers are the arms whose server is ours and in the guest.
func (o Options) guestServers() []Arm {
	return slices.DeleteFunc(o.servers(), func(a Arm) bool { return a == Baremetal || a.IsPeer() })
}

// servers are the arms of a lab that have a server of their own.
func (o Options) servers() []Arm {
	arms := Arms()
	if o.InMemory {
		arms = append(arms, VMTmpfs)
	}
	if o.Virtiofs {
		arms = append(arms, VMVirtiofs)
	}
	if o.Peers {
		arms = append(arms, NginxHost, NginxVM)
	}
	if o.CacheDir != "" {
		arms = append(arms, LeaseCache)
	}
	if o.SecondGuest {
		arms = append(arms, Second, SecondVM)
	}
	return arms
}

// offloads tells whether an arm uses the host daemon.
func (a Arm) offloads() bool { return a == Offload || a == Lease || a == LeaseCache || a == Second }

// Ports of an arm's server.
func (a Arm) port() uint16 {
	return map[Arm]uint16{
		Baremetal: 8080, VM: 8080, VMCold: 8080, Offload: 8081, Lease: 8082, Second: 8082, VMTmpfs: 8083, NginxHost: 8084, NginxVM: 8084, VMVirtiofs: 8085, LeaseCache: 8086,
		SecondVM: 8080,
	}[a]
}

func (a Arm) adminPort() uint16 { return a.port() + 1000 }

// isSecond tells whether an arm's server is in the second guest.
func (a Arm) isSecond() bool { return a == Second || a == SecondVM }

// channelArms are those whose server is in the first guest and has channels.
func (o Options) channelArms() []Arm {
	return slices.DeleteFunc(o.servers(), func(a Arm) bool { return !a.offloads() || a.isSecond() })
}

// mode of an offloading arm's server.
func (a Arm) mode() string {
	if a == Second || a == LeaseCache {
		return string(Lease)
	}
	return string(a)
}

// addr is where an arm's server listens.
func (a Arm) addr() netip.Addr {
	switch a {
	case Baremetal, NginxHost:
		return hostAddr4.Addr()
	case Second, SecondVM:
		return secondAddr4.Addr()
	}
	return guestAddr4.Addr()
}
