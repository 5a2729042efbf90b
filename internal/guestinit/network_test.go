package guestinit

import (
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetNS runs f in a new network namespace, which ends with it.
func inNetNS(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestConfigureNetwork(t *testing.T) {
	inNetNS(t, func() {
		// Any two ends of a cable stand for the VM's NIC.
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "nic"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			t.Error(err)
			return
		}
		nic, err := netlink.LinkByName("nic")
		if err != nil {
			t.Error(err)
			return
		}
		spec := Spec{
			Interfaces: []Interface{{
				MAC:   strings.ToUpper(nic.Attrs().HardwareAddr.String()),
				MTU:   1400,
				Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")},
				Routes: []Route{
					{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.1")},
					{Dst: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.3")},
					{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("2001:db8::1")},
				},
			}},
			Sysctls: map[string]string{"net.ipv4.ip_default_ttl": "77", "net/ipv4/conf/nic/rp_filter": "2"},
		}
		if err := configureNetwork(spec); err != nil {
			t.Error(err)
			return
		}
		checkNetwork(t)
	})
}

// checkNetwork compares what the kernel says with what TestConfigureNetwork asked for.
func checkNetwork(t *testing.T) {
	nic, err := netlink.LinkByName("nic")
	if err != nil {
		t.Error(err)
		return
	}
	if nic.Attrs().MTU != 1400 || nic.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Errorf("MTU %d, flags %#x", nic.Attrs().MTU, nic.Attrs().RawFlags)
	}
	if lo, err := netlink.LinkByName("lo"); err != nil || lo.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Errorf("lo: %v, %v", lo, err)
	}
	addrs, err := netlink.AddrList(nic, netlink.FAMILY_ALL)
	if err != nil {
		t.Error(err)
	}
	got := make(map[string]bool)
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		got[a.IPNet.String()] = true
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%v is tentative", a)
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: nic.Attrs().Index}, netlink.RT_FILTER_OIF)
	if err != nil {
		t.Error(err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			got[r.Dst.String()+" via "+r.Gw.String()] = true
		}
	}
	for file, want := range map[string]string{
		"/proc/sys/net/ipv4/ip_default_ttl":     "77",
		"/proc/sys/net/ipv4/conf/nic/rp_filter": "2",
	} {
		if data, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(data)) != want {
			t.Errorf("%s = %q, %v, want %s", file, data, err, want)
		}
	}
	want := map[string]bool{
		"192.0.2.2/24": true, "2001:db8::2/64": true,
		"0.0.0.0/0 via 192.0.2.1": true, "198.51.100.0/24 via 192.0.2.3": true, "::/0 via 2001:db8::1": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses and routes (-want +got):\n%s", diff)
	}
}

func TestConfigureNetworkFails(t *testing.T) {
	inNetNS(t, func() {
		for name, spec := range map[string]Spec{
			"unknown sysctl": {Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}},
			"escaping path":  {Sysctls: map[string]string{"net/../../../tmp/x": "1"}},
			"absolute path":  {Sysctls: map[string]string{"/etc/x": "1"}},
		} {
			if err := configureNetwork(spec); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

func TestMainRefusesToTakeOverTheMachine(t *testing.T) {
	if err := Main(); err == nil {
		t.Error("Main ran without being PID 1")
	}
}
