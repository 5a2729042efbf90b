package guest

import (
	"fmt"
	"slices"

	"spillway/internal/session"
	"spillway/internal/wire"
)

// link is a session with the host (session.Handler): the connections that are leased over it and the file requests that wait for an answer.
type link struct {
	agent   *Agent
	session *session.Session

	// Guarded by agent.mu.
	draining bool // the host takes no more leases
	moving   bool // and offers no session any more: the VM moves
	leases   map[uint32]*Conn
	requests map[uint32]chan<- fileAnswer
}

// begin is called when a session has been agreed.
func (a *Agent) begin(s *session.Session) session.Handler {
	l := &link{agent: a, session: s, leases: map[uint32]*Conn{}, requests: map[uint32]chan<- fileAnswer{}}
	a.mu.Lock()
	a.links = append(a.links, l)
	if a.arrival != nil {
		close(a.arrival)
		a.arrival = nil
		a.moves++
	}
	a.mu.Unlock()
	a.stats.count(func(c *Counts) { c.Sessions++ })
	a.log.Info("session with the host", "session", fmt.Sprintf("%08x", s.ID), "max_leases", s.Hello.MaxLeases)
	return l
}

// Frame implements session.Handler.
func (l *link) Frame(head wire.Header, payload []byte) error {
	switch head.Type {
	case wire.TypeDrain:
		l.drain(head.Flags&wire.FlagMove != 0)
		return nil
	case wire.TypeAttr, wire.TypeBytes:
		return l.answer(head, payload)
	case wire.TypeForget:
		return l.agent.forget(payload)
	}
	l.agent.mu.Lock()
	c := l.leases[head.ID]
	l.agent.mu.Unlock()
	if c == nil {
		return nil // it crossed with the end of the lease
	}
	if err := c.event(head, payload); err != nil {
		return fmt.Errorf("lease %d: %v: %w", head.ID, head.Type, err)
	}
	return nil
}

// delist forgets a connection that is local again or gone.
func (l *link) delist(id uint32, c *Conn) {
	l.agent.mu.Lock()
	defer l.agent.mu.Unlock()
	if l.leases[id] == c {
		delete(l.leases, id)
		l.leave()
	}
}

// drain takes no more leases over this session.
func (l *link) drain(moving bool) {
	l.agent.mu.Lock()
	defer l.agent.mu.Unlock()
	l.draining = true
	if !moving {
		l.agent.log.Info("the host daemon is stopping; new responses are served locally")
		return
	}
	l.agent.log.Info("this VM is about to move to another host")
	l.moving = true
	if l.agent.arrival == nil {
		l.agent.arrival = make(chan struct{})
	}
	l.leave()
}

// leave ends the session of a VM that moves, when no lease is left: what the VM takes along is a channel on which nobody is in the middle of something.
// agent.mu is held.
func (l *link) leave() {
	if !l.moving || len(l.leases) > 0 {
		return
	}
	l.session.Close(session.ErrMove)
}

// End implements session.Handler: it tells every lease and every waiting request that the session is over.
func (l *link) End(err error) {
	a := l.agent
	a.mu.Lock()
	a.links = slices.DeleteFunc(a.links, func(other *link) bool { return other == l })
	leases, requests := l.leases, l.requests
	l.leases, l.requests = nil, nil
	a.mu.Unlock()
	for _, c := range leases {
		c.lost(err)
	}
	for _, r := range requests {
		close(r)
	}
}
