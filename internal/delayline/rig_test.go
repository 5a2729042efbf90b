package delayline

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/internal/netns"
	"spillway/internal/testkit"
)

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Addresses of the rig.
var (
	left4, right4 = netip.MustParsePrefix("10.79.0.1/24"), netip.MustParsePrefix("10.79.0.2/24")
	left6, right6 = netip.MustParsePrefix("fd79::1/64"), netip.MustParsePrefix("fd79::2/64")
)

// rig is a path between two namespaces, each with the device line0.
type rig struct {
	left, right *testkit.Namespace
	path        *Path
	cancel      context.CancelFunc
	done        chan error
}

// newRig makes the path; start lets it carry. Without IPv6 nothing but what the test sends is on it: IPv6 talks by itself.
func newRig(tb testing.TB, cfg Config, ipv6 bool) *rig {
	tb.Helper()
	testkit.CheckFDs(tb)
	r := &rig{left: testkit.NewNamespace(tb, "left"), right: testkit.NewNamespace(tb, "right"), done: make(chan error, 1)}
	var files [2]*os.File
	for i, end := range []struct {
		ns    *testkit.Namespace
		addrs []netip.Prefix
	}{{r.left, []netip.Prefix{left4, left6}}, {r.right, []netip.Prefix{right4, right6}}} {
		addrs := end.addrs
		if !ipv6 {
			end.ns.Sysctl(tb, "net/ipv6/conf/default/disable_ipv6", "1")
			addrs = addrs[:1]
		}
		end.ns.Must(tb, func() (err error) {
			files[i], err = OpenDevice("line0", cfg)
			return err
		})
		if err := end.ns.Addresses("line0", addrs...); err != nil {
			tb.Fatal(err)
		}
	}
	var err error
	if r.path, err = New(cfg, files[0], files[1]); err != nil {
		tb.Fatal(err)
	}
	if ipv6 {
		r.left.AwaitLocal(tb, left6.Addr())
		r.right.AwaitLocal(tb, right6.Addr())
	}
	return r
}

// run lets the path carry; done tells how it ended.
func (r *rig) run() (stop context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		r.done <- r.path.Run(ctx)
		cancel()
	}()
	return cancel
}

// start lets the path carry until the test ends, or stop.
func (r *rig) start(tb testing.TB) {
	r.cancel = r.run()
	tb.Cleanup(func() { r.stop(tb) })
}

// stop ends the path, if it runs.
func (r *rig) stop(tb testing.TB) {
	tb.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			tb.Errorf("the path ends with %v", err)
		}
	case <-time.After(patience):
		tb.Error("the path does not end")
	}
}

func (r *rig) namespaces() []*testkit.Namespace { return []*testkit.Namespace{r.left, r.right} }

func (r *rig) bothCounters() []Counters {
	there, back := r.path.Counters()
	return []Counters{there, back}
}

// setDown and remove do so with a namespace's device.
func (r *rig) setDown(tb testing.TB, ns *testkit.Namespace) { r.link(tb, ns, netlink.LinkSetDown) }
func (r *rig) remove(tb testing.TB, ns *testkit.Namespace)  { r.link(tb, ns, netlink.LinkDel) }

func (r *rig) link(tb testing.TB, ns *testkit.Namespace, fn func(netlink.Link) error) {
	tb.Helper()
	ns.Must(tb, func() error {
		l, err := netlink.LinkByName("line0")
		if err != nil {
			return err
		}
		return fn(l)
	})
}

// packetConn listens for UDP in a namespace, with room for everything that a test sends.
func packetConn(tb testing.TB, ns *netns.Namespace, addr netip.Addr) *net.UDPConn {
	tb.Helper()
	const room = 16 << 20
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var serr error
		err := rc.Control(func(fd uintptr) {
			serr = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room))
		})
		return errors.Join(err, serr)
	}}
	var conn net.PacketConn
	err := ns.Do(func() (err error) {
		conn, err = lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}
