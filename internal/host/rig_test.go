package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/internal/config"
	"spillway/internal/redirect"
	"spillway/internal/tcprepair"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// patience bounds every wait of a test for something that happens at once on an idle machine.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a daemon in the host's namespace, with a client's and a guest's namespace beside it.
type rig struct {
	tb     testing.TB
	net    *testkit.Network
	cfg    config.Host
	daemon *Daemon
	stop   context.CancelFunc
	done   chan struct{}
	err    error // of Run, when done is closed
	files  string
	big    []byte // the content of the file "big"
	guests *net.TCPListener
	guest6 *net.TCPListener
}

// nsSockets makes sockets in a namespace.
type nsSockets struct {
	ns      *testkit.Namespace
	freezer *tcprepair.Freezer
}

func (s nsSockets) Get(family int) (fd int, err error) {
	err = s.ns.Do(func() (err error) {
		fd, err = s.freezer.NewTransparent(family)
		return err
	})
	return fd, err
}
func (nsSockets) Close() {}

// newRig starts a daemon for the VMs "one" (the guest's addresses) and "two" (others).
func newRig(tb testing.TB, options ...func(*rig)) *rig {
	tb.Helper()
	testkit.CheckFDs(tb)
	r := &rig{tb: tb, net: testkit.Triple(tb), files: tb.TempDir(), done: make(chan struct{})}
	r.big = make([]byte, 1<<20+12345)
	seed := rand.Uint64()
	tb.Logf("content seed %d", seed)
	random := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	random.Read(r.big)
	r.write("big", r.big)
	r.write("small", r.big[:4096])

	run := tb.TempDir()
	r.cfg = config.DefaultHost()
	r.cfg.Admin = filepath.Join(run, "admin.sock")
	r.cfg.Shares = []config.HostShare{{Name: "media", Path: r.files}, {Name: "private", Path: r.files}}
	for _, name := range []string{"one", "two"} {
		v := config.DefaultVM()
		v.Name, v.Shares = name, []string{"media"}
		v.Channels = []string{"unix:" + filepath.Join(run, name+".sock")}
		v.Addresses = []netip.Addr{netip.MustParseAddr("10.77.0.99")}
		if name == "one" {
			v.Addresses = []netip.Addr{netip.MustParseAddr(testkit.Guest4), netip.MustParseAddr(testkit.Guest6)}
		}
		r.cfg.VMs = append(r.cfg.VMs, v)
	}
	r.guests = r.net.Guest.Listen(tb, "tcp4", testkit.Guest4+":80")
	r.guest6 = r.net.Guest.Listen(tb, "tcp6", "["+testkit.Guest6+"]:80")
	for _, o := range options {
		o(r)
	}
	r.start()
	return r
}

// environment runs the daemon in the namespace of the host.
func (r *rig) environment() environment {
	return environment{
		do:      r.net.Host.Do,
		sockets: func(f *tcprepair.Freezer, _ int) sockets { return nsSockets{r.net.Host, f} },
	}
}

// start runs the daemon; the test's end stops it and checks that nothing is left.
func (r *rig) start() {
	r.tb.Helper()
	var err error
	if r.daemon == nil {
		if r.daemon, err = newDaemon(r.cfg, r.logger(), r.environment()); err != nil {
			r.tb.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		defer close(r.done)
		r.err = r.daemon.Run(ctx)
	}()
	r.tb.Cleanup(r.checkStop)
	r.eventually("the daemon listens", func() bool {
		for _, v := range r.cfg.VMs {
			if _, err := os.Stat(v.Channels[0][len("unix:"):]); err != nil {
				return false
			}
		}
		_, err := os.Stat(r.cfg.Admin)
		return err == nil
	})
}

func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{r.tb}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// checkStop stops the daemon and looks for what it left behind.
func (r *rig) checkStop() {
	r.stop()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.tb.Fatal("the daemon does not stop")
	}
	if r.err != nil {
		r.tb.Errorf("Run: %v", r.err)
	}
	for _, v := range r.cfg.VMs {
		if _, err := os.Lstat(v.Channels[0][len("unix:"):]); !errors.Is(err, os.ErrNotExist) {
			r.tb.Errorf("socket of VM %s is left: %v", v.Name, err)
		}
	}
	if _, err := os.Lstat(r.cfg.Admin); !errors.Is(err, os.ErrNotExist) {
		r.tb.Errorf("admin socket is left: %v", err)
	}
	r.net.Host.Must(r.tb, func() error {
		st, err := redirect.Check(redirect.Config{})
		if err == nil && !st.Empty() {
			err = fmt.Errorf("redirect is left: %+v", st)
		}
		return err
	})
	for _, s := range r.daemon.Status().VMs {
		if s.Leases != 0 || s.Sessions != 0 {
			r.tb.Errorf("VM %s has %d leases and %d sessions after the stop", s.Name, s.Leases, s.Sessions)
		}
	}
}

func (r *rig) eventually(what string, ok func() bool) {
	r.tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// status of VM "one".
func (r *rig) status() VMStatus { return r.daemon.Status().VMs[0] }

// write makes a file of the share and returns how a guest refers to it.
func (r *rig) write(name string, content []byte) wire.FileRef {
	r.tb.Helper()
	if err := os.WriteFile(filepath.Join(r.files, name), content, 0o644); err != nil {
		r.tb.Fatal(err)
	}
	return r.ref(name)
}

func (r *rig) ref(name string) wire.FileRef {
	r.tb.Helper()
	info, err := os.Stat(filepath.Join(r.files, name))
	if err != nil {
		r.tb.Fatal(err)
	}
	return wire.FileRef{Share: "media", Path: name, Size: info.Size(), MTime: info.ModTime().UnixNano()}
}

// whole is a SEND of a whole file.
func (r *rig) whole(name, header string) wire.Send {
	ref := r.ref(name)
	return wire.Send{File: ref, Count: ref.Size, Header: []byte(header)}
}

// recorded is a frame that the fake guest has received.
type recorded struct {
	head    wire.Header
	message wire.Message
}

// fakeGuest speaks the protocol over a VM's channel, and does what a test tells it, allowed or not.
type fakeGuest struct {
	tb   testing.TB
	conn net.Conn
	id   uint32 // of the session

	mu     sync.Mutex
	frames map[uint32]chan recorded // by lease or request; a lease that is over gets a closed channel
	ended  chan struct{}            // closed when the channel is
}

// guest connects to the channel of a VM of the configuration and agrees on a session.
func (r *rig) guest(vmIndex int) *fakeGuest {
	r.tb.Helper()
	conn, err := net.Dial("unix", r.cfg.VMs[vmIndex].Channels[0][len("unix:"):])
	if err != nil {
		r.tb.Fatal(err)
	}
	g := &fakeGuest{tb: r.tb, conn: conn, frames: make(map[uint32]chan recorded), ended: make(chan struct{})}
	r.tb.Cleanup(func() { g.hangUp() })
	reader := wire.NewGuestReader(conn)
	head, payload, err := reader.Sync()
	if err != nil {
		r.tb.Fatal(err)
	}
	if hello, err := wire.ParseHello(payload); err != nil || hello.Window != window {
		r.tb.Fatalf("HELLO %+v, %v", hello, err)
	}
	g.id = head.Session
	g.send(0, 0, wire.Ready{Version: wire.Version})
	go g.read(reader)
	go g.ping()
	return g
}

func (g *fakeGuest) hangUp() {
	g.conn.Close()
	<-g.ended
}

func (g *fakeGuest) read(reader *wire.Reader) {
	defer close(g.ended)
	for {
		head, payload, err := reader.Next()
		if err != nil || head.Session != g.id {
			return // over, or a new session
		}
		m, err := wire.Parse(head.Type, bytes.Clone(payload))
		if err != nil {
			g.tb.Errorf("the host sends %v: %v", head.Type, err)
			return
		}
		if head.Type == wire.TypePing || head.Type == wire.TypePong {
			continue
		}
		g.of(head.ID) <- recorded{head, m}
	}
}

// ping keeps the session alive.
func (g *fakeGuest) ping() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-g.ended:
			return
		case <-tick.C:
			_, _ = g.conn.Write(wire.Append(nil, g.id, 0, 0, wire.Ping{}))
		}
	}
}

// of is the queue of frames of one id. Its size is more than any test lets come together.
func (g *fakeGuest) of(id uint32) chan recorded {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.frames[id]
	if c == nil {
		c = make(chan recorded, 8192)
		g.frames[id] = c
	}
	return c
}

func (g *fakeGuest) send(id uint32, flags wire.Flags, messages ...wire.Message) {
	g.tb.Helper()
	var frames []byte
	for i, m := range messages {
		f := wire.Flags(0)
		if i == len(messages)-1 {
			f = flags
		}
		frames = wire.Append(frames, g.id, id, f, m)
	}
	if _, err := g.conn.Write(frames); err != nil {
		g.tb.Errorf("write to the channel: %v", err)
	}
}

// expect waits for the next frame of a lease and checks its type.
func expect[M wire.Message](g *fakeGuest, id uint32) (M, wire.Flags) {
	g.tb.Helper()
	var want M
	select {
	case got := <-g.of(id):
		m, ok := got.message.(M)
		if !ok {
			g.tb.Fatalf("lease %d: got %v %+v, want %v", id, got.head.Type, got.message, want.Type())
		}
		return m, got.head.Flags
	case <-g.ended:
		g.tb.Fatalf("lease %d: the session ended before %v", id, want.Type())
	case <-time.After(patience):
		g.tb.Fatalf("lease %d: no %v", id, want.Type())
	}
	return want, 0
}

func (g *fakeGuest) expectEnd() {
	g.tb.Helper()
	select {
	case <-g.ended:
	case <-time.After(patience):
		g.tb.Fatal("the session lives")
	}
}

// connection is one TCP connection between the client and the guest.
type connection struct {
	*rig
	client, server *net.TCPConn
	freezer        *tcprepair.Freezer
	handedOver     wire.Handover
}

// connect makes a connection over IPv4.
func (r *rig) connect() *connection { return r.connectTo("tcp4", testkit.Guest4, r.guests) }

// connect6 makes a connection over IPv6.
func (r *rig) connect6() *connection { return r.connectTo("tcp6", testkit.Guest6, r.guest6) }

func (r *rig) connectTo(network, host string, l *net.TCPListener) *connection {
	r.tb.Helper()
	freezer, err := tcprepair.NewFreezer()
	if err != nil {
		r.tb.Fatal(err)
	}
	c := &connection{rig: r, freezer: freezer}
	c.client = r.net.Client.Dial(r.tb, network, net.JoinHostPort(host, "80"))
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		r.tb.Fatal(err)
	}
	if c.server, err = l.AcceptTCP(); err != nil {
		r.tb.Fatal(err)
	}
	_ = c.client.SetDeadline(time.Now().Add(patience))
	r.tb.Cleanup(func() {
		c.server.Close()
		freezer.Close()
	})
	return c
}

// fd runs f with the descriptor of the guest's socket.
func (c *connection) fd(f func(fd int) error) {
	c.tb.Helper()
	raw, err := c.server.SyscallConn()
	if err != nil {
		c.tb.Fatal(err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil || ferr != nil {
		c.tb.Fatal(err, ferr)
	}
}

// freeze takes the connection out of the guest's kernel.
func (c *connection) freeze() wire.Handover {
	c.tb.Helper()
	m := wire.Handover{}
	m.State.Local = c.server.LocalAddr().(*net.TCPAddr).AddrPort()
	m.State.Remote = c.server.RemoteAddr().(*net.TCPAddr).AddrPort()
	c.fd(func(fd int) error {
		return errors.Join(tcprepair.ReadOptions(fd, &m.State), c.freezer.Freeze(fd), tcprepair.Extract(fd, &m.State))
	})
	c.handedOver = m
	return m
}

// takeBack restores the connection in place.
func (c *connection) takeBack(m wire.Handback) {
	c.tb.Helper()
	c.fd(func(fd int) error {
		return errors.Join(tcprepair.Park(fd), tcprepair.RestoreInPlace(fd, &m.State, c.handedOver.State.KeepAlive))
	})
}

// release closes the guest's socket silently, as a guest does whose lease is over.
func (c *connection) release() {
	c.fd(tcprepair.Release)
	c.server.Close()
}

// lease makes a connection and a lease of it.
func (r *rig) lease(g *fakeGuest, id uint32) *connection {
	r.tb.Helper()
	c := r.connect()
	g.send(id, 0, c.freeze())
	expect[wire.Granted](g, id)
	return c
}

// clientReads checks what comes to the client next.
func (c *connection) clientReads(want []byte) {
	c.tb.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.client, got); err != nil {
		c.tb.Fatalf("the client has %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		c.tb.Fatal("the client got wrong bytes")
	}
}

// clientReading is clientReads in the background; the returned function waits for it. It lets a test be independent of how much of the end
// of a response is withheld.
func (c *connection) clientReading(want []byte) (wait func()) {
	done := make(chan error, 1)
	go func() {
		got := make([]byte, len(want))
		n, err := io.ReadFull(c.client, got)
		switch {
		case err != nil:
			err = fmt.Errorf("the client has %d of %d bytes: %w", n, len(want), err)
		case !bytes.Equal(got, want):
			err = errors.New("the client got wrong bytes")
		}
		done <- err
	}()
	return func() {
		c.tb.Helper()
		if err := <-done; err != nil {
			c.tb.Fatal(err)
		}
	}
}

// clientEnds checks that the client gets an end of file now.
func (c *connection) clientEnds() {
	c.tb.Helper()
	if n, err := c.client.Read(make([]byte, 1)); err != io.EOF {
		c.tb.Fatalf("the client reads %d bytes and %v, want EOF", n, err)
	}
}

// clientReset checks that the client gets a reset.
func (c *connection) clientReset() {
	c.tb.Helper()
	if _, err := io.Copy(io.Discard, c.client); !errors.Is(err, unix.ECONNRESET) {
		c.tb.Fatalf("the client reads %v, want a reset", err)
	}
}

func (c *connection) clientSays(text string) {
	c.tb.Helper()
	if _, err := c.client.Write([]byte(text)); err != nil {
		c.tb.Fatal(err)
	}
}

// hears waits until the guest has got exactly these bytes as DATA.
func (g *fakeGuest) hears(id uint32, want string) {
	g.tb.Helper()
	var got []byte
	for len(got) < len(want) {
		m, _ := expect[wire.Data](g, id)
		got = append(got, m.Data...)
	}
	if string(got) != want {
		g.tb.Fatalf("the guest hears %q, want %q", got, want)
	}
}
