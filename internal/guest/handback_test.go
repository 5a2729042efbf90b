package guest

import (
	"errors"
	"io"
	"testing"
	"time"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// TestOffload is the mode in which the connection is local again after each response.
func TestOffload(t *testing.T) {
	r := newRig(t, Policy{Mode: Offload})
	s := r.script()
	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	const size = 10_000
	const rounds = 5
	for round := range rounds {
		f, _ := newFile(size)
		done := send(h.server, header(size), f)
		state, head := hear[wire.Handover](s)
		if _, head := hear[wire.Send](s); head.Flags&wire.FlagReturn == 0 {
			t.Error("SEND without RETURN")
		}
		s.say(head.ID, 0, wire.Granted{})
		s.say(head.ID, wire.FlagStarted, wire.Sent{Bytes: size})
		await(t, done, size, nil)
		s.say(head.ID, 0, wire.Handback{Sent: -1, State: state.State, Said: []byte("next but one")[:round]})
		hear[wire.Taken](s)
		if h.server.phase() != lease.Returning {
			t.Errorf("phase is %v", h.server.phase())
		}
		if round > 0 {
			h.serverReads("next but one"[:round]) // it need not wait for RELEASED
		}
		if round%2 == 0 { // a new owner, and nothing was said
			s.say(head.ID, 0, wire.Released{Window: state.State.Window.Peer(), Leased: 1000})
			if _, err := h.client.Write([]byte("next")); err != nil {
				t.Fatal(err)
			}
			h.serverReads("next")
			continue
		}
		// In this test the client's kernel has not said these bytes, so the sequence numbers are wrong from here on; package tcprepair's tests and
		// the end-to-end ones have both ends of it.
		s.say(head.ID, 0, wire.Data{Data: []byte("next")})
		s.say(head.ID, 0, wire.Released{Window: state.State.Window.Peer(), Leased: 1000})
		h.serverReads("next")
		h.client.Close()
		h.client, h.server = r.connect()
	}
	snap := r.agent.Snapshot()
	if c := snap.Counts; c.Handovers != rounds || c.Handbacks != rounds || c.Sends != rounds || c.SentBytes != rounds*size || c.Kept != 0 {
		t.Errorf("counts are %+v", c)
	}
	for _, step := range []Step{StepFreeze, StepHandover, StepRestore, StepRelease, StepHandback, StepLeased, StepRound} {
		if q := snap.Steps[step]; q.N != rounds || q.Median <= 0 || q.P99 < q.Median {
			t.Errorf("step %s is %+v", step, q)
		}
	}
	s.lives()
}

// TestLateEnd: the client closes its direction during the handback, which only the host's kernel has seen.
func TestLateEnd(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.leased(s)
	s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
	hear[wire.Taken](s)
	s.say(h.id, 0, wire.Data{Data: []byte("last words")})
	s.say(h.id, 0, wire.End{})
	s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
	got, err := io.ReadAll(h.server)
	if string(got) != "last words" || err != nil {
		t.Errorf("the server reads %q, %v", got, err)
	}
	f, _ := newFile(bodySize)
	if n, err := h.server.ReadFrom(f); n != bodySize || err != nil {
		t.Errorf("ReadFrom says %d, %v", n, err)
	}
	if n := r.agent.Snapshot().Fallbacks["not-established"]; n != 1 {
		t.Errorf("%d fallbacks for not-established, want 1", n)
	}
	s.silent()
	s.lives()
}

// TestRecall: an idle connection comes back while the server is blocked in Read, which goes on at the socket.
func TestRecall(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.leased(s)
	for round := range 5 {
		read := make(chan string, 1)
		go func() {
			p := make([]byte, 100)
			n, err := h.server.Read(p)
			if err != nil {
				t.Error(err)
			}
			read <- string(p[:n])
		}()
		if round%2 == 0 {
			time.Sleep(2 * time.Millisecond) // let it block; without that, it may begin at any moment
		}
		s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
		hear[wire.Taken](s)
		s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		if _, err := h.client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-read:
			if got != "hello" {
				t.Errorf("the server reads %q", got)
			}
		case <-time.After(patience):
			t.Fatal("Read does not return")
		}
		// What had come through the host before a recall is read before what comes at the socket.
		h.begin()
		s.say(h.id, 0, wire.Granted{})
		h.sent()
		s.say(h.id, 0, wire.Data{Data: []byte("first ")})
		s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
		hear[wire.Taken](s)
		s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		if _, err := h.client.Write([]byte("second")); err != nil {
			t.Fatal(err)
		}
		h.serverReads("first second")
		h.begin()
		s.say(h.id, 0, wire.Granted{})
		h.sent()
	}
	h.over(wire.ReasonClientGone)
	s.lives()
}

// TestCutShort: a recall in the middle of a response leaves the rest to the guest, whose server notices nothing.
func TestCutShort(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.handOver(s)
	s.say(h.id, 0, wire.Granted{})
	for _, sent := range []int64{0, 40_000, bodySize - 1, bodySize} {
		s.say(h.id, 0, wire.Handback{State: h.state.State, Sent: sent})
		hear[wire.Taken](s)
		s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		await(t, h.done, bodySize, nil)
		h.clientReads(h.body[sent:]) // the rest; this test's host has sent nothing
		h.begin()
		s.say(h.id, 0, wire.Granted{})
	}
	h.sent()
	if c := r.agent.Snapshot().Counts; c.Handbacks != 4 || c.SentBytes != 40_000+3*bodySize-1 || c.LocalBytes != 2*bodySize-40_000+1 {
		t.Errorf("counts are %+v", c)
	}
	h.over(wire.ReasonClientGone)
	s.lives()
}

// TestKeep: a handback with which something of this side's has crossed does not come about, and the lease goes on.
func TestKeep(t *testing.T) {
	for _, c := range []struct {
		name string
		say  func(t *testing.T, h *handing) (dataHeard uint64) // what the guest says, and what HANDBACK then tells
	}{
		{"DATA has crossed", func(t *testing.T, h *handing) uint64 {
			if _, err := h.server.Write([]byte("12345")); err != nil {
				t.Error(err)
			}
			hear[wire.Data](h.script)
			return 3
		}},
		{"SEND has crossed", func(t *testing.T, h *handing) uint64 {
			h.next()
			return 0
		}},
		{"END has crossed", func(t *testing.T, h *handing) uint64 {
			if err := h.server.CloseWrite(); err != nil {
				t.Error(err)
			}
			hear[wire.End](h.script)
			return 0
		}},
		{"no SEND to cut short", func(*testing.T, *handing) uint64 { return 0 }},
		{"CLOSE has crossed", func(t *testing.T, h *handing) uint64 {
			h.server.Close()
			hear[wire.Close](h.script)
			return 0
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			h := r.leased(s)
			heard := c.say(t, h)
			sent := int64(-1)
			if c.name == "no SEND to cut short" {
				sent = 0
			}
			s.say(h.id, 0, wire.Handback{Sent: sent, State: h.state.State, Data: heard})
			if keep, _ := hear[wire.Keep](s); keep.Reason != wire.ReasonUnacked {
				t.Errorf("KEEP is for %v", keep.Reason)
			}
			if h.server.phase() != lease.Leased {
				t.Errorf("phase is %v", h.server.phase())
			}
			if sent, ok := r.agent.Snapshot().Counts.Kept, uint64(1); sent != ok {
				t.Errorf("kept is %d", sent)
			}
			if c.name == "SEND has crossed" {
				h.sent()
			}
			s.say(h.id, 0, wire.Data{Data: []byte("hello")})
			if c.name != "CLOSE has crossed" {
				h.serverReads("hello")
			}
			h.over(wire.ReasonClientGone)
			s.lives()
		})
	}
}

// TestHandbackBroken: a state that cannot be restored leaves the connection on the host, for good, and the guest's socket silent.
func TestHandbackBroken(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.leased(s)
	broken := h.state.State
	broken.Local, broken.Remote = broken.Remote, broken.Local // this 4-tuple is the client's
	for range 2 {
		s.say(h.id, 0, wire.Handback{Sent: -1, State: broken})
		if keep, _ := hear[wire.Keep](s); keep.Reason != wire.ReasonKernel {
			t.Errorf("KEEP is for %v", keep.Reason)
		}
	}
	s.say(h.id, 0, wire.Data{Data: []byte("hello")})
	h.serverReads("hello")
	h.next()
	h.sent()
	h.server.Close()
	hear[wire.Close](s)
	h.over(wire.ReasonClosed)
	s.lives()
}

// TestBreaches: what a host may not say ends the session, and nothing worse.
func TestBreaches(t *testing.T) {
	for name, say := range map[string]func(h *handing){
		"GRANTED twice":             func(h *handing) { h.say(h.id, 0, wire.Granted{}) },
		"REFUSED after GRANTED":     func(h *handing) { h.say(h.id, 0, wire.Refused{Reason: wire.ReasonLimit}) },
		"SENT without SEND":         func(h *handing) { h.say(h.id, wire.FlagStarted, wire.Sent{Bytes: 1}) },
		"RELEASED without HANDBACK": func(h *handing) { h.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()}) },
		"HANDBACK with more sent than asked for": func(h *handing) {
			h.next()
			h.say(h.id, 0, wire.Handback{State: h.state.State, Sent: bodySize + 1})
		},
		"a guest's frame": func(h *handing) { h.say(h.id, 0, wire.Taken{}) },
		"DATA beyond the window": func(h *handing) {
			for range 4 {
				h.say(h.id, 0, wire.Data{Data: make([]byte, wire.MaxData)})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			h := r.leased(s)
			say(h)
			select {
			case <-s.ended:
			case <-time.After(patience):
				t.Fatal("the session goes on")
			}
			r.eventually("the connection is over", func() bool { return h.server.phase() == lease.Gone })
			_, err := io.ReadAll(h.server)
			if err == nil {
				t.Error("Read reports no error")
			}
			if n := r.agent.Snapshot().Counts.Lost; n != 1 {
				t.Errorf("lost is %d", n)
			}
		})
	}
}

// TestUnknownLease: frames of a lease that is over have crossed with its end.
func TestUnknownLease(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.leased(s)
	h.over(wire.ReasonClientGone)
	s.say(h.id, 0, wire.Data{Data: []byte("late")})
	s.say(h.id, 0, wire.Credit{Bytes: 1})
	s.say(h.id, 0, wire.End{})
	s.say(4711, 0, wire.Granted{})
	r.eventually("the connection is over", func() bool { return h.server.phase() == lease.Gone })
	if _, err := h.server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read says %v", err)
	}
	s.silent()
	s.lives()
}
