package testkit

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	n.Host.veth(tb, 10, HostClientLink, n.Client)
	n.Host.veth(tb, 11, HostGuestLink, n.Guest)
	n.Host.addresses(tb, HostClientLink, Host4+"/24", Host6+"/64")
	n.Host.addresses(tb, HostGuestLink, GuestGateway4+"/24", GuestGateway6+"/64")
	n.Client.addresses(tb, "eth0", Client4+"/24", Client6+"/64")
	n.Guest.addresses(tb, "eth0", Guest4+"/24", Guest6+"/64")
	n.Client.defaultRoutes(tb, Host4, Host6)
	n.Guest.defaultRoutes(tb, GuestGateway4, GuestGateway6)
	n.Host.waitRunning(tb, HostClientLink, HostGuestLink)
	n.Client.waitRunning(tb, "eth0")
	n.Guest.waitRunning(tb, "eth0")
	for _, hook := range hooks {
		hook(tb, n)
	}
	return n
}

// veth makes a link called name in ns whose other end is eth0 in peer. Its index must be none that the peer's namespace gives:
// when both ends have the same one, the kernel takes the link for no pair, and delays "carrier on" by up to a second
// (linkwatch_urgent_event, net/core/link_watch.c).
func (ns *Namespace) veth(tb testing.TB, index int, name string, peer *Namespace) {
	tb.Helper()
	ns.Must(tb, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, index
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     attrs,
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(peer.FD()),
		})
	})
}

// addresses gives link its addresses, without duplicate address detection, and sets it up.
func (ns *Namespace) addresses(tb testing.TB, link string, prefixes ...string) {
	tb.Helper()
	ns.Must(tb, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("find link %s: %w", link, err)
		}
		for _, p := range prefixes {
			a, err := netlink.ParseAddr(p)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("add %s to %s: %w", p, link, err)
			}
		}
		return linkUp(link)
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

func (ns *Namespace) defaultRoutes(tb testing.TB, gateways ...string) {
	tb.Helper()
	ns.Must(tb, func() error {
		for _, g := range gateways {
			gw := netip.MustParseAddr(g)
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if gw.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			dst := &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, gw.BitLen())}
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("add default route via %s: %w", g, err)
			}
		}
		return nil
	})
}
