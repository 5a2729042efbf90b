package tcprepair

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
	"spillway/internal/testkit"
)

// patience is the time after which a test gives up on the kernel.
const patience = 20 * time.Second

// lane is one of the three ways in which addresses reach a guest's socket.
type lane struct {
	name    string
	network string // that the guest listens on
	listen  string
	dial    string // the guest's address
	family  int    // of the host's socket
	mss     int    // of an Ethernet link, with timestamps
}

func lanes() []lane {
	return []lane{
		{"IPv4", "tcp4", testkit.Guest4, testkit.Guest4, unix.AF_INET, 1448},
		{"IPv6", "tcp6", testkit.Guest6, testkit.Guest6, unix.AF_INET6, 1428},
		{"IPv4-mapped", "tcp", "", testkit.Guest4, unix.AF_INET, 1448},
	}
}

// rig is a network with one connection from the client to the guest.
type rig struct {
	net           *testkit.Network
	freezer       *Freezer
	holder        *Holder
	listener      *net.TCPListener
	client, guest *net.TCPConn
	family        int
	local, remote netip.AddrPort // as the guest sees it, unmapped
	late          []byte         // what the client said during the last handBack
	fin           bool           // and whether it closed its direction
	beyond        func()         // called, if set, when the guest's socket has the connection and lacks what is late
}

func newRig(tb testing.TB, l lane) *rig {
	tb.Helper()
	testkit.CheckFDs(tb)
	r := &rig{net: testkit.Triple(tb, redirect), family: l.family}
	r.freezer = newFreezer(tb)
	r.net.Host.Must(tb, func() (err error) { r.holder, err = NewHolder(r.mayGo); return err })
	tb.Cleanup(func() { r.holder.Close() })
	r.listener = r.net.Guest.Listen(tb, l.network, net.JoinHostPort(l.listen, "0"))
	_, port, err := net.SplitHostPort(r.listener.Addr().String())
	must(tb, err)
	r.client = r.net.Client.Dial(tb, "tcp", net.JoinHostPort(l.dial, port))
	r.guest = accept(tb, r.listener)
	r.local, r.remote = unmapped(tb, r.guest.LocalAddr()), unmapped(tb, r.guest.RemoteAddr())
	return r
}

// mayGo holds what is held back from the wrong connection.
func (r *rig) mayGo(local, remote netip.AddrPort) bool { return local == r.local && remote == r.remote }

func newFreezer(tb testing.TB) *Freezer {
	tb.Helper()
	f, err := NewFreezer()
	must(tb, err)
	tb.Cleanup(func() { f.Close() })
	return f
}

// redirect is what package redirect installs, in its smallest form: segments for a transparent socket are delivered locally.
func redirect(tb testing.TB, n *testkit.Network) {
	tb.Helper()
	const mark, table = 1, 100
	c, err := nftables.New(nftables.WithNetNSFd(n.Host.FD()))
	must(tb, err)
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	must(tb, c.Flush())
	n.Host.Must(tb, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, f := range []struct {
			family int
			all    string
		}{{unix.AF_INET, "0.0.0.0/0"}, {unix.AF_INET6, "::/0"}} {
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Table = f.family, mark, table
			if err := netlink.RuleAdd(rule); err != nil {
				return err
			}
			_, all, err := net.ParseCIDR(f.all)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{
				LinkIndex: lo.Attrs().Index, Dst: all, Table: table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// extractGuest freezes and extracts the guest's connection, once everything is acknowledged.
func (r *rig) extractGuest(tb testing.TB) tcpstate.State {
	tb.Helper()
	st := tcpstate.State{Local: r.local, Remote: r.remote}
	control(tb, r.guest, func(fd int) error {
		drain(tb, fd)
		if err := ReadOptions(fd, &st); err != nil {
			return err
		}
		if err := r.freezer.Freeze(fd); err != nil {
			return err
		}
		return Extract(fd, &st)
	})
	return st
}

// freeze freezes one end and returns what its keepalive was.
func (r *rig) freeze(tb testing.TB, conn *net.TCPConn) tcpstate.KeepAlive {
	tb.Helper()
	var st tcpstate.State
	control(tb, conn, func(fd int) error {
		if err := ReadOptions(fd, &st); err != nil {
			return err
		}
		return r.freezer.Freeze(fd)
	})
	return st.KeepAlive
}

// transparent makes a socket for Restore in the host's namespace; the caller closes it.
func (r *rig) transparent(tb testing.TB) (fd int) {
	tb.Helper()
	r.net.Host.Must(tb, func() (err error) {
		fd, err = r.freezer.NewTransparent(r.family)
		return err
	})
	return fd
}

// leased is the host's end of a connection.
type leased struct {
	*os.File
	fd  int
	end uint32 // the sequence number behind the last byte that was written
}

func (l *leased) Write(p []byte) (int, error) {
	n, err := l.File.Write(p)
	l.end += uint32(n)
	return n, err
}

// restoreOnHost is the host's half of a handover. The connection is closed at the end of the test, if not before.
func (r *rig) restoreOnHost(tb testing.TB, st *tcpstate.State) *leased {
	tb.Helper()
	fd := r.transparent(tb)
	f := os.NewFile(uintptr(fd), "leased connection") // non-blocking, so that it uses the netpoller
	tb.Cleanup(func() { f.Close() })
	must(tb, Restore(fd, st))
	return &leased{f, fd, st.SendSeq}
}

// handBack gives the host's connection, restored from st and since when the host has read so many bytes, back to the guest's fd, and returns its
// state by then. meanwhile is called while both have a socket for it.
func (r *rig) handBack(tb testing.TB, host *leased, st tcpstate.State, read int, meanwhile func()) tcpstate.State {
	tb.Helper()
	drain(tb, host.fd)
	must(tb, Snapshot(host.fd, &st, st.RecvSeq+uint32(read), host.end, false, false))
	control(tb, r.guest, Park)
	control(tb, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) })
	was := st.Window.Peer()
	meanwhile()
	late, fin, err := r.holder.Seal(host.fd, &st)
	must(tb, err)
	p := make([]byte, late)
	must(tb, ReadLate(host.fd, p))
	must(tb, Park(host.fd))
	must(tb, Confirm(host.fd, &tcpstate.State{RecvSeq: st.RecvSeq + uint32(late+int(truth(fin)))}))
	must(tb, host.Close())
	r.late, r.fin = p, fin
	if r.beyond != nil {
		r.beyond()
	}
	for seq := st.RecvSeq; len(p) > 0; {
		part := p[:min(len(p), takeInMax)]
		control(tb, r.guest, func(fd int) error { return r.freezer.TakeIn(fd, seq, part) })
		seq, p = seq+uint32(len(part)), p[len(part):]
	}
	if now := st.Window.Peer(); now != was {
		control(tb, r.guest, func(fd int) error { return UpdateWindow(fd, was, now) })
	}
	return st
}

// takeInMax is how much of what was said late comes at a time (wire.MaxData).
const takeInMax = 64 << 10

// transfer sends n random bytes from one end to the other and checks them.
func transfer(tb testing.TB, from io.Writer, to io.Reader, n int) {
	tb.Helper()
	want := make([]byte, n)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	for _, end := range []any{from, to} {
		must(tb, end.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience)))
	}
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(want)
		sent <- err
	}()
	got := make([]byte, n)
	if m, err := io.ReadFull(to, got); err != nil {
		tb.Fatalf("received %d of %d bytes: %v", m, n, err)
	}
	must(tb, <-sent)
	if !bytes.Equal(got, want) {
		tb.Fatalf("received other bytes than were sent")
	}
}

// bothWays checks that the connection works.
func (r *rig) bothWays(tb testing.TB) {
	tb.Helper()
	transfer(tb, r.client, r.guest, 1000)
	transfer(tb, r.guest, r.client, 100_000)
}

// drain waits until everything sent on fd is acknowledged.
func drain(tb testing.TB, fd int) {
	tb.Helper()
	eventually(tb, "all bytes are acknowledged", func() bool {
		n, err := UnackedBytes(fd)
		return err == nil && n == 0
	})
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Errorf("waited in vain: %s", what)
			return
		}
	}
}

func control(tb testing.TB, c *net.TCPConn, fn func(fd int) error) {
	tb.Helper()
	must(tb, controlErr(tb, c, fn))
}

func controlErr(tb testing.TB, c *net.TCPConn, fn func(fd int) error) error {
	tb.Helper()
	raw, err := c.SyscallConn()
	must(tb, err)
	var result error
	must(tb, raw.Control(func(fd uintptr) { result = fn(int(fd)) }))
	return result
}

func accept(tb testing.TB, ln *net.TCPListener) *net.TCPConn {
	tb.Helper()
	must(tb, ln.SetDeadline(time.Now().Add(patience)))
	c, err := ln.AcceptTCP()
	must(tb, err)
	tb.Cleanup(func() { c.Close() })
	return c
}

func unmapped(tb testing.TB, a net.Addr) netip.AddrPort {
	tb.Helper()
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func sockopt(tb testing.TB, fd, level, opt int) int {
	tb.Helper()
	v, err := unix.GetsockoptInt(fd, level, opt)
	must(tb, err)
	return v
}

// wantError checks an error's sentinel and the state that it says was left.
func wantError(tb testing.TB, err, sentinel error, left LeftState) {
	tb.Helper()
	var e *Error
	if !errors.As(err, &e) {
		tb.Fatalf("error is %v, want an *Error", err)
	}
	if !errors.Is(err, sentinel) || e.Left != left {
		tb.Fatalf("error is %q (left %v), want %q (left %v)", err, e.Left, sentinel, left)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
