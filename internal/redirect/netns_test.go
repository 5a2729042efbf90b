package redirect

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// testNS is a network namespace without a name: it vanishes with its last descriptor, whatever happens to the test.
type testNS struct{ handle netns.NsHandle }

// newNS returns a namespace in which only lo exists, and is up.
func newNS(t *testing.T) testNS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a network namespace needs root")
	}
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	fresh, err := netns.New() // and switches to it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fresh.Close() })
	if err := netns.Set(before); err != nil {
		t.Fatal(err) // the thread stays locked, so it dies with this test
	}
	runtime.UnlockOSThread()
	ns := testNS{fresh}
	ns.do(t, func() {
		lo, err := netlink.LinkByName("lo")
		check(t, err)
		check(t, netlink.LinkSetUp(lo))
	})
	return ns
}

// do runs f on a thread that is in the namespace.
func (ns testNS) do(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := netns.Set(ns.handle); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(before); err != nil {
			t.Errorf("back from the namespace: %v", err)
			return // keep the thread locked: it is in the wrong namespace
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// addr gives a link an address and brings it up.
func addr(t *testing.T, link string, cidrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	check(t, err)
	for _, cidr := range cidrs {
		a, err := netlink.ParseAddr(cidr)
		check(t, err)
		a.Flags = 0x02 // IFA_F_NODAD, include/uapi/linux/if_addr.h: an IPv6 address is usable at once
		if a.IP.To4() != nil {
			a.Flags = 0
		}
		check(t, netlink.AddrAdd(l, a))
	}
	check(t, netlink.LinkSetUp(l))
}

// awaitLocal waits until the addresses are the machine's: IPv6 makes their routes when the link has its carrier, in a work queue (addrconf_dad_work,
// net/ipv6/addrconf.c).
func awaitLocal(t *testing.T, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		local := func() bool {
			routes, err := netlink.RouteGet(net.ParseIP(a))
			return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
		}
		for until := time.Now().Add(10 * time.Second); !local(); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%s is not this machine's", a)
			}
		}
	}
}

// defaultRoute sends everything through the gateways.
func defaultRoute(t *testing.T, gateways ...string) {
	t.Helper()
	for _, gw := range gateways {
		check(t, netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}))
	}
}

func sysctl(t *testing.T, path, value string) {
	t.Helper()
	check(t, os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
