// Package neighbor moves a VM's addresses from one host to another on the network segment that both are on: who answers for them there
// (proxy ARP, proxy NDP), who announces them (gratuitous ARP, unsolicited neighbor advertisement), and where a host that has lost them
// sends what still comes.
//
// It is the host's part of a migration and no part of the data path. Each function works in the network namespace of the calling thread; it
// needs CAP_NET_ADMIN and CAP_NET_RAW. Proxy ARP needs forwarding, which the redirect needs anyway. What it makes is network configuration, which
// outlives the daemon: a VM must be reachable without it.
package neighbor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes, as others mark theirs (rtm_protocol; below 128 is taken in /etc/iproute2/rt_protos).
const routeProtocol = 0xd3

// peerOf is the peer's address of the same family.
func peerOf(addr netip.Addr, peers []netip.Addr) (netip.Addr, error) {
	for _, p := range peers {
		if p.Is4() == addr.Is4() {
			return p, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%v: the other host has no address of this family among %v; name one", addr, peers)
}

// segment is the link that leads to a peer, on which the addresses move.
func segment(peer netip.Addr) (netlink.Link, error) {
	routes, err := netlink.RouteGet(peer.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return nil, fmt.Errorf("no route to the other host %v: %w", peer, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("link to the other host %v: %w", peer, err)
	}
	if routes[0].Gw != nil || len(link.Attrs().HardwareAddr) != 6 {
		return nil, fmt.Errorf("the other host %v is not on an Ethernet segment of this one (it is reached by %s): addresses cannot move to it", peer, link.Attrs().Name)
	}
	return link, nil
}

// Take makes this host the one that has the addresses: it sends what comes for them to the VM, answers for them on the segment of peers, the other host's addresses, and
// announces them. It may be called again, to announce again.
func Take(addrs, peers []netip.Addr) error {
	return each(addrs, peers, func(addr, peer netip.Addr, link netlink.Link) error {
		if err := netlink.RouteDel(hostRoute(addr, peer, link)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to %v via %v: %w", addr, peer, err)
		}
		if err := answers(addr, link.Attrs().Name); err != nil {
			return err
		}
		if err := netlink.NeighSet(proxyEntry(addr, link)); err != nil {
			return fmt.Errorf("answer for %v on %s: %w", addr, link.Attrs().Name, err)
		}
		return announce(addr, link.Attrs().Index, link.Attrs().HardwareAddr)
	})
}

// Forward makes this host, which has the addresses and goes on to answer for them, send what comes for them to another one.
func Forward(addrs, peers []netip.Addr) error {
	return each(addrs, peers, func(addr, peer netip.Addr, link netlink.Link) error {
		if err := netlink.RouteReplace(hostRoute(addr, peer, link)); err != nil {
			return fmt.Errorf("route to %v via %v: %w", addr, peer, err)
		}
		return nil
	})
}

// Accept makes this host, which does not have the addresses yet, send what comes for them to the VM, which is about to come.
func Accept(addrs, peers []netip.Addr) error {
	return each(addrs, peers, func(addr, peer netip.Addr, link netlink.Link) error {
		if err := netlink.RouteDel(hostRoute(addr, peer, link)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to %v via %v: %w", addr, peer, err)
		}
		return nil
	})
}

// Leave makes this host one that has the addresses no more: what still comes for them goes to the other host.
func Leave(addrs, peers []netip.Addr) error {
	return each(addrs, peers, func(addr, peer netip.Addr, link netlink.Link) error {
		if err := netlink.RouteReplace(hostRoute(addr, peer, link)); err != nil {
			return fmt.Errorf("route to %v via %v: %w", addr, peer, err)
		}
		if err := netlink.NeighDel(proxyEntry(addr, link)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("answer no more for %v on %s: %w", addr, link.Attrs().Name, err)
		}
		return nil
	})
}

// each calls f for every address. All of them are looked up before the first one is changed.
func each(addrs, peers []netip.Addr, f func(addr, peer netip.Addr, link netlink.Link) error) error {
	type move struct {
		addr, peer netip.Addr
		link       netlink.Link
	}
	var moves []move
	for _, addr := range addrs {
		peer, err := peerOf(addr, peers)
		if err != nil {
			return err
		}
		link, err := segment(peer)
		if err != nil {
			return err
		}
		moves = append(moves, move{addr, peer, link})
	}
	var errs []error
	for _, m := range moves {
		errs = append(errs, f(m.addr, m.peer, m.link))
	}
	return errors.Join(errs...)
}

// answers sets a link up to answer for others: proxy NDP is off by default, and an answer for somebody else takes up to 0.8 s (PROXY_DELAY, net/core/neighbour.c).
func answers(addr netip.Addr, link string) error {
	family := "ipv4"
	if addr.Is6() {
		family = "ipv6"
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/proxy_ndp", []byte("1"), 0); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/"+family+"/neigh/"+link+"/proxy_delay", []byte("0"), 0)
}

func hostRoute(addr, peer netip.Addr, link netlink.Link) *netlink.Route {
	return &netlink.Route{
		Dst:       &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		Gw:        peer.AsSlice(),
		LinkIndex: link.Attrs().Index,
		Protocol:  routeProtocol,
	}
}

func proxyEntry(addr netip.Addr, link netlink.Link) *netlink.Neigh {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, Flags: netlink.NTF_PROXY, IP: addr.AsSlice()}
}

// Gateway returns the link over which this host reaches a VM's address when the VM is here, by its own routes, and that link's hardware address: the VM takes it for its gateway's, and
// goes on to do so at another host.
func Gateway(addr netip.Addr) (link string, mac net.HardwareAddr, err error) {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteList(nil, family)
	if err != nil {
		return "", nil, fmt.Errorf("routes: %w", err)
	}
	best, length := 0, -1
	for _, r := range routes {
		if r.Dst == nil || r.Gw != nil || r.Protocol == routeProtocol || r.Type != unix.RTN_UNICAST || !r.Dst.Contains(addr.AsSlice()) {
			continue
		}
		if ones, _ := r.Dst.Mask.Size(); ones > length {
			best, length = r.LinkIndex, ones
		}
	}
	if length <= 0 {
		return "", nil, fmt.Errorf("this host has no link to %v: make the VM's tap and its route first", addr)
	}
	l, err := netlink.LinkByIndex(best)
	if err != nil {
		return "", nil, err
	}
	return l.Attrs().Name, l.Attrs().HardwareAddr, nil
}
