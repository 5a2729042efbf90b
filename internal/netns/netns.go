// Package netns makes network namespaces, connects them and runs code and processes inside them: what the lab and the tests build their
// machines of. The product's daemons do not use it.
//
// Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN). Nothing here survives Close except what Named made, which Delete removes.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namedDir is where ip-netns(8) keeps its namespaces.
const namedDir = "/run/netns"

// Namespace is a network namespace.
type Namespace struct {
	Name   string
	handle netns.NsHandle
}

// New makes a namespace that goes with its last user. name is for messages only.
func New(name string) (*Namespace, error) {
	return create(name, netns.New, func() error { return nil })
}

// Named makes a namespace that `ip netns exec` finds and that stays until Delete.
func Named(name string) (*Namespace, error) {
	return create(name, func() (netns.NsHandle, error) { return netns.NewNamed(name) }, func() error { return Delete(name) })
}

// create calls make on a thread of its own, since make enters the namespace. undo removes what make has left behind besides the handle.
func create(name string, make func() (netns.NsHandle, error), undo func() error) (*Namespace, error) {
	ns := &Namespace{Name: name, handle: netns.None()}
	err := onThread(func() (err error) {
		ns.handle, err = make()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s (root is needed): %w", name, err)
	}
	if err := ns.Up("lo"); err != nil {
		return nil, errors.Join(err, undo(), ns.Close())
	}
	return ns, nil
}

// Open finds a namespace that Named made.
func Open(name string) (*Namespace, error) {
	h, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return &Namespace{Name: name, handle: h}, nil
}

// Delete removes a namespace that Named made; its interfaces go with it when its last process has ended.
func Delete(name string) error {
	err := netns.DeleteNamed(name)
	if errors.Is(err, unix.EINVAL) { // whoever made the file was killed before the namespace was mounted on it
		err = os.Remove(Path(name))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// Path is the file of a namespace that Named made.
func Path(name string) string { return filepath.Join(namedDir, name) }

// FD is the file descriptor of the namespace, for libraries that want one. It belongs to the Namespace.
func (ns *Namespace) FD() int { return int(ns.handle) }

// Close drops this process's handle.
func (ns *Namespace) Close() error { return ns.handle.Close() }

// Path is the file that setns(2) can open, for a namespace that Named made.
func (ns *Namespace) Path() string { return Path(ns.Name) }

// Do runs fn inside the namespace, on an OS thread of its own. Sockets that fn makes stay in the namespace and can be used anywhere;
// goroutines that it starts are outside of it.
func (ns *Namespace) Do(fn func() error) error {
	err := onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter: %w", err)
		}
		return fn()
	})
	if err != nil {
		return fmt.Errorf("in network namespace %s: %w", ns.Name, err)
	}
	return nil
}

// Start starts cmd inside the namespace and returns a channel that is closed when it has ended; cmd.ProcessState tells how. The thread that
// forks it stays until then, so that a Pdeathsig in cmd.SysProcAttr means this process and not the thread.
func (ns *Namespace) Start(cmd *exec.Cmd) (<-chan struct{}, error) {
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := netns.Set(ns.handle)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in cmd.ProcessState
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s in network namespace %s: %w", cmd.Path, ns.Name, err)
	}
	return ended, nil
}

// Dial connects from inside the namespace. The address is an IP address and a port.
func (ns *Namespace) Dial(d *net.Dialer, network, address string) (conn net.Conn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = d.Dial(network, address)
		return err
	})
	return conn, err
}

// Sysctl writes a value below /proc/sys.
func (ns *Namespace) Sysctl(path, value string) error {
	return ns.Do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
}

// Up sets a link up.
func (ns *Namespace) Up(link string) error {
	return ns.link(link, netlink.LinkSetUp)
}

// Veth makes a link whose other end is peerLink in peer. Its index must be none that peer's namespace gives: when both ends have the same
// one, the kernel takes the link for no pair, and delays its carrier by up to a second (linkwatch_urgent_event,
// net/core/link_watch.c).
func (ns *Namespace) Veth(link string, index int, peer *Namespace, peerLink string) error {
	return ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = link, index
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peerLink, PeerNamespace: netlink.NsFd(peer.handle)})
		return wrap(err, "make link %s", link)
	})
}

// Tap makes a persistent tap for a VM, with the virtio-net header that carries its offloads.
func (ns *Namespace) Tap(link string) error {
	return ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = link
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_DEFAULTS | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("make tap %s: %w", link, err)
		}
		for _, f := range tap.Fds {
			f.Close() // the tap is persistent, QEMU opens it again
		}
		return nil
	})
}

// Addresses gives link its addresses, without duplicate address detection, and sets it up.
func (ns *Namespace) Addresses(link string, prefixes ...netip.Prefix) error {
	err := ns.link(link, func(l netlink.Link) error {
		for _, p := range prefixes {
			a := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("add %v: %w", p, err)
			}
		}
		return netlink.LinkSetUp(l)
	})
	return err
}

// DefaultRoutes routes everything of each gateway's family to it.
func (ns *Namespace) DefaultRoutes(gateways ...netip.Addr) error {
	return ns.Do(func() error {
		for _, g := range gateways {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if g.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(all), Gw: g.AsSlice()}); err != nil {
				return fmt.Errorf("default route via %v: %w", g, err)
			}
		}
		return nil
	})
}

// Congestion makes TCP connections to these addresses use a congestion control, also one that the sysctl of a namespace may not name
// (tcp_set_default_congestion_control, net/ipv4/tcp_cong.c). It gives each a route of its own, as the one that leads there now.
func (ns *Namespace) Congestion(control string, to ...netip.Addr) error {
	return ns.Do(func() error {
		for _, addr := range to {
			routes, err := netlink.RouteGet(addr.AsSlice())
			if err == nil && len(routes) == 0 {
				err = unix.ENETUNREACH
			}
			if err != nil {
				return fmt.Errorf("route to %v: %w", addr, err)
			}
			r := netlink.Route{
				LinkIndex: routes[0].LinkIndex, Gw: routes[0].Gw, Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Congctl: control,
			}
			if r.Gw == nil {
				r.Scope = netlink.SCOPE_LINK
			}
			if err := netlink.RouteReplace(&r); err != nil {
				return fmt.Errorf("congestion control %s to %v (tcp_available_congestion_control names what there is): %w", control, addr, err)
			}
		}
		return nil
	})
}

// Limit shapes what leaves through link to rate (bit/s) with a token bucket, so deep that it delays and does not drop.
func (ns *Namespace) Limit(link string, bitsPerSecond uint64) error {
	return ns.link(link, func(l netlink.Link) error {
		rate := bitsPerSecond / 8
		burst := uint32(max(rate/250, 64<<10)) // what leaves in a timer tick of 4 ms, and not less than one GSO packet
		return netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate,
			Buffer:     uint32(netlink.Xmittime(rate, burst)),
			Limit:      uint32(rate/10) + burst, // a queue of 100 ms
		})
	})
}

// Counters are the bytes that a link has carried.
type Counters struct{ RxBytes, TxBytes uint64 }

// Counters reads a link's counters.
func (ns *Namespace) Counters(link string) (c Counters, err error) {
	err = ns.link(link, func(l netlink.Link) error {
		s := l.Attrs().Statistics
		if s == nil {
			return errors.New("the kernel gives no statistics")
		}
		c = Counters{RxBytes: s.RxBytes, TxBytes: s.TxBytes}
		return nil
	})
	return c, err
}

// link runs fn on a link of the namespace.
func (ns *Namespace) link(name string, fn func(netlink.Link) error) error {
	return ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		return wrap(fn(l), "link %s", name)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

// onThread runs fn on an OS thread that nothing else uses and that ends with it: so fn may change the thread's namespace.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		// A fn that calls runtime.Goexit must not hang the caller.
		err := errors.New("the function did not return")
		defer func() { result <- err }()
		err = fn()
	}()
	return <-result
}
