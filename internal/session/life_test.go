package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"spillway/internal/wire"
)

// agreed returns both sides in a session.
func agreed(t testing.TB, a, b closer) (host, guest *side, h, g *recorder) {
	t.Helper()
	host, guest = startHost(t, a), startGuest(t, b)
	h, g = together(t, host, guest)
	return host, guest, h, g
}

// TestGuestRestart: GREET within a session ends it, and begins the next one.
func TestGuestRestart(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		host, guest := startHost(t, a), byHand(t, b)
		var last uint32
		for range 3 {
			guest.say(greet())
			id := guest.await(wire.TypeHello).Session
			for len(guest.heard) > 0 { // the offer that was made at once, and the answer to GREET
				id = guest.await(wire.TypeHello).Session
			}
			synctest.Wait()
			for len(guest.heard) > 0 {
				id = guest.await(wire.TypeHello).Session
			}
			guest.say(ready(id))
			s := host.session()
			if s.session.ID != id || id == last {
				t.Fatalf("session %08x, offered was %08x, before it %08x", s.session.ID, id, last)
			}
			last = id
			guest.say(greet())
			if err := next(t, "the end", s.end); !errors.Is(err, ErrRestart) {
				t.Errorf("ended by %v", err)
			}
			if err := next(t, "the news", host.ended); !errors.Is(err, ErrRestart) {
				t.Errorf("told %v", err)
			}
		}
		host.stop()
	})
}

// TestHostRestart: HELLO of another session ends the session, and its frame begins the next one.
func TestHostRestart(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		guest, host := startGuest(t, b), byHand(t, a)
		var before *recorder
		for id := uint32(1); id <= 4; id++ {
			host.say(hello(id))
			s := guest.session()
			if s.session.ID != id {
				t.Fatalf("session %d, want %d", s.session.ID, id)
			}
			if got := host.await(wire.TypeReady).Session; got != id {
				t.Errorf("READY of session %d, want %d", got, id)
			}
			if before != nil {
				if err := next(t, "the end", before.end); !errors.Is(err, ErrRestart) {
					t.Errorf("ended by %v", err)
				}
			}
			before = s
		}
		guest.stop()
	})
}

// TestRestartOfEither: a real side is replaced by a new one on the same channel, which tells nobody of it.
func TestRestartOfEither(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		host, guest, h, g := agreed(t, a, b)
		for i := range 6 {
			old, survivor := guest, h
			if i%2 == 0 {
				old, survivor = host, g
			}
			old.stop()
			clearDeadlines(t, old.conn.closer) // the new process has a file of its own
			if i%2 == 0 {
				host = startHost(t, a)
			} else {
				guest = startGuest(t, b)
			}
			if err := next(t, "the end", survivor.end); !errors.Is(err, ErrRestart) {
				t.Errorf("ended by %v", err)
			}
			h, g = together(t, host, guest)
		}
		host.stop()
		guest.stop()
	})
}

func clearDeadlines(t testing.TB, c Conn) {
	t.Helper()
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
		t.Fatal(err)
	}
}

// TestSilence: who hears nothing for 6 s ends the session and looks for the next one.
func TestSilence(t *testing.T) {
	t.Run("of the guest", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			host, guest := startHost(t, a), byHand(t, b)
			id := guest.await(wire.TypeHello).Session
			guest.say(ready(id))
			s := host.session()
			last := time.Now()
			err := next(t, "the end", s.end)
			if took := time.Since(last); !errors.Is(err, ErrSilent) || took < DefaultSilent || took > DefaultSilent+2*tickInterval {
				t.Errorf("ended by %v after %v", err, took)
			}
			again := guest.await(wire.TypeHello).Session
			if again == id {
				t.Error("the session that ended was offered again")
			}
			guest.say(ready(again))
			host.session()
			host.stop()
		})
	})
	t.Run("of the host", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			guest, host := startGuest(t, b), byHand(t, a)
			host.say(hello(1))
			s := guest.session()
			host.await(wire.TypeReady)
			last := time.Now()
			err := next(t, "the end", s.end)
			if took := time.Since(last); !errors.Is(err, ErrSilent) || took < DefaultSilent || took > DefaultSilent+2*tickInterval {
				t.Errorf("ended by %v after %v", err, took)
			}
			for range 3 {
				host.await(wire.TypeGreet)
			}
			host.say(hello(2))
			guest.session()
			guest.stop()
		})
	})
	t.Run("any frame breaks it", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			guest, host := startGuest(t, b), byHand(t, a)
			host.say(hello(1))
			s := guest.session()
			for i := range 10 {
				time.Sleep(DefaultSilent - tickInterval)
				switch i % 3 {
				case 0:
					host.say(data(1, 1, "x"))
				case 1:
					host.say(hello(1))
				case 2:
					host.say(wire.Append(nil, 1, 0, 0, wire.Pong{Token: 1}))
				}
			}
			none(t, "the end", s.end)
			guest.stop()
		})
	})
}

// TestQuietSession: PING and PONG keep a session over which nothing is said, for an hour, and no more of them than needed.
func TestQuietSession(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		host, guest, h, g := agreed(t, a, b)
		before := host.conn.writes.Load() + guest.conn.writes.Load()
		const seconds = 3600
		time.Sleep(seconds * time.Second)
		none(t, "the end at the host", h.end)
		none(t, "the end at the guest", g.end)
		wrote := host.conn.writes.Load() + guest.conn.writes.Load() - before
		if wrote < seconds/pingTicks/2 || wrote > 2*2*seconds/pingTicks {
			t.Errorf("%d writes in %d s", wrote, seconds)
		}
		host.stop()
		guest.stop()
	})
}

// TestBusySession: where frames are said anyway, PING is not.
func TestBusySession(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		host, guest, h, g := agreed(t, a, b)
		time.Sleep(2 * time.Second) // whatever the agreement has left
		before := host.conn.writes.Load() + guest.conn.writes.Load()
		const rounds = 100
		for range rounds {
			exchange(t, h, g)
			time.Sleep(time.Second)
		}
		if wrote := host.conn.writes.Load() + guest.conn.writes.Load() - before; wrote > 2*rounds+2 {
			t.Errorf("%d writes for %d frames", wrote, 2*rounds)
		}
		host.stop()
		guest.stop()
	})
}

// TestPong: the answer has the token of the question.
func TestPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufferedPipe(1 << 10)
		defer a.Close()
		host, guest := startHost(t, a), byHand(t, b)
		id := guest.await(wire.TypeHello).Session
		guest.say(ready(id))
		host.session()
		guest.say(wire.Append(nil, id, 0, 0, wire.Ping{Token: 0x1122}))
		guest.await(wire.TypePong)
		want := fmt.Sprintf("%v 0 %q", wire.TypePong, wire.Append(nil, id, 0, 0, wire.Pong{Token: 0x1122})[wire.HeaderSize:])
		var got string
		for len(guest.frames) > 0 {
			got = <-guest.frames
		}
		if got != want {
			t.Errorf("answered %s, want %s", got, want)
		}
		host.stop()
	})
}

// TestReaderNeverWaits: a side that takes no bytes is still heard, or two such sides would wait for each other.
func TestReaderNeverWaits(t *testing.T) {
	for _, who := range []string{"host", "guest"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe() // holds nothing: a write lasts until it is read
				defer a.Close()
				defer b.Close()
				var s *side
				id := uint32(9)
				if who == "host" {
					s = startHost(t, a)
					buf := make([]byte, 100)
					n, err := b.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					id = headerOf(t, buf[:n]).Session
					write(t, b, ready(id))
				} else {
					s = startGuest(t, a)
					write(t, b, hello(id)) // and do not read GREET and READY
				}
				r := s.session()
				for range 3 {
					write(t, b, wire.Append(nil, id, 0, 0, wire.Ping{Token: 1}))
				}
				write(t, b, data(id, 1, "behind"))
				if got := next(t, "the frame behind the PINGs", r.got); got != frameText(1, "behind") {
					t.Errorf("got %s", got)
				}
				s.stop()
			})
		})
	}
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.Write(b); err != nil {
		t.Fatalf("the other side does not read: %v", err)
	}
}

func headerOf(t *testing.T, frame []byte) wire.Header {
	t.Helper()
	h, _, err := wire.NewHostReader(&onceReader{frame}).Next()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

type onceReader struct{ b []byte }

func (r *onceReader) Read(p []byte) (int, error) {
	n := copy(p, r.b)
	if r.b = r.b[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestStuck: a side that speaks but takes no bytes ends the session after 6 s. The channel is not used again: nobody reads it.
func TestStuck(t *testing.T) {
	for _, size := range []int{1, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			a, b := bufferedPipe(100)
			defer a.Close()
			host := startHost(t, a)
			buf := make([]byte, 100)
			n, err := b.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			id := headerOf(t, buf[:n]).Session
			_, _ = b.Write(ready(id))
			s := host.session()
			began := time.Now()
			written := make(chan error)
			for range 3 { // the one that writes, and two behind it
				go func() { written <- s.session.Write(data(id, 1, string(make([]byte, 100+size/20)))) }()
			}
			stop := make(chan struct{})
			go func() { // the other side is not silent
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Second):
						_, _ = b.Write(wire.Append(nil, id, 0, 0, wire.Ping{Token: 1}))
					}
				}
			}()
			err = next(t, "the end", s.end)
			if took := time.Since(began); !errors.Is(err, ErrStuck) || took > DefaultSilent+2*tickInterval {
				t.Errorf("ended by %v after %v", err, took)
			}
			for range 3 {
				if err := next(t, "the return of Write", written); err != nil && err != ErrEnded {
					t.Errorf("Write: %v", err)
				}
			}
			if err := next(t, "the return of Host", host.done); !errors.Is(err, ErrStuck) {
				t.Errorf("Host: %v", err)
			}
			close(stop)
		})
	}
}

// TestSlow: a side that takes its time, but takes, is not stuck.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := newSession(g, 1, testHello, nil)
		stop := make(chan struct{})
		go s.watch(DefaultSilent, stop)
		write := func() { _ = s.Write([]byte("one more")) }
		go write()
		for range 60 {
			synctest.Wait()
			write() // there is always one that waits behind the one under way
			time.Sleep(DefaultSilent / 4)
			s.heard.Store(true)
			g.pass(1)
		}
		if s.err != nil {
			t.Errorf("ended by %v", s.err)
		}
		s.Close(io.EOF)
		close(stop)
	})
}

// TestFrameErrors: an error of the format begins a new session on the same channel, any other ends the channel.
func TestFrameErrors(t *testing.T) {
	other := errors.New("the disk is on fire")
	for _, tt := range []struct {
		name    string
		handler error  // what Frame returns
		say     []byte // what makes it so
		want    error
		again   bool
	}{
		{"handler, format", fmt.Errorf("lease 3: %w: nonsense", wire.ErrFormat), data(1, 3, "x"), wire.ErrFormat, true},
		{"handler, other", other, data(1, 3, "x"), other, false},
		{"unknown type", nil, append([]byte{0, 0, 0, 0, 255}, make([]byte, 11)...), wire.ErrFormat, true},
		{"another session", nil, data(2, 3, "x"), wire.ErrFormat, true},
		{"READY of another session", nil, ready(2), wire.ErrFormat, true},
		{"PING too long", nil, append(wire.Append(nil, 1, 0, 0, wire.Data{Data: make([]byte, 9)})[:4], pingOf(9)...), wire.ErrFormat, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubbles(t, func(t *testing.T, a, b closer) {
				guest, host := startGuest(t, b), byHand(t, a)
				guest.frame = func(*recorder, wire.Header, []byte) error { return tt.handler }
				host.say(hello(1))
				s := guest.session()
				host.await(wire.TypeReady)
				host.say(tt.say)
				if err := next(t, "the end", s.end); !errors.Is(err, tt.want) {
					t.Errorf("ended by %v, want %v", err, tt.want)
				}
				if !tt.again {
					if err := next(t, "the return", guest.done); !errors.Is(err, tt.want) {
						t.Errorf("returned %v, want %v", err, tt.want)
					}
					return
				}
				host.await(wire.TypeGreet)
				host.say(hello(3))
				if s := guest.session(); s.session.ID != 3 {
					t.Errorf("session %d", s.session.ID)
				}
				guest.stop()
			})
		})
	}
}

// pingOf is a PING of session 1 with a payload of n bytes, without its length.
func pingOf(n int) []byte {
	frame := wire.Append(nil, 1, 0, 0, wire.Ping{})
	return append(frame[4:wire.HeaderSize:wire.HeaderSize], make([]byte, n)...)
}

// TestChannelEnds: end of file, in the agreement and in a session.
func TestChannelEnds(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		host := startHost(t, a)
		time.Sleep(time.Second)
		b.Close()
		if err := next(t, "the return", host.done); err == nil || contextError(err) {
			t.Errorf("returned %v", err)
		}
		none(t, "a session", host.began)
	})
	inBubbles(t, func(t *testing.T, a, b closer) {
		host, guest, h, g := agreed(t, a, b)
		guest.stop()
		if err := next(t, "the guest's end", g.end); err == nil {
			t.Error("ended without a reason")
		}
		b.Close()
		if err := next(t, "the host's end", h.end); err == nil || errors.Is(err, ErrSilent) {
			t.Errorf("ended by %v", err)
		}
		if err := next(t, "the return", host.done); err == nil || contextError(err) {
			t.Errorf("returned %v", err)
		}
	})
}

// TestCancel: whatever a side is doing, it returns at once when its context ends.
func TestCancel(t *testing.T) {
	t.Run("nobody reads", func(t *testing.T) {
		for _, run := range []func(testing.TB, closer) *side{startHost, startGuest} {
			for _, wait := range []time.Duration{0, time.Second, 2500 * time.Millisecond} {
				inBubbles(t, func(t *testing.T, a, _ closer) {
					s := run(t, a)
					time.Sleep(wait)
					s.stop()
				})
			}
		}
	})
	t.Run("while the answer is written", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			defer b.Close()
			guest := startGuest(t, a)
			write(t, b, hello(1)) // READY is not read
			guest.session()
			guest.stop()
		})
	})
	t.Run("writers wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := bufferedPipe(100)
			defer a.Close()
			guest, host := startGuest(t, a), byHand(t, b)
			host.say(hello(1))
			s := guest.session()
			host.await(wire.TypeReady)
			b.in.mu.Lock() // from now on nobody reads
			b.in.capacity = b.in.buf.Len()
			b.in.mu.Unlock()
			done := make(chan error)
			for range 5 {
				go func() { done <- s.session.Write(data(1, 1, string(make([]byte, wire.MaxData)))) }()
			}
			synctest.Wait()
			guest.stop()
			for range 5 {
				next(t, "the return of Write", done)
			}
		})
	})
}
