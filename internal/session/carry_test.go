package session

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"spillway/internal/wire"
)

// carrier is a host at work on a unix socket.
func carrier(t *testing.T, conn *net.UnixConn, offer func(context.Context) (*State, error)) (began chan *recorder, stop func()) {
	t.Helper()
	s := &side{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	began, done := make(chan *recorder, 10), make(chan struct{})
	go func() {
		defer close(done)
		_ = Host(ctx, conn, testHello, Options{Offer: offer}, func(session *Session) Handler {
			r := &recorder{side: s, session: session, got: make(chan string, 100), end: make(chan error, 10)}
			began <- r
			return r
		})
	}()
	return began, func() { cancel(); <-done }
}

// frozen is a session with one host that has been frozen and collected in the middle of a frame, with an answer that has not left, and the rest of the guest's frame.
func frozen(t *testing.T) (h *recorder, guest *peer, rest []byte, stop func()) {
	t.Helper()
	a, b := unixPair(t)
	began, stop := carrier(t, a, nil)
	guest = byHand(t, b)
	id := guest.await(wire.TypeHello).Session
	guest.say(ready(id))
	h = next(t, "a session", began)
	if err := h.session.Freeze(time.Second); err != nil {
		t.Fatal(err)
	}
	if err := h.session.Write(data(id, 5, "kept back")); err != nil {
		t.Fatal(err)
	}
	torn := data(id, 6, "torn")
	guest.say(append(data(id, 6, "whole"), torn[:15]...))
	if err := h.session.Collect(); err != nil {
		t.Fatal(err)
	}
	if got := next(t, "the frame", h.got); got != frameText(6, "whole") {
		t.Errorf("the handler has %s", got)
	}
	return h, guest, torn[15:], stop
}

// TestCarry: a session goes on over another channel: what had not left leaves there, and the rest of a frame is taken for just that.
func TestCarry(t *testing.T) {
	h, guest, rest, stop := frozen(t)
	defer stop()
	st := h.session.State()
	if st.ID != h.session.ID || st.Hello.MaxLeases != testHello.MaxLeases || len(st.Input) != 15 || !bytes.Equal(st.Output, data(st.ID, 5, "kept back")) {
		t.Fatalf("%+v", st)
	}
	a, b := unixPair(t)
	states := make(chan *State, 1)
	states <- &st
	began, stopThere := carrier(t, a, func(ctx context.Context) (*State, error) {
		select {
		case st := <-states:
			return st, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	defer stopThere()
	there := next(t, "the session", began)
	if there.session.ID != st.ID {
		t.Errorf("session %08x, want %08x", there.session.ID, st.ID)
	}
	moved := byHand(t, b)
	if got := next(t, "what had not left", moved.frames); got != frameText(5, "kept back") {
		t.Errorf("the guest hears %s first", got)
	}
	moved.say(append(rest, data(st.ID, 6, "next")...))
	for _, want := range []string{"torn", "next"} {
		if got := next(t, "a frame", there.got); got != frameText(6, want) {
			t.Errorf("the new host has %s, want %s", got, want)
		}
	}
	next(t, "HELLO", guest.frames)
	none(t, "the old host has said something", guest.frames)
	none(t, "the new host says HELLO", moved.frames)
}

// TestCarryNot: the session goes on where it was, with what both sides have said meanwhile.
func TestCarryNot(t *testing.T) {
	h, guest, rest, stop := frozen(t)
	defer stop()
	if err := h.session.Silent(); err != nil {
		t.Error(err)
	}
	guest.say(append(rest, data(h.session.ID, 6, "next")...))
	if err := h.session.Silent(); err == nil || !strings.Contains(err.Error(), "more after it was paused") {
		t.Errorf("Silent: %v", err)
	}
	time.Sleep(10 * time.Millisecond) // the session's goroutine is woken, and leaves it
	none(t, "a frozen session takes a frame", h.got)
	h.session.Thaw()
	for _, want := range []string{"torn", "next"} {
		if got := next(t, "a frame", h.got); got != frameText(6, want) {
			t.Errorf("the host has %s, want %s", got, want)
		}
	}
	next(t, "HELLO", guest.frames)
	if got := next(t, "what had not left", guest.frames); got != frameText(5, "kept back") {
		t.Errorf("the guest hears %s", got)
	}
	guest.say(data(h.session.ID, 6, "as ever"))
	next(t, "a frame", h.got)
}

// TestFreezeStuck: a guest that takes nothing keeps its session where it is.
func TestFreezeStuck(t *testing.T) {
	a, b := unixPair(t)
	began, stop := carrier(t, a, nil)
	defer stop()
	r := wire.NewGuestReader(b)
	hello, _, err := r.Sync()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(ready(hello.Session)); err != nil {
		t.Fatal(err)
	}
	h := next(t, "a session", began)
	if err := h.session.Write(data(hello.Session, 5, "not taken")); err != nil {
		t.Fatal(err)
	}
	if err := h.session.Freeze(10 * time.Millisecond); err != errTalks {
		t.Fatalf("Freeze: %v", err)
	}
	if err := h.session.Write(data(hello.Session, 5, "nor this")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"not taken", "nor this"} {
		if _, p, err := r.Next(); err != nil || !strings.Contains(string(p), want) {
			t.Errorf("the guest hears %q, %v", p, err)
		}
	}
}
