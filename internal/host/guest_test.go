package host

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"spillway/internal/wire"
)

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

// guest connects to the first channel of a VM of the configuration and agrees on a session.
func (r *rig) guest(vmIndex int) *fakeGuest {
	r.tb.Helper()
	return r.guestAt(r.cfg.VMs[vmIndex].Channels[0])
}

// guestAt is guest for a channel.
func (r *rig) guestAt(address string) *fakeGuest {
	r.tb.Helper()
	conn, err := net.Dial("unix", address[len("unix:"):])
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

// next waits for the next frame of a lease, whatever it is.
func (g *fakeGuest) next(id uint32) (wire.Header, wire.Message) {
	g.tb.Helper()
	select {
	case got := <-g.of(id):
		return got.head, got.message
	case <-time.After(patience):
		g.tb.Fatalf("lease %d: no frame", id)
		panic("unreachable")
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
