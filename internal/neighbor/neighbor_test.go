package neighbor

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway/internal/testkit"
)

// Addresses: a client and two hosts on one segment, and a VM that is behind one of them.
var (
	vmAddrs   = []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")}
	hostAddrs = [2][]netip.Addr{
		{netip.MustParseAddr("10.78.0.11"), netip.MustParseAddr("fd78::11")},
		{netip.MustParseAddr("10.78.0.12"), netip.MustParseAddr("fd78::12")},
	}
	gatewayMAC = net.HardwareAddr{2, 0x53, 0x50, 0, 0, 1}
)

// segmentOfTwo is a switch with a client and two hosts. Behind each host is a namespace that has the VM's addresses and says on which host it is to whoever connects: it stands
// for the VM before and after its move.
type segmentOfTwo struct {
	client *testkit.Namespace
	hosts  [2]*testkit.Namespace
}

const port = 7000

func newSegment(t *testing.T) *segmentOfTwo {
	t.Helper()
	testkit.CheckFDs(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fabric := testkit.NewNamespace(t, "switch")
	namespace := func(name string) *testkit.Namespace {
		ns := testkit.NewNamespace(t, name)
		ns.Sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
		ns.Sysctl(t, "net/ipv4/conf/default/rp_filter", "0")
		ns.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
		ns.Sysctl(t, "net/ipv6/conf/default/router_solicitations", "0")
		return ns
	}
	s := &segmentOfTwo{client: namespace("client")}
	must(fabric.Veth("client", 20, s.client.Namespace, "eth0"))
	must(s.client.Addresses("eth0", netip.MustParsePrefix("10.78.0.2/24"), netip.MustParsePrefix("fd78::2/64")))
	ports := []string{"client"}
	for i := range s.hosts {
		host, vm := namespace(fmt.Sprint("host", i)), namespace(fmt.Sprint("vm", i))
		s.hosts[i] = host
		host.Sysctl(t, "net/ipv4/ip_forward", "1")
		host.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
		name := fmt.Sprint("host", i)
		must(fabric.Veth(name, 21+i, host.Namespace, "eth0"))
		ports = append(ports, name)
		must(host.Addresses("eth0", netip.PrefixFrom(hostAddrs[i][0], 24), netip.PrefixFrom(hostAddrs[i][1], 64)))
		must(host.Veth("guest0", 30, vm.Namespace, "eth0"))
		must(host.HardwareAddr("guest0", gatewayMAC))
		must(host.Addresses("guest0", netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")))
		must(vm.Addresses("eth0", netip.PrefixFrom(vmAddrs[0], 24), netip.PrefixFrom(vmAddrs[1], 64)))
		must(vm.DefaultRoutes(netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")))
		for _, network := range []string{"tcp4", "tcp6"} {
			ln := vm.Listen(t, network, fmt.Sprintf(":%d", port))
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%d", i)
					c.Close()
				}
			}()
		}
	}
	must(fabric.Bridge("br0", ports...))
	// The VM's network is on the segment, for the client: whoever answers there has the VM.
	s.client.Must(t, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, prefix := range []string{"10.77.0.0/24", "fd77::/64"} {
			_, dst, err := net.ParseCIDR(prefix)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
				return err
			}
		}
		return nil
	})
	return s
}

// reaches tells on which host the client finds the VM.
func (s *segmentOfTwo) reaches(t *testing.T, addr netip.Addr) string {
	t.Helper()
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		c, err := s.client.Namespace.Dial(&net.Dialer{Timeout: 10 * time.Second}, "tcp", netip.AddrPortFrom(addr, port).String())
		if err != nil { // a link that is not up yet
			last = err
			continue
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(c)
		c.Close()
		if err == nil {
			return string(got)
		}
		last = err
	}
	t.Fatalf("the client does not reach %v: %v", addr, last)
	return ""
}

// move makes the addresses go from one host to the other.
func (s *segmentOfTwo) move(t *testing.T, from, to int) {
	t.Helper()
	s.hosts[to].Must(t, func() error { return Take(vmAddrs, hostAddrs[from]) })
	s.hosts[from].Must(t, func() error { return Leave(vmAddrs, hostAddrs[to]) })
}

// neighborOf is what the client knows of an address.
func (s *segmentOfTwo) neighborOf(t *testing.T, addr netip.Addr) (mac string) {
	t.Helper()
	s.client.Must(t, func() error {
		list, err := netlink.NeighList(0, 0)
		for _, n := range list {
			if n.IP.Equal(addr.AsSlice()) {
				mac = n.HardwareAddr.String()
			}
		}
		return err
	})
	return mac
}

// TestMove: the client reaches the VM where it is, at once: it has heard of the move before it asks.
func TestMove(t *testing.T) {
	s := newSegment(t)
	s.hosts[0].Must(t, func() error { return Take(vmAddrs, hostAddrs[1]) })
	at := 0
	for range 4 {
		for _, addr := range vmAddrs {
			if got := s.reaches(t, addr); got != fmt.Sprint(at) {
				t.Fatalf("the client finds %v at host %s, want %d", addr, got, at)
			}
		}
		before := []string{s.neighborOf(t, vmAddrs[0]), s.neighborOf(t, vmAddrs[1])}
		s.move(t, at, 1-at)
		at = 1 - at
		for i, addr := range vmAddrs {
			deadline := time.Now().Add(20 * time.Second)
			for s.neighborOf(t, addr) == before[i] {
				if time.Now().After(deadline) {
					t.Fatalf("%v: the client still has the hardware address %s", addr, before[i])
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// TestLeaveForwards: what comes to the host that the VM has left goes to the one where it is, and not back.
func TestLeaveForwards(t *testing.T) {
	s := newSegment(t)
	s.hosts[0].Must(t, func() error { return Take(vmAddrs, hostAddrs[1]) })
	s.reaches(t, vmAddrs[0])
	s.client.Must(t, func() error { // a client that does not listen to announcements
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mac, err := net.ParseMAC(s.neighborOf(t, vmAddrs[0]))
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: vmAddrs[0].AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT})
	})
	s.move(t, 0, 1)
	if got := s.reaches(t, vmAddrs[0]); got != "1" {
		t.Errorf("the client finds the VM at host %s", got)
	}
	s.move(t, 1, 0)
	if got := s.reaches(t, vmAddrs[0]); got != "0" {
		t.Errorf("the client finds the VM at host %s", got)
	}
	s.move(t, 1, 0)
	if got := s.reaches(t, vmAddrs[0]); got != "0" {
		t.Errorf("after the same move again the client finds the VM at host %s", got)
	}
}

// TestGateway: the link to the VM is found although the host has a route to it by the other host.
func TestGateway(t *testing.T) {
	s := newSegment(t)
	check := func() {
		t.Helper()
		s.hosts[0].Must(t, func() error {
			for _, addr := range vmAddrs {
				link, mac, err := Gateway(addr)
				if err != nil || link != "guest0" || mac.String() != gatewayMAC.String() {
					t.Errorf("Gateway(%v) = %s, %v, %v", addr, link, mac, err)
				}
			}
			if _, _, err := Gateway(netip.MustParseAddr("192.0.2.1")); err == nil {
				t.Error("there is a link to an address that there is none to")
			}
			return nil
		})
	}
	check()
	s.hosts[0].Must(t, func() error { return Leave(vmAddrs, hostAddrs[1]) })
	check()
}

// TestNoPeer: nothing is changed when one address has nowhere to go.
func TestNoPeer(t *testing.T) {
	s := newSegment(t)
	s.hosts[0].Must(t, func() error {
		if err := Leave(vmAddrs, hostAddrs[1][:1]); err == nil {
			t.Error("IPv6 has left to a host without IPv6")
		}
		routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if len(routes) > 0 {
			t.Errorf("routes are left: %v", routes)
		}
		return err
	})
}

// TestForward: a host that goes on to answer for a VM's addresses sends what comes for them to the other one, which has to accept them first if it has had them before.
func TestForward(t *testing.T) {
	s := newSegment(t)
	s.hosts[0].Must(t, func() error { return Take(vmAddrs, hostAddrs[1]) })
	s.hosts[1].Must(t, func() error { return Leave(vmAddrs, hostAddrs[0]) }) // it has had them
	for _, a := range vmAddrs {
		if at := s.reaches(t, a); at != "0" {
			t.Errorf("%v is on host %s", a, at)
		}
	}
	s.hosts[1].Must(t, func() error { return Accept(vmAddrs, hostAddrs[0]) })
	s.hosts[0].Must(t, func() error { return Forward(vmAddrs, hostAddrs[1]) })
	for _, a := range vmAddrs {
		if at := s.reaches(t, a); at != "1" {
			t.Errorf("%v is on host %s", a, at)
		}
	}
	s.hosts[0].Must(t, func() error { return Take(vmAddrs, hostAddrs[1]) }) // it stays, after all
	s.hosts[1].Must(t, func() error { return Leave(vmAddrs, hostAddrs[0]) })
	for _, a := range vmAddrs {
		if at := s.reaches(t, a); at != "0" {
			t.Errorf("%v is on host %s", a, at)
		}
	}
}
