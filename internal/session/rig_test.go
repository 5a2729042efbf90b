package session

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testHello = wire.Hello{Window: 1 << 16, MaxLeases: 7}

// side is Host or Guest at work.
type side struct {
	t      testing.TB
	conn   *watched
	cancel context.CancelFunc
	began  chan *recorder // the handlers of its sessions, as they begin
	ended  chan error     // what Options.Ended is told
	done   chan error     // what Host or Guest returned
	frame  func(*recorder, wire.Header, []byte) error
}

// recorder is a Handler that holds the rules for Handlers.
type recorder struct {
	side    *side
	session *Session

	mu   sync.Mutex
	ends int

	got chan string // each frame
	end chan error
}

func (r *recorder) Frame(h wire.Header, payload []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ends > 0 {
		r.side.t.Errorf("%v after End", h.Type)
	}
	if h.Session != r.session.ID {
		r.side.t.Errorf("%v of session %08x in session %08x", h.Type, h.Session, r.session.ID)
	}
	if r.side.frame != nil {
		if err := r.side.frame(r, h, payload); err != nil {
			return err
		}
	}
	select {
	case r.got <- fmt.Sprintf("%v %d %q", h.Type, h.ID, payload):
	default:
		r.side.t.Error("too many frames for the test")
	}
	return nil
}

func (r *recorder) End(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ends++; r.ends > 1 || err == nil {
		r.side.t.Errorf("End(%v), call %d", err, r.ends)
	}
	if werr := r.session.Write([]byte("never")); werr != ErrEnded {
		r.side.t.Errorf("Write within End: %v, want ErrEnded", werr)
	}
	r.end <- err
}

// start runs Host or Guest over conn until the test is over, or until stop.
func start(t testing.TB, conn closer, run func(context.Context, Conn, Options, func(*Session) Handler) error) *side {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &side{
		t: t, conn: watch(t, conn), cancel: cancel,
		began: make(chan *recorder, 100), ended: make(chan error, 100), done: make(chan error, 1),
	}
	opts := Options{Ended: func(err error) { s.ended <- err }}
	go func() {
		s.done <- run(ctx, s.conn, opts, func(session *Session) Handler {
			r := &recorder{side: s, session: session, got: make(chan string, 10000), end: make(chan error, 10)}
			s.began <- r
			return r
		})
	}()
	return s
}

func startHost(t testing.TB, conn closer) *side {
	return start(t, conn, func(ctx context.Context, c Conn, o Options, begin func(*Session) Handler) error {
		return Host(ctx, c, testHello, o, begin)
	})
}

func startGuest(t testing.TB, conn closer) *side { return start(t, conn, Guest) }

// long is more than anything here takes; within a bubble it costs nothing.
const long = 100 * time.Second

// next receives from a channel of a side.
func next[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(long):
		t.Fatalf("%s does not come", what)
		panic("unreachable")
	}
}

// none holds that nothing has come.
func none[T any](t testing.TB, what string, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("%s: %v", what, v)
	default:
	}
}

// session returns the next session's handler.
func (s *side) session() *recorder {
	s.t.Helper()
	return next(s.t, "a session", s.began)
}

// stop cancels and holds that Host or Guest returns for that reason, promptly.
func (s *side) stop() {
	s.t.Helper()
	s.cancel()
	began := time.Now()
	if err := next(s.t, "the return after cancel", s.done); err == nil || !contextError(err) {
		s.t.Errorf("returned %v, want the context's error", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		s.t.Errorf("returned %v after cancel", took)
	}
}

// peer is the other side, played by hand.
type peer struct {
	t      testing.TB
	conn   closer
	frames chan string // what it has heard
	heard  chan wire.Header
}

// byHand reads all that arrives on conn, which runs the opposite of opposite. The test writes what it likes.
func byHand(t testing.TB, conn closer) *peer {
	p := &peer{t: t, conn: conn, frames: make(chan string, 10000), heard: make(chan wire.Header, 10000)}
	r := wire.NewHostReader(conn)
	go func() {
		for {
			h, payload, err := r.Next()
			if err != nil {
				close(p.heard)
				return
			}
			p.frames <- fmt.Sprintf("%v %d %q", h.Type, h.ID, payload)
			p.heard <- h
		}
	}()
	return p
}

// say writes bytes, and gives up where nobody takes them.
func (p *peer) say(b []byte) {
	p.t.Helper()
	_ = p.conn.SetWriteDeadline(time.Now().Add(long))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// await drops what it hears until a frame of type want.
func (p *peer) await(want wire.Type) wire.Header {
	p.t.Helper()
	for {
		h := next(p.t, want.String(), p.heard)
		if h.Length == 0 && h.Type == 0 {
			p.t.Fatalf("the channel ended, waiting for %v", want)
		}
		if h.Type == want {
			return h
		}
	}
}

// Frames that peers say.
func greet() []byte { return wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version}) }
func ready(id uint32) []byte {
	return wire.Append(nil, id, 0, 0, wire.Ready{Version: wire.Version})
}
func hello(id uint32) []byte {
	return wire.Append(nil, id, 0, 0, wire.Hello{Version: wire.Version, Window: testHello.Window, MaxLeases: testHello.MaxLeases})
}
func data(session, id uint32, text string) []byte {
	return wire.Append(nil, session, id, 0, wire.Data{Data: []byte(text)})
}
func frameText(id uint32, text string) string { return fmt.Sprintf("DATA %d %q", id, text) }
