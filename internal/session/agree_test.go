package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"spillway/internal/wire"
)

func contextError(err error) bool { return errors.Is(err, context.Canceled) }

// inBubbles runs a test with fake time over a channel that holds nothing, one that holds a frame or two, and one that holds much.
func inBubbles(t *testing.T, test func(t *testing.T, a, b closer)) {
	t.Helper()
	t.Run("unbuffered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			defer b.Close()
			test(t, a, b)
		})
	})
	for _, capacity := range []int{50, 64 << 10} {
		t.Run(fmt.Sprintf("buffer of %d bytes", capacity), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := bufferedPipe(capacity)
				defer a.Close()
				defer b.Close()
				test(t, a, b)
			})
		})
	}
}

// together holds that two sides share a session and hear each other.
func together(t testing.TB, host, guest *side) (h, g *recorder) {
	t.Helper()
	h, g = host.session(), guest.session()
	// An agreement may be repeated: the newest session counts.
	for len(host.began) > 0 {
		h = host.session()
	}
	for len(guest.began) > 0 {
		g = guest.session()
	}
	if h.session.ID != g.session.ID || h.session.ID == 0 {
		t.Fatalf("sessions %08x and %08x", h.session.ID, g.session.ID)
	}
	want := testHello
	want.Version = wire.Version
	if h.session.Hello != want || g.session.Hello != want {
		t.Errorf("HELLO %+v at the host, %+v at the guest, want %+v", h.session.Hello, g.session.Hello, want)
	}
	exchange(t, h, g)
	return h, g
}

// exchange sends a frame each way.
func exchange(t testing.TB, a, b *recorder) {
	t.Helper()
	for _, way := range [][2]*recorder{{a, b}, {b, a}} {
		if err := way[0].session.Write(data(a.session.ID, 5, "over there")); err != nil {
			t.Fatal(err)
		}
		if got := next(t, "a frame", way[1].got); got != frameText(5, "over there") {
			t.Fatalf("got %s", got)
		}
	}
}

// TestAgreement: whoever comes first, and whatever the channel holds, one session begins within a second, and only one.
func TestAgreement(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		hostWaits, guestWaits time.Duration
	}{
		{"together", 0, 0},
		{"guest first", 10 * time.Second, 0},
		{"host first", 0, 10 * time.Second},
		{"guest first, between two GREETs", 1500 * time.Millisecond, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubbles(t, func(t *testing.T, a, b closer) {
				began := time.Now()
				var host, guest *side
				if tt.hostWaits > 0 {
					guest = startGuest(t, b)
					time.Sleep(tt.hostWaits)
					host = startHost(t, a)
				} else {
					host = startHost(t, a)
					time.Sleep(tt.guestWaits)
					guest = startGuest(t, b)
				}
				together(t, host, guest)
				if took := time.Since(began) - tt.hostWaits - tt.guestWaits; took > time.Second {
					t.Errorf("agreed after %v", took)
				}
				time.Sleep(30 * time.Second)
				for _, s := range []*side{host, guest} {
					none(t, "a second session", s.began)
					none(t, "an end", s.ended)
					s.stop()
				}
			})
		})
	}
}

// TestAgreementOverUnixSocket is the same with a kernel in between.
func TestAgreementOverUnixSocket(t *testing.T) {
	for _, guestFirst := range []bool{true, false} {
		a, b := unixPair(t)
		var host, guest *side
		if guestFirst {
			guest = startGuest(t, b)
			host = startHost(t, a)
		} else {
			host = startHost(t, a)
			guest = startGuest(t, b)
		}
		together(t, host, guest)
		host.stop()
		guest.stop()
	}
}

// TestLostFrames: each frame of the agreement may be lost once, as when a virtio-serial port drops what nobody reads.
func TestLostFrames(t *testing.T) {
	for _, lost := range []wire.Type{wire.TypeGreet, wire.TypeHello, wire.TypeReady} {
		for times := 1; times <= 3; times++ {
			t.Run(fmt.Sprintf("%v %d times", lost, times), func(t *testing.T) {
				inBubbles(t, func(t *testing.T, a, b closer) {
					left := times
					drop := func(frame []byte) bool {
						if len(frame) > 4 && wire.Type(frame[4]) == lost && left > 0 {
							left--
							return true
						}
						return false
					}
					host, guest := &watched{closer: a, t: t}, &watched{closer: b, t: t}
					if lost == wire.TypeHello {
						host.drop = drop
					} else {
						guest.drop = drop
					}
					began := time.Now()
					h, g := startHost(t, host), startGuest(t, guest)
					hr, gr := h.session(), g.session()
					for len(gr.end) > 0 { // it said READY, and heard nothing
						gr = g.session()
					}
					exchange(t, hr, gr)
					// A guest whose READY was lost finds out by silence.
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("agreed after %v", took)
					}
					h.stop()
					g.stop()
				})
			})
		}
	}
}

// TestRepeatedFrames: what is said twice begins no second session.
func TestRepeatedFrames(t *testing.T) {
	t.Run("to the host", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			host, guest := startHost(t, a), byHand(t, b)
			id := guest.await(wire.TypeHello).Session
			for range 3 {
				guest.say(greet())
				if got := guest.await(wire.TypeHello).Session; got != id {
					t.Errorf("GREET was answered with session %08x, offered was %08x", got, id)
				}
			}
			guest.say(ready(id))
			s := host.session()
			guest.say(ready(id))
			guest.say(data(id, 1, "after"))
			next(t, "the frame", s.got)
			none(t, "a second session", host.began)
			host.stop()
		})
	})
	t.Run("to the guest", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			guest, host := startGuest(t, b), byHand(t, a)
			host.say(hello(77))
			s := guest.session()
			host.say(hello(77))
			host.say(hello(77))
			host.say(data(77, 1, "after"))
			next(t, "the frame", s.got)
			none(t, "a second session", guest.began)
			guest.stop()
		})
	})
}

// history is what a new process may find in a virtio-serial port: the end of a frame, frames of a session that is over, a frame that was never
// finished, and no meaning at all.
func history() map[string][]byte {
	long := data(3, 9, string(make([]byte, 60000)))
	return map[string][]byte{
		"the end of a frame":    long[1000:3000],
		"frames of a session":   append(data(3, 1, "old"), wire.Append(nil, 3, 0, 0, wire.Ping{Token: 1})...),
		"half a frame":          long[:20000],
		"a header only":         long[:wire.HeaderSize],
		"half a header":         long[:7],
		"noise":                 []byte("SPILLWAY \xff\xff\xff\xff SPILLWAY GREET\r\n SPILLWAY HELLO\r\n"),
		"half of an opening":    hello(9)[:30],
		"a READY of the past":   ready(3),
		"zeros":                 make([]byte, 5000),
		"ones, more than a buf": onesOf(300 << 10),
	}
}

func onesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

// TestHistory: a session begins whatever lies in the channel before it.
func TestHistory(t *testing.T) {
	for name, old := range history() {
		t.Run(name, func(t *testing.T) {
			t.Run("to the host", func(t *testing.T) {
				inBubbles(t, func(t *testing.T, a, b closer) {
					host, guest := startHost(t, a), byHand(t, b)
					guest.say(old)
					synctest.Wait()
					none(t, "a session out of nothing", host.began)
					guest.say(greet())
					id := guest.await(wire.TypeHello).Session
					guest.say(ready(id))
					if s := host.session(); s.session.ID != id {
						t.Errorf("session %08x, want %08x", s.session.ID, id)
					}
					host.stop()
				})
			})
			t.Run("to the guest", func(t *testing.T) {
				inBubbles(t, func(t *testing.T, a, b closer) {
					guest, host := startGuest(t, b), byHand(t, a)
					host.say(old)
					host.say(hello(0x1234))
					if s := guest.session(); s.session.ID != 0x1234 {
						t.Errorf("session %08x", s.session.ID)
					}
					if got := host.await(wire.TypeReady).Session; got != 0x1234 {
						t.Errorf("READY of session %08x", got)
					}
					guest.stop()
				})
			})
		})
	}
}

// TestVersions: sides of different versions agree on nothing, each says so, and a right one that comes later is served.
func TestVersions(t *testing.T) {
	t.Run("old guest", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			host, guest := startHost(t, a), byHand(t, b)
			guest.say(wire.Append(nil, 0, 0, 0, wire.Greet{Version: 9}))
			id := guest.await(wire.TypeHello).Session
			guest.say(wire.Append(nil, id, 0, 0, wire.Ready{Version: 9}))
			if err := next(t, "the complaint", host.ended); !errors.Is(err, ErrVersion) {
				t.Errorf("complained of %v", err)
			}
			none(t, "a session", host.began)
			guest.say(greet())
			guest.say(ready(guest.await(wire.TypeHello).Session))
			host.session()
			host.stop()
		})
	})
	t.Run("old host", func(t *testing.T) {
		inBubbles(t, func(t *testing.T, a, b closer) {
			guest, host := startGuest(t, b), byHand(t, a)
			host.say(wire.Append(nil, 5, 0, 0, wire.Hello{Version: 9, Window: 1, MaxLeases: 1}))
			if err := next(t, "the complaint", guest.ended); !errors.Is(err, ErrVersion) {
				t.Errorf("complained of %v", err)
			}
			host.await(wire.TypeReady) // so that the host can complain too
			none(t, "a session", guest.began)
			host.say(hello(6))
			if s := guest.session(); s.session.ID != 6 {
				t.Errorf("session %08x", s.session.ID)
			}
			guest.stop()
		})
	})
}
