package guestinit

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configureNetwork waits for the interfaces, sets the sysctls (some of them exist only once an interface does) and then the
// addresses and routes.
func configureNetwork(spec Spec) error {
	links := make([]netlink.Link, len(spec.Interfaces))
	for i, nic := range spec.Interfaces {
		var err error
		if links[i], err = waitLink(nic.MAC); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Sysctls)) {
		if err := setSysctl(name, spec.Sysctls[name]); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set interface lo up: %w", err)
	}
	for i, nic := range spec.Interfaces {
		if err := configureLink(links[i], nic); err != nil {
			return fmt.Errorf("interface %s: %w", nic.MAC, err)
		}
	}
	return nil
}

// waitLink waits for the interface with the given MAC.
func waitLink(mac string) (netlink.Link, error) {
	var found netlink.Link
	var listErr error
	if poll(setupTimeout, func() bool {
		var links []netlink.Link
		links, listErr = netlink.LinkList()
		for _, l := range links {
			if strings.EqualFold(l.Attrs().HardwareAddr.String(), mac) {
				found = l
			}
		}
		return found != nil
	}) {
		return found, nil
	}
	if listErr != nil {
		return nil, fmt.Errorf("list interfaces: %w", listErr)
	}
	return nil, fmt.Errorf("no interface has the MAC %s after %v", mac, setupTimeout)
}

func configureLink(link netlink.Link, nic Interface) error {
	if nic.MTU > 0 {
		if err := netlink.LinkSetMTU(link, nic.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", nic.MTU, err)
		}
	}
	for _, prefix := range nic.Addrs {
		addr := &netlink.Addr{IPNet: ipNet(prefix.Addr(), prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once; the lab hands out no address twice
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", prefix, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, r := range nic.Routes {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index,
			Dst:       ipNet(r.Dst.Masked().Addr(), r.Dst),
			Gw:        r.Via.AsSlice(),
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to %s via %s: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

// ipNet joins an address with the length of a prefix.
func ipNet(addr netip.Addr, prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), addr.BitLen())}
}
