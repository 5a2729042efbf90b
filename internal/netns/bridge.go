package netns

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Bridge makes an Ethernet switch of links that are in the namespace already, and sets all of them up.
func (ns *Namespace) Bridge(name string, ports ...string) error {
	return ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
		for _, p := range ports {
			port, err := netlink.LinkByName(p)
			if err == nil {
				err = netlink.LinkSetMaster(port, bridge)
			}
			if err == nil {
				err = netlink.LinkSetUp(port)
			}
			if err != nil {
				return fmt.Errorf("port %s of bridge %s: %w", p, name, err)
			}
		}
		return netlink.LinkSetUp(bridge)
	})
}

// HardwareAddr gives a link its hardware address.
func (ns *Namespace) HardwareAddr(link string, mac net.HardwareAddr) error {
	return ns.link(link, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac) })
}

// OnLink routes to networks whose addresses are on a link, although the namespace has no address of them.
func (ns *Namespace) OnLink(link string, networks ...netip.Prefix) error {
	return ns.link(link, func(l netlink.Link) error {
		for _, n := range networks {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(n), Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("route to %v: %w", n, err)
			}
		}
		return nil
	})
}
