package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"spillway/internal/wire"
)

// gate is a Conn whose writes wait until the test lets them pass; it never reads anything.
type gate struct {
	mu      sync.Mutex
	changed sync.Cond
	passes  int
	past    bool
	wrote   [][]byte // copies of what was written, one for each call
	waiting int
}

func newGate() *gate {
	g := &gate{}
	g.changed.L = &g.mu
	return g
}

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting++
	for g.passes == 0 && !g.past {
		g.changed.Wait()
	}
	g.waiting--
	if g.past {
		return 0, os.ErrDeadlineExceeded
	}
	g.passes--
	g.wrote = append(g.wrote, append([]byte(nil), b...))
	return len(b), nil
}

func (g *gate) pass(n int) {
	g.mu.Lock()
	g.passes += n
	g.mu.Unlock()
	g.changed.Broadcast()
	synctest.Wait()
}

func (g *gate) Read([]byte) (int, error)        { return 0, io.EOF }
func (g *gate) SetReadDeadline(time.Time) error { return nil }
func (g *gate) SetWriteDeadline(t time.Time) error {
	g.mu.Lock()
	g.past = !t.IsZero()
	g.mu.Unlock()
	g.changed.Broadcast()
	return nil
}

// calls returns what was written so far.
func (g *gate) calls() [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([][]byte(nil), g.wrote...)
}

// TestWriteCombines: what comes while a write is under way leaves together in the next one.
func TestWriteCombines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, nil)
		for round := range 4 { // the buffers are used again
			go func() { _ = s.Write([]byte("first")) }()
			synctest.Wait()
			var want strings.Builder
			for i := range 100 {
				frame := []byte(fmt.Sprintf("<%d.%d>", round, i))
				want.Write(frame)
				if err := s.Write(frame); err != nil { // it does not wait
					t.Fatal(err)
				}
				clear(frame) // the caller may use it again
			}
			g.pass(1)
			go func() { _ = s.Write([]byte("late")) }() // while the second write is under way
			synctest.Wait()
			g.pass(2)
			got := g.calls()[3*round:]
			if len(got) != 3 || string(got[0]) != "first" || string(got[1]) != want.String() || string(got[2]) != "late" {
				t.Fatalf("round %d: writes %q", round, got)
			}
		}
	})
}

// TestWriteIsNotKept: a caller writes its own frames, and not for as long as others have some.
func TestWriteIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, nil)
		returned := make(chan error, 1)
		go func() { returned <- s.Write([]byte("mine")) }()
		synctest.Wait()
		if err := s.Write([]byte("another's")); err != nil {
			t.Fatal(err)
		}
		g.pass(1)
		select {
		case err := <-returned:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("Write writes for others")
		}
		g.pass(1)
		if got := g.calls(); len(got) != 2 || string(got[1]) != "another's" {
			t.Errorf("writes %q", got)
		}
	})
}

// TestOpeningComesFirst: the frame that a session begins with is before all others, although nobody waits for it.
func TestOpeningComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, []byte("opening"))
		if err := s.Write([]byte("then this")); err != nil {
			t.Fatal(err)
		}
		g.pass(2)
		if got := g.calls(); len(got) != 2 || string(got[0]) != "opening" || string(got[1]) != "then this" {
			t.Errorf("writes %q", got)
		}
	})
}

// TestPingFlood: a side that asks without end and takes no answer costs one answer.
func TestPingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, nil)
		ping := wire.Append(nil, 1, 0, 0, wire.Ping{Token: 1})
		for range 1000 {
			if err := s.frame(wire.Header{Type: wire.TypePing, Session: 1}, ping[wire.HeaderSize:], nil); err != nil {
				t.Fatal(err)
			}
		}
		g.pass(1000)
		if got := g.calls(); len(got) != 1 || len(got[0]) != len(ping) {
			t.Errorf("%d answers", len(got))
		}
	})
}

// TestWriteIsBounded: who has more to say than maxPending waits, and goes on when there is room, or when the session ends.
func TestWriteIsBounded(t *testing.T) {
	for _, ends := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			s := newSession(g, 1, testHello, nil)
			go func() { _ = s.Write([]byte("under way")) }()
			synctest.Wait()
			big := bytes.Repeat([]byte("b"), maxPending+1)
			if err := s.Write(big); err != nil { // there is room until it is there
				t.Fatal(err)
			}
			done := make(chan error, 10)
			for range 3 {
				go func() { done <- s.Write([]byte("waits")) }()
			}
			synctest.Wait()
			none(t, "Write returned", done)
			want := error(nil)
			if ends {
				s.Close(errors.New("over"))
				want = ErrEnded
			} else {
				g.pass(1)
			}
			synctest.Wait()
			for range 3 {
				select {
				case err := <-done:
					if err != want {
						t.Errorf("Write: %v, want %v", err, want)
					}
				default:
					t.Fatal("Write still waits")
				}
			}
			if g.pass(10); !ends {
				if got := g.calls(); len(got) != 3 || len(got[1]) != len(big) || string(got[2]) != "waitswaitswaits" {
					t.Errorf("%d writes", len(got))
				}
			}
		})
	}
}

// TestWriteAfterEnd: ErrEnded, and not a byte leaves.
func TestWriteAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, nil)
		done := make(chan error, 1)
		go func() { done <- s.Write([]byte("under way")) }()
		synctest.Wait()
		_ = s.Write([]byte("waits"))
		cause := errors.New("over")
		s.Close(cause)
		s.Close(errors.New("again"))
		synctest.Wait()
		if err := next(t, "the return", done); err != nil {
			t.Errorf("Write under way: %v, want nil: it may have left", err)
		}
		_ = g.SetWriteDeadline(time.Time{}) // as the next session does
		g.pass(10)
		for range 3 {
			if err := s.Write([]byte("more")); err != ErrEnded {
				t.Errorf("Write: %v, want ErrEnded", err)
			}
		}
		s.awaitWriter()
		synctest.Wait()
		if got := g.calls(); len(got) != 0 {
			t.Errorf("written after the end: %q", got)
		}
		if err := s.failure(errors.New("later")); err != cause {
			t.Errorf("the reason is %v, want the first", err)
		}
	})
}

// TestConcurrentWriters: frames arrive whole, those of a goroutine in their order, and in fewer writes than frames.
func TestConcurrentWriters(t *testing.T) {
	const writers, frames = 8, 400
	a, b := unixPair(t)
	host, guest, h, g := agreed(t, a, b)
	before := host.conn.writes.Load()
	var wg sync.WaitGroup
	for w := range writers {
		for _, from := range []*recorder{h, g} { // both ways at once
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 1))
				var buf []byte
				for i := range frames {
					text := fmt.Sprintf("%d:%s", i, strings.Repeat("x", rng.IntN(2000)))
					buf = wire.Append(buf[:0], h.session.ID, uint32(w), 0, wire.Data{Data: []byte(text)})
					if err := from.session.Write(buf); err != nil {
						t.Error(err)
						return
					}
					clear(buf)
				}
			})
		}
	}
	for _, to := range []*recorder{h, g} {
		at := map[int]int{}
		for range writers * frames {
			var w, i int
			frame := next(t, "a frame", to.got)
			if n, err := fmt.Sscanf(frame, "DATA %d \"%d:", &w, &i); n != 2 {
				t.Fatalf("%q: %v", frame, err)
			}
			if at[w] != i {
				t.Fatalf("writer %d: frame %d where %d is due", w, i, at[w])
			}
			if strings.Trim(frame[strings.Index(frame, ":")+1:], `x"`) != "" {
				t.Fatalf("a torn frame: %q", frame)
			}
			at[w]++
		}
	}
	wg.Wait()
	t.Logf("%d frames in %d writes", writers*frames, host.conn.writes.Load()-before)
	host.stop()
	guest.stop()
}

// TestOldWriterIsGone: a write of a session that has ended does not go on in the next one, even where the deadline that is to end it is taken back at
// once. (In Go a blocked Write may miss a deadline that is in the past for a moment only.)
func TestOldWriterIsGone(t *testing.T) {
	for range 20 {
		a, b := unixPair(t)
		host := startHost(t, a)
		r := wire.NewGuestReader(b)
		offer, _, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		write(t, b, ready(offer.Session))
		s := host.session()
		var wg sync.WaitGroup
		for range 4 { // until the socket is full
			wg.Go(func() {
				for s.session.Write(data(offer.Session, 1, string(make([]byte, wire.MaxData)))) == nil {
				}
			})
		}
		for full := false; !full; time.Sleep(time.Millisecond) {
			s.session.mu.Lock()
			full = len(s.session.pending) > maxPending
			s.session.mu.Unlock()
		}
		write(t, b, greet())
		next(t, "the end", s.end)
		if host.conn.writing.Load() > 1 {
			t.Error("the session has ended and writes")
		}
		wg.Wait() // nobody has read: they returned since the session is over
		// What is left of the old session is dropped, and the new one found.
		b.SetReadDeadline(time.Now().Add(long))
		again, _, err := r.Sync()
		for err == nil && again.Session == offer.Session {
			again, _, err = r.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, b, ready(again.Session))
		host.session()
		host.stop()
	}
}
