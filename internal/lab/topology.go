package lab

import (
	"errors"
	"maps"

	"spillway/internal/netns"
)

// topology makes the namespaces and the links between them.
func (l *Lab) topology() (err error) {
	l.Progress("network namespaces")
	for _, n := range []struct {
		into **netns.Namespace
		role string
	}{{&l.Client, "client"}, {&l.Host, "host"}, {&l.Guest, "guest"}, {&l.SecondGuestNS, secondRole}} {
		if n.role == "guest" && l.VM == QEMU || n.role == secondRole && (!l.SecondGuest || l.VM == QEMU) {
			continue
		}
		if *n.into, err = netns.Named(namespaceName(l.Name, n.role)); err != nil {
			return err
		}
		// The default of a new namespace is the machine's, which a lab must not depend on.
		for _, which := range []string{"all", "default"} {
			if err := (*n.into).Sysctl("net/ipv4/conf/"+which+"/rp_filter", "0"); err != nil {
				return err
			}
		}
	}
	steps := []func() error{
		func() error { return l.Host.Sysctl("net/ipv4/ip_forward", "1") },
		func() error { return l.Host.Sysctl("net/ipv6/conf/all/forwarding", "1") },
		l.clientLink,
		func() error { return l.Host.Addresses(clientLink, hostAddr4, hostAddr6) },
		func() error { return l.Client.Addresses(peerLink, clientAddr4, clientAddr6) },
		func() error { return l.Client.DefaultRoutes(hostAddr4.Addr(), hostAddr6.Addr()) },
		l.guestLink,
		func() error { return l.Host.Addresses(guestLink, gateway4, gateway6) },
		l.secondGuestLink,
		l.congestion,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// guestLink makes the link to the guest; a VM's other end is set up by its init.
func (l *Lab) guestLink() error {
	if l.VM == QEMU {
		return l.Host.Tap(guestLink)
	}
	return errors.Join(
		l.Host.Veth(guestLink, guestLinkIndex, l.Guest, peerLink),
		l.Guest.Addresses(peerLink, guestAddr4, guestAddr6),
		l.Guest.DefaultRoutes(gateway4.Addr(), gateway6.Addr()),
	)
}

func (l *Lab) secondGuestLink() error {
	switch {
	case !l.SecondGuest:
		return nil
	case l.VM == QEMU:
		return errors.Join(l.Host.Tap(secondLink), l.Host.Addresses(secondLink, secondGateway4, secondGateway6))
	}
	return errors.Join(
		l.Host.Veth(secondLink, secondLinkIndex, l.SecondGuestNS, peerLink),
		l.Host.Addresses(secondLink, secondGateway4, secondGateway6),
		l.SecondGuestNS.Addresses(peerLink, secondAddr4, secondAddr6),
		l.SecondGuestNS.DefaultRoutes(secondGateway4.Addr(), secondGateway6.Addr()),
	)
}

// namespaces are those of the lab that there are, by role.
func (l *Lab) namespaces() map[string]*netns.Namespace {
	all := map[string]*netns.Namespace{"client": l.Client, "host": l.Host, "guest": l.Guest, secondRole: l.SecondGuestNS}
	maps.DeleteFunc(all, func(_ string, ns *netns.Namespace) bool { return ns == nil })
	return all
}

// congestion sets the congestion control of host and guest; a VM's init does it there.
func (l *Lab) congestion() error {
	if l.Congestion == "" {
		return nil
	}
	for _, ns := range []*netns.Namespace{l.Host, l.Guest, l.SecondGuestNS} {
		if ns == nil {
			continue
		}
		if err := ns.Congestion(l.Congestion, clientAddr4.Addr(), clientAddr6.Addr()); err != nil {
			return err
		}
	}
	return nil
}

func namespaceName(lab, role string) string { return "spw-" + lab + "-" + role }
