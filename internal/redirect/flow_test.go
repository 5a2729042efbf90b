package redirect

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ioTimeout bounds every wait of these tests; none should ever come near it.
const ioTimeout = 20 * time.Second

// router is client ── host ── guest, each a namespace; the host forwards between the two.
type router struct {
	client, host, guest   testNS
	clientIPs, guestIPs   []string // IPv4, IPv6
	guestPort, leasedPort int
}

func newRouter(t *testing.T) router {
	t.Helper()
	r := router{
		client: newNS(t), host: newNS(t), guest: newNS(t),
		clientIPs: []string{"10.78.0.2", "fd78::2"}, guestIPs: []string{"10.77.0.2", "fd77::2"},
		guestPort: 8081, leasedPort: 8080,
	}
	r.host.do(t, func() {
		for link, peer := range map[string]testNS{"c0": r.client, "g0": r.guest} {
			check(t, netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.handle),
			}))
		}
		addr(t, "c0", "10.78.0.1/24", "fd78::1/64")
		addr(t, "g0", "10.77.0.1/24", "fd77::1/64")
		sysctl(t, "ipv4/ip_forward", "1")
		sysctl(t, "ipv6/conf/all/forwarding", "1")
	})
	r.client.do(t, func() { addr(t, "eth0", "10.78.0.2/24", "fd78::2/64"); defaultRoute(t, "10.78.0.1", "fd78::1") })
	r.guest.do(t, func() { addr(t, "eth0", "10.77.0.2/24", "fd77::2/64"); defaultRoute(t, "10.77.0.1", "fd77::1") })
	r.host.do(t, func() { awaitLocal(t, "fd78::1", "fd77::1") })
	return r
}

// greet accepts connections and writes a line to each until the listener is closed.
func greet(t *testing.T, l net.Listener, line string) {
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, line) //nolint:errcheck // the client's read tells
			_ = c.Close()
		}
	}()
}

// listenTransparent listens on an address that is not the host's, as a leased socket has one.
func listenTransparent(t *testing.T, address string) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var sockErr error
		err := raw.Control(func(fd uintptr) {
			if strings.HasPrefix(address, "[") {
				sockErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			} else {
				sockErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		})
		if err != nil {
			return err
		}
		return sockErr
	}}
	lc.SetMultipathTCP(false)
	network := "tcp4"
	if strings.HasPrefix(address, "[") {
		network = "tcp6"
	}
	l, err := lc.Listen(context.Background(), network, address)
	check(t, err)
	return l
}

// greetLeased lets the host accept connections for the guest's address, so that it has a socket for each as for a leased one. The rule
// finds one listener by the packet's port, and gives the first packet to the one at its own, on the incoming link's address.
func greetLeased(t *testing.T, address string) (listeners []net.Listener) {
	t.Helper()
	anyHost := "0.0.0.0"
	if strings.HasPrefix(address, "[") {
		anyHost = "::"
	}
	for _, a := range []string{address, net.JoinHostPort(anyHost, fmt.Sprint(tproxyPort))} {
		l := listenTransparent(t, a)
		greet(t, l, "host")
		listeners = append(listeners, l)
	}
	return listeners
}

// ask connects and returns the line that it is greeted with.
func ask(t *testing.T, address string) (string, netip.AddrPort) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, ioTimeout)
	if err != nil {
		return err.Error(), netip.AddrPort{}
	}
	defer c.Close()
	check(t, c.SetDeadline(time.Now().Add(ioTimeout)))
	line, err := io.ReadAll(c) // to the end: the side that closes first is the one that gets the TIME_WAIT
	if err != nil {
		return err.Error(), netip.AddrPort{}
	}
	return strings.TrimSpace(string(line)), c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// TestFlows: a connection that the host owns a transparent socket for reaches it, every other one the guest.
func TestFlows(t *testing.T) {
	r := newRouter(t)
	for _, ip := range r.guestIPs {
		leased, forwarded := net.JoinHostPort(ip, fmt.Sprint(r.leasedPort)), net.JoinHostPort(ip, fmt.Sprint(r.guestPort))
		r.guest.do(t, func() {
			for _, address := range []string{leased, forwarded} {
				l, err := net.Listen("tcp", address)
				check(t, err)
				greet(t, l, "guest")
			}
		})
		r.host.do(t, func() { greetLeased(t, leased) })
	}
	expect := func(when, onLeased string) {
		t.Helper()
		r.client.do(t, func() {
			for _, ip := range r.guestIPs {
				if got, _ := ask(t, net.JoinHostPort(ip, fmt.Sprint(r.leasedPort))); got != onLeased {
					t.Errorf("%s: the leased port of %s is answered by %q, want %q", when, ip, got, onLeased)
				}
				if got, _ := ask(t, net.JoinHostPort(ip, fmt.Sprint(r.guestPort))); got != "guest" {
					t.Errorf("%s: the other port of %s is answered by %q, want the guest", when, ip, got)
				}
			}
		})
	}
	expect("before the installation", "guest")
	var rd *Redirect
	r.host.do(t, func() { rd = install(t, Config{}) })
	expect("installed", "host")
	// rp_filter must not matter, as long as src_valid_mark is off.
	r.host.do(t, func() { sysctl(t, "ipv4/conf/all/rp_filter", "1") })
	expect("installed, strict rp_filter", "host")
	check(t, rd.Remove())
	expect("removed", "guest")
}

// TestTimeWait: packets for a connection in TIME_WAIT reach the host's mini socket. At the guest, which knows nothing of
// the connection, each would draw a RST; the end of the test proves that by taking the redirect away.
func TestTimeWait(t *testing.T) {
	r := newRouter(t)
	address := net.JoinHostPort(r.guestIPs[0], fmt.Sprint(r.leasedPort))
	var rd *Redirect
	var listeners []net.Listener
	r.host.do(t, func() {
		rd = install(t, Config{})
		listeners = greetLeased(t, address)
	})
	var client netip.AddrPort
	r.client.do(t, func() {
		var line string
		if line, client = ask(t, address); line != "host" {
			t.Fatalf("greeted by %q, want the host", line)
		}
	})
	for _, l := range listeners {
		check(t, l.Close()) // only the mini socket is left
	}
	r.host.do(t, func() { waitTimeWait(t) })
	late := ackSegment(client, netip.MustParseAddrPort(address))

	before := resets(t, r.guest)
	r.client.do(t, func() { sendRaw(t, client.Addr(), netip.MustParseAddr(r.guestIPs[0]), late) })
	// A later packet of the same path that the guest must see: when its answer is here, the first one has arrived, too.
	r.guest.do(t, func() {
		other, err := net.Listen("tcp", net.JoinHostPort(r.guestIPs[0], fmt.Sprint(r.guestPort)))
		check(t, err)
		greet(t, other, "guest")
	})
	r.client.do(t, func() { ask(t, net.JoinHostPort(r.guestIPs[0], fmt.Sprint(r.guestPort))) })
	if after := resets(t, r.guest); after != before {
		t.Errorf("the guest sent %d resets for a connection in TIME_WAIT on the host", after-before)
	}

	check(t, rd.Remove())
	for deadline := time.Now().Add(ioTimeout); resets(t, r.guest) == before; time.Sleep(10 * time.Millisecond) {
		r.client.do(t, func() { sendRaw(t, client.Addr(), netip.MustParseAddr(r.guestIPs[0]), late) })
		if time.Now().After(deadline) {
			t.Fatal("without the redirect the guest sends no reset either: this test shows nothing")
		}
	}
}

// waitTimeWait waits until the namespace has a socket in TIME_WAIT (state 06 in /proc/net/tcp).
func waitTimeWait(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(ioTimeout); ; time.Sleep(10 * time.Millisecond) {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		check(t, err)
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "06" {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no socket in TIME_WAIT:\n%s", table)
		}
	}
}

// resets is the namespace's Tcp OutRsts.
func resets(t *testing.T, ns testNS) (n int) {
	t.Helper()
	ns.do(t, func() {
		snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
		check(t, err)
		var names []string
		for line := range strings.Lines(string(snmp)) {
			f := strings.Fields(line)
			if f[0] != "Tcp:" {
				continue
			}
			if names == nil {
				names = f
				continue
			}
			for i, name := range names {
				if name == "OutRsts" {
					_, err := fmt.Sscan(f[i], &n)
					check(t, err)
					return
				}
			}
		}
		t.Fatal("no OutRsts in /proc/net/snmp")
	})
	return n
}

// ackSegment is a bare ACK, as a client's late retransmission looks to the demultiplexer.
func ackSegment(from, to netip.AddrPort) []byte {
	seg := make([]byte, 20)
	binary.BigEndian.PutUint16(seg[0:], from.Port())
	binary.BigEndian.PutUint16(seg[2:], to.Port())
	binary.BigEndian.PutUint32(seg[4:], 1)
	binary.BigEndian.PutUint32(seg[8:], 1)
	seg[12], seg[13] = 5<<4, 0x10 // header length in words, ACK
	binary.BigEndian.PutUint16(seg[14:], 1024)
	pseudo := append(append(from.Addr().Unmap().AsSlice(), to.Addr().Unmap().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(seg)))
	var sum uint32
	for b := append(pseudo, seg...); len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(seg[16:], ^uint16(sum))
	return seg
}

func sendRaw(t *testing.T, from, to netip.Addr, segment []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: from.Unmap().As4()}))
	check(t, unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: to.Unmap().As4()}))
}
