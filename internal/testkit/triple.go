package testkit

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Addresses of a Triple. Host4 and Host6 are on the host's link to the client, the gateways on its link to the guest.
const (
	Client4       = "10.78.0.2"
	Client6       = "fd78::2"
	Host4         = "10.78.0.1"
	Host6         = "fd78::1"
	GuestGateway4 = "10.77.0.1"
	GuestGateway6 = "fd77::1"
	Guest4        = "10.77.0.2"
	Guest6        = "fd77::2"
)

// Links of the host in a Triple.
const (
	HostClientLink = "client0"
	HostGuestLink  = "guest0"
)

// Network is three network namespaces in a row: the client, the host, which forwards, and one that stands for the guest.
//
//	client eth0 ── client0 host guest0 ── eth0 guest
type Network struct {
	Client, Host, Guest *Namespace
}

// Triple makes a Network with IPv4 and IPv6, ready when it returns. Then it calls each hook, for what the test adds to it,
// such as the redirect. Everything goes when the test ends.
func Triple(tb testing.TB, hooks ...func(testing.TB, *Network)) *Network {
	tb.Helper()
	n := &Network{
		Client: NewNamespace(tb, "client"),
		Host:   NewNamespace(tb, "host"),
		Guest:  NewNamespace(tb, "guest"),
	}
	for _, ns := range []*Namespace{n.Client, n.Host, n.Guest} {
		// The default of a new namespace is the machine's, which tests must not depend on.
		ns.Sysctl(tb, "net/ipv4/conf/all/rp_filter", "0")
		ns.Sysctl(tb, "net/ipv4/conf/default/rp_filter", "0")
		// Link-local addresses would be unusable for a second, and the first IPv6 segments lost.
		ns.Sysctl(tb, "net/ipv6/conf/default/accept_dad", "0")
		ns.Sysctl(tb, "net/ipv6/conf/default/router_solicitations", "0")
	}
	n.Host.Sysctl(tb, "net/ipv4/ip_forward", "1")
	n.Host.Sysctl(tb, "net/ipv6/conf/all/forwarding", "1")
	n.wire(tb)
	for _, hook := range hooks {
		hook(tb, n)
	}
	return n
}

// Interface indexes of the host's links, as netns.Veth wants them.
const (
	clientLinkIndex = 10
	guestLinkIndex  = 11
)

// wire makes the links, with their addresses and routes, and waits until they carry packets.
func (n *Network) wire(tb testing.TB) {
	tb.Helper()
	steps := []error{
		n.Host.Veth(HostClientLink, clientLinkIndex, n.Client.Namespace, "eth0"),
		n.Host.Veth(HostGuestLink, guestLinkIndex, n.Guest.Namespace, "eth0"),
		n.Host.Addresses(HostClientLink, prefixes(Host4, Host6)...),
		n.Host.Addresses(HostGuestLink, prefixes(GuestGateway4, GuestGateway6)...),
		n.Client.Addresses("eth0", prefixes(Client4, Client6)...),
		n.Guest.Addresses("eth0", prefixes(Guest4, Guest6)...),
		n.Client.DefaultRoutes(netip.MustParseAddr(Host4), netip.MustParseAddr(Host6)),
		n.Guest.DefaultRoutes(netip.MustParseAddr(GuestGateway4), netip.MustParseAddr(GuestGateway6)),
	}
	if err := errors.Join(steps...); err != nil {
		tb.Fatal(err)
	}
	n.Host.waitRunning(tb, HostClientLink, HostGuestLink)
	n.Client.waitRunning(tb, "eth0")
	n.Guest.waitRunning(tb, "eth0")
	n.Host.AwaitLocal(tb, netip.MustParseAddr(Host6), netip.MustParseAddr(GuestGateway6))
	n.Client.AwaitLocal(tb, netip.MustParseAddr(Client6))
	n.Guest.AwaitLocal(tb, netip.MustParseAddr(Guest6))
}

// prefixes are an IPv4 and an IPv6 address with the prefix lengths of the Triple's links.
func prefixes(v4, v6 string) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(v4), 24), netip.PrefixFrom(netip.MustParseAddr(v6), 64)}
}

// localTable is RT_TABLE_LOCAL (include/uapi/linux/rtnetlink.h).
const localTable = 255

// AwaitLocal waits until the addresses are the namespace's own. IPv6 makes their routes in a work queue, when the link has its carrier (addrconf_dad_work,
// net/ipv6/addrconf.c); what comes earlier is dropped.
func (ns *Namespace) AwaitLocal(tb testing.TB, addrs ...netip.Addr) {
	tb.Helper()
	ns.Must(tb, func() error {
		for _, addr := range addrs {
			for deadline := time.Now().Add(settleTime); ; time.Sleep(time.Millisecond) {
				routes, err := netlink.RouteGet(addr.AsSlice())
				if err == nil && len(routes) > 0 && routes[0].Table == localTable {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("%v is still no address of the namespace after %v: %v", addr, settleTime, err)
				}
			}
		}
		return nil
	})
}

// waitRunning waits until the links carry packets; what is sent earlier is dropped.
func (ns *Namespace) waitRunning(tb testing.TB, links ...string) {
	tb.Helper()
	ns.Must(tb, func() error {
		for _, name := range links {
			for deadline := time.Now().Add(settleTime); ; time.Sleep(time.Millisecond) {
				l, err := netlink.LinkByName(name)
				if err != nil {
					return fmt.Errorf("find link %s: %w", name, err)
				}
				if l.Attrs().OperState == netlink.OperUp {
					break
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("link %s is still %v after %v", name, l.Attrs().OperState, settleTime)
				}
			}
		}
		return nil
	})
}
