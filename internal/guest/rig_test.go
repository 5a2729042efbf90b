package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/session"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testWindow is smaller than the host daemon's, so that credits matter with little data.
const testWindow = 128 << 10

// rig is an agent with a listener in a namespace, and a client beside it. Its host is what a test makes of the other end of the channel.
type rig struct {
	tb       testing.TB
	agent    *Agent
	listener *Listener
	dial     func() *net.TCPConn
	dialSelf func() *net.TCPConn // a client on the guest itself
}

// Addresses of a rig. They are not the loopback device's own, as the host daemon takes no such connection.
const (
	serverAddress = "198.51.100.1"
	clientAddress = "198.51.100.2"
)

// newRig makes a rig on the loopback device of a namespace.
func newRig(tb testing.TB, policy Policy) *rig {
	tb.Helper()
	testkit.CheckFDs(tb)
	ns := testkit.NewNamespace(tb, "guest")
	ns.Must(tb, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{serverAddress, clientAddress} {
			addr, err := netlink.ParseAddr(a + "/32")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		return nil
	})
	r := &rig{tb: tb}
	r.start(ns, ":0", policy)
	r.dial = func() *net.TCPConn { return r.dialFrom(ns, clientAddress, serverAddress) }
	r.dialSelf = func() *net.TCPConn { return r.dialFrom(ns, "", "127.0.0.1") }
	return r
}

func (r *rig) start(ns *testkit.Namespace, address string, policy Policy) {
	r.tb.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{r.tb}, nil))
	var err error
	if r.agent, err = NewAgent(Options{Policy: policy, Logger: log}); err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() {
		if n := r.agent.Snapshot().Leases; n != 0 {
			r.tb.Errorf("the agent still lists %d leases", n)
		}
		if err := r.agent.Close(); err != nil {
			r.tb.Errorf("Close of the agent: %v", err)
		}
	})
	ns.Must(r.tb, func() (err error) {
		r.listener, err = Listen(context.Background(), address, r.agent)
		return err
	})
	r.tb.Cleanup(func() { r.listener.Close() })
}

// dialFrom connects to the listener. The connection is closed when the test ends.
func (r *rig) dialFrom(ns *testkit.Namespace, from, to string) *net.TCPConn {
	r.tb.Helper()
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	var conn net.Conn
	ns.Must(r.tb, func() (err error) {
		conn, err = d.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(r.listener.Addr().(*net.TCPAddr).Port)))
		return err
	})
	r.tb.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// channelTo joins the agent with a host over a pair of unix sockets until the test ends or the returned function is called.
func (r *rig) channelTo(begin func(*session.Session) session.Handler) (stop func()) {
	r.tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "guest's channel"), os.NewFile(uintptr(fds[1]), "host's channel")}
	hello := wire.Hello{Window: testWindow, MaxLeases: 16}
	wait.Go(func() {
		_ = r.agent.Serve(ctx, ends[0])
		ends[0].Close() // as channel.Keep does
	})
	ended := func(err error) {
		if !errors.Is(err, context.Canceled) {
			r.tb.Log("the host's session has ended:", err)
		}
	}
	wait.Go(func() { _ = session.Host(ctx, ends[1], hello, session.Options{Ended: ended}, begin) })
	stop = sync.OnceFunc(func() {
		cancel()
		wait.Wait()
		ends[1].Close()
	})
	r.tb.Cleanup(stop)
	r.eventually("a session", func() bool { return r.agent.Snapshot().Host == "up" })
	return stop
}

func (r *rig) eventually(what string, ok func() bool) {
	r.tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// connect makes a connection. Both ends are closed when the test ends.
func (r *rig) connect() (client *net.TCPConn, server *Conn) {
	r.tb.Helper()
	return r.accept(r.dial())
}

func (r *rig) accept(client *net.TCPConn) (*net.TCPConn, *Conn) {
	r.tb.Helper()
	c, err := r.listener.Accept()
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() { c.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	return client, c.(*Conn)
}

func (c *Conn) phase() lease.Phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end.Phase()
}

// file is a file of the host that this side has too.
type file struct {
	*bytes.Reader
	ref wire.FileRef
}

func (f *file) HostFile() (wire.FileRef, int64, bool) {
	return f.ref, f.ref.Size - int64(f.Len()), true
}

// WriteTo hides the one of bytes.Reader: a file does not have it.
func (f *file) WriteTo() {}

// newFile makes a file of random bytes.
func newFile(size int) (f *file, content []byte) {
	content = make([]byte, size)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	return openFile(content), content
}

func openFile(content []byte) *file {
	return &file{bytes.NewReader(content), wire.FileRef{Share: "media", Path: "f.mp4", Size: int64(len(content)), MTime: 1}}
}

// recorded is a frame that the scripted host has received.
type recorded struct {
	head    wire.Header
	message wire.Message
}

// script is a host that does what a test tells it, allowed or not. It restores nothing: it says that it did.
type script struct {
	tb     testing.TB
	stop   func()
	frames chan recorded
	ended  chan struct{} // closed when the session is over

	mu      sync.Mutex
	session *session.Session
	referee referee // guarded by mu
}

func (r *rig) script() *script {
	r.tb.Helper()
	s := &script{tb: r.tb, referee: referee{}, frames: make(chan recorded, 8192), ended: make(chan struct{}, 8)}
	s.stop = r.channelTo(func(now *session.Session) session.Handler {
		s.mu.Lock()
		s.session = now
		s.mu.Unlock()
		return s
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // the guest knows of the session before the host's end does
		s.mu.Lock()
		begun := s.session != nil
		s.mu.Unlock()
		if begun {
			return s
		}
		if time.Now().After(deadline) {
			r.tb.Fatal("the host's end has no session")
		}
	}
}

// Frame implements session.Handler.
func (s *script) Frame(head wire.Header, payload []byte) error {
	m, err := wire.Parse(head.Type, bytes.Clone(payload))
	if err != nil {
		return err
	}
	s.mu.Lock()
	err = s.referee.guestSays(head, m)
	s.mu.Unlock()
	if err != nil {
		s.tb.Error(err)
	}
	s.frames <- recorded{head, m}
	return nil
}

// End implements session.Handler.
func (s *script) End(error) { s.ended <- struct{}{} }

func (s *script) say(id uint32, flags wire.Flags, m wire.Message) {
	s.mu.Lock()
	now := s.session
	s.referee.hostSays(id, m)
	s.mu.Unlock()
	if err := now.Write(wire.Append(nil, now.ID, id, flags, m)); err != nil {
		s.tb.Errorf("the host says %v: %v", m.Type(), err)
	}
}

// hear waits for the next frame of the guest, which must be an M.
func hear[M wire.Message](s *script) (M, wire.Header) {
	s.tb.Helper()
	var want M
	select {
	case got := <-s.frames:
		m, ok := got.message.(M)
		if !ok {
			s.tb.Fatalf("the guest says %v %+v, want %v", got.head.Type, got.message, want.Type())
		}
		return m, got.head
	case <-time.After(patience):
		s.tb.Fatalf("the guest does not say %v", want.Type())
	}
	return want, wire.Header{}
}

// silent checks that the guest has said nothing more than was heard.
func (s *script) silent() {
	s.tb.Helper()
	select {
	case got := <-s.frames:
		s.tb.Errorf("the guest says %v %+v, want nothing", got.head.Type, got.message)
	case <-time.After(20 * time.Millisecond):
	}
}

// lives checks that the session has not ended: the guest has not taken anything for a breach, and has not committed one.
func (s *script) lives() {
	s.tb.Helper()
	select {
	case <-s.ended:
		s.tb.Error("the session has ended")
	default:
	}
}

// sending is a ReadFrom under way.
type sending struct {
	n   int64
	err error
}

// send starts a response of a file.
func send(c *Conn, head string, f io.Reader) <-chan sending {
	done := make(chan sending, 1)
	go func() {
		if _, err := c.Write([]byte(head)); err != nil {
			done <- sending{0, fmt.Errorf("head: %w", err)}
			return
		}
		n, err := c.ReadFrom(f)
		done <- sending{n, err}
	}()
	return done
}

func header(length int64) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", length)
}

func await(tb testing.TB, done <-chan sending, wantN int64, wantErr error) {
	tb.Helper()
	select {
	case got := <-done:
		if got.n != wantN || !errors.Is(got.err, wantErr) {
			tb.Errorf("ReadFrom = %d, %v, want %d, %v", got.n, got.err, wantN, wantErr)
		}
	case <-time.After(patience):
		tb.Fatal("ReadFrom does not return")
	}
}

// handing is a connection whose HANDOVER and SEND the host has just heard.
type handing struct {
	*script
	tb     testing.TB
	rig    *rig
	client *net.TCPConn
	server *Conn
	id     uint32
	state  wire.Handover
	order  wire.Send
	flags  wire.Flags // of SEND
	done   <-chan sending
	body   []byte
}

// bodySize of the files that are sent in the tests with a script.
const bodySize = 100_000

// handOver begins a response on a new connection.
func (r *rig) handOver(s *script) *handing {
	r.tb.Helper()
	h := &handing{script: s, tb: r.tb, rig: r}
	h.client, h.server = r.connect()
	h.begin()
	return h
}

// begin begins a response that causes a handover.
func (h *handing) begin() {
	h.tb.Helper()
	var f *file
	f, h.body = newFile(bodySize)
	h.done = send(h.server, header(bodySize), f)
	var head wire.Header
	h.state, head = hear[wire.Handover](h.script)
	h.id = head.ID
	h.order, head = hear[wire.Send](h.script)
	h.flags = head.Flags
}

// next begins a response on a leased connection.
func (h *handing) next() {
	h.tb.Helper()
	var f *file
	f, h.body = newFile(bodySize)
	h.done = send(h.server, header(bodySize), f)
	h.order, _ = hear[wire.Send](h.script)
}

// leased makes a connection that the host has, and whose first response it says to have sent.
func (r *rig) leased(s *script) *handing {
	r.tb.Helper()
	h := r.handOver(s)
	h.say(h.id, 0, wire.Granted{})
	h.sent()
	return h
}

// sent ends the response that is under way well.
func (h *handing) sent() {
	h.tb.Helper()
	h.say(h.id, wire.FlagStarted, wire.Sent{Bytes: bodySize})
	await(h.tb, h.done, bodySize, nil)
}

// over ends the lease from the host's side, so that nothing is left of it.
func (h *handing) over(reason wire.Reason) {
	h.say(h.id, 0, wire.Closed{Reason: reason})
}

// clientReads checks what comes to the client next.
func (h *handing) clientReads(want ...[]byte) {
	h.tb.Helper()
	all := bytes.Join(want, nil)
	got := make([]byte, len(all))
	if n, err := io.ReadFull(h.client, got); err != nil {
		h.tb.Fatalf("the client has %d of %d bytes: %v", n, len(all), err)
	}
	if !bytes.Equal(got, all) {
		h.tb.Fatal("the client got wrong bytes")
	}
}

// serverReads checks what the server reads next.
func (h *handing) serverReads(want string) {
	h.tb.Helper()
	_ = h.server.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(h.server, got); err != nil || string(got) != want {
		h.tb.Fatalf("the server reads %d bytes %q, %v, want %q", n, got[:n], err, want)
	}
	_ = h.server.SetReadDeadline(time.Time{})
}
