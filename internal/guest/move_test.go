package guest

import (
	"errors"
	"io"
	"testing"
	"time"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// newSession waits until the session that was there has ended and another one has begun.
func (s *script) newSession(before uint32) {
	s.tb.Helper()
	<-s.ended
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		now := s.session.ID
		s.mu.Unlock()
		if now != before {
			return
		}
		if time.Now().After(deadline) {
			s.tb.Fatal("no other session begins")
		}
	}
}

func (s *script) sessionID(r *rig) uint32 {
	s.tb.Helper()
	r.eventually("the host's session", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.session != nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session.ID
}

// TestMove: a VM that is about to move begins no lease, keeps its session as long as it has one, and ends it then.
func TestMove(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	before := s.sessionID(r)
	h := r.leased(s)
	s.say(0, wire.FlagMove, wire.Drain{})
	r.eventually("the agent drains", func() bool { return r.agent.Snapshot().Host == hostDraining })

	client, server := r.connect()
	f, body := newFile(bodySize)
	done := send(server, header(bodySize), struct{ io.Reader }{f}) // nothing of the host's
	got := make([]byte, len(header(bodySize))+bodySize)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != header(bodySize)+string(body) {
		t.Fatalf("a response while the VM is about to move: %v", err)
	}
	await(t, done, bodySize, nil)
	s.silent()
	s.lives()

	h.over(wire.ReasonClientGone)
	r.eventually("the lease is over", func() bool { return h.server.phase() == lease.Gone })
	s.newSession(before)
	r.eventually("the host is up", func() bool { return r.agent.Snapshot().Host == hostUp })
	again := r.leased(s)
	again.over(wire.ReasonClientGone)
}

// TestMoveRequests: a request for a file that the move meets is made again at the other host, and one that comes meanwhile waits.
func TestMoveRequests(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	before := s.sessionID(r)
	ask := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			size, _, err := r.agent.Stat("media", "f")
			if err == nil && size != 77 {
				err = errors.New("the wrong size")
			}
			done <- err
		}()
		return done
	}
	met := ask()
	hear[wire.Stat](s)
	s.say(0, wire.FlagMove, wire.Drain{})
	s.newSession(before)
	late := ask()
	for range 2 {
		_, head := hear[wire.Stat](s)
		s.say(head.ID, 0, wire.Attr{Size: 77})
	}
	for _, done := range []<-chan error{met, late} {
		if err := <-done; err != nil {
			t.Errorf("Stat: %v", err)
		}
	}
	s.lives()
}

// TestMoveNowhere: where no host is found, requests end.
func TestMoveNowhere(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	r.agent.mu.Lock()
	r.agent.arrival = make(chan struct{})
	r.agent.mu.Unlock()
	if r.agent.awaitArrival(time.Millisecond) {
		t.Error("there is no host, and it was found")
	}
	if _, err := askFor(r.agent, wire.Stat{Share: "media", Path: "f"}); !errors.Is(err, wire.ReasonSession) || err != errMoving {
		t.Errorf("a request of a VM that moves: %v", err)
	}
}
