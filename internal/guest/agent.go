package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"spillway/internal/session"
	"spillway/internal/tcprepair"
	"spillway/internal/wire"
)

// Options of an Agent.
type Options struct {
	Policy   Policy
	BusyPoll time.Duration // see session.Options
	Logger   *slog.Logger  // nil: slog.Default()
}

// Agent is the guest's end of one channel: the session with the host, the connections that are leased over it and the file
// requests that wait for an answer. Its methods are safe for concurrent use.
type Agent struct {
	policy  Policy
	poll    time.Duration
	log     *slog.Logger
	freezer *tcprepair.Freezer     // nil: this kernel or this user cannot freeze sockets
	start   *tcprepair.StartWindow // nil: it cannot be had
	stats   *Stats
	expects expectations

	mu       sync.Mutex
	session  *session.Session // nil: the host is away
	draining bool             // the host takes no more leases
	leases   map[uint32]*Conn
	requests map[uint32]chan<- fileAnswer
	lastID   uint32
}

// expectations of what a server's goroutine waits for.
type expectations struct {
	requests session.Expectation // the client's next words
	results  session.Expectation // of a SEND
	changes  session.Expectation // of hands: GRANTED, RELEASED
}

// NewAgent makes an agent that serves everything locally until Run has found the host. The error says what this process lacks for
// offloading; in mode Off nothing is needed.
func NewAgent(opts Options) (*Agent, error) {
	a := &Agent{
		policy:   opts.Policy,
		poll:     opts.BusyPoll,
		log:      opts.Logger,
		stats:    newStats(),
		leases:   map[uint32]*Conn{},
		requests: map[uint32]chan<- fileAnswer{},
		lastID:   rand.Uint32(), // no answer to an earlier process's request is taken for one of ours
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	if a.policy.Mode == Off {
		return a, nil
	}
	freezer, err := tcprepair.NewFreezer()
	if err != nil {
		return nil, fmt.Errorf("cannot offload from here: %w; run as root (CAP_NET_ADMIN and CAP_BPF), see spillway doctor", err)
	}
	a.freezer = freezer
	if a.start, err = tcprepair.NewStartWindow(); err != nil {
		a.log.Info("connections that come back begin slowly", "reason", err)
	}
	return a, nil
}

// Close frees what NewAgent took. No connection may be in use any more.
func (a *Agent) Close() error {
	if a.freezer == nil {
		return nil
	}
	return errors.Join(a.freezer.Close(), a.start.Close())
}

// Serve runs sessions over conn until it fails or ctx is done. One call at a time; channel.Keep calls it again on the next connection.
func (a *Agent) Serve(ctx context.Context, conn session.Conn) error {
	ended := func(err error) {
		if ctx.Err() == nil { // else we have ended it, and err is only how it was interrupted
			a.log.Warn("session with the host ended; serving locally", "error", err)
		}
	}
	return session.Guest(ctx, conn, session.Options{BusyPoll: a.poll, Ended: ended}, a.begin)
}

// begin is called when a session has been agreed.
func (a *Agent) begin(s *session.Session) session.Handler {
	a.mu.Lock()
	a.session, a.draining = s, false
	a.mu.Unlock()
	a.stats.count(func(c *Counts) { c.Sessions++ })
	a.log.Info("session with the host", "session", fmt.Sprintf("%08x", s.ID), "max_leases", s.Hello.MaxLeases)
	return &handler{a, s}
}

// Stats returns the live counters.
func (a *Agent) Stats() *Stats { return a.stats }

// Snapshot returns the counters and the state of the agent.
func (a *Agent) Snapshot() Snapshot {
	s := a.stats.snapshot()
	s.Mode = a.policy.Mode.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Leases = len(a.leases)
	switch {
	case a.session == nil:
		s.Host = "away"
	case a.draining:
		s.Host = "draining"
	default:
		s.Host = "up"
	}
	return s
}

// enlist gives c an id on the present session.
func (a *Agent) enlist(c *Conn) (*session.Session, uint32, wire.Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.session == nil:
		return nil, 0, wire.ReasonHostAway
	case a.draining:
		return nil, 0, wire.ReasonDraining
	case len(a.leases) >= int(a.session.Hello.MaxLeases):
		return nil, 0, wire.ReasonLimit
	}
	id := a.nextID(func(id uint32) bool { return a.leases[id] != nil })
	a.leases[id] = c
	return a.session, id, wire.ReasonOK
}

// nextID finds an id that is not in use. a.mu is held.
func (a *Agent) nextID(used func(uint32) bool) uint32 {
	for {
		a.lastID++
		if a.lastID != 0 && !used(a.lastID) {
			return a.lastID
		}
	}
}

// delist forgets a connection that is local again or gone.
func (a *Agent) delist(id uint32, c *Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leases[id] == c {
		delete(a.leases, id)
	}
}

// handler takes the frames of one session (session.Handler).
type handler struct {
	agent   *Agent
	session *session.Session
}

func (h *handler) Frame(head wire.Header, payload []byte) error {
	switch head.Type {
	case wire.TypeDrain:
		h.agent.mu.Lock()
		h.agent.draining = true
		h.agent.mu.Unlock()
		h.agent.log.Info("the host daemon is stopping; new responses are served locally")
		return nil
	case wire.TypeAttr, wire.TypeBytes:
		return h.agent.answer(head, payload)
	}
	h.agent.mu.Lock()
	c := h.agent.leases[head.ID]
	h.agent.mu.Unlock()
	if c == nil {
		return nil // it crossed with the end of the lease
	}
	if err := c.event(head, payload); err != nil {
		return fmt.Errorf("lease %d: %v: %w", head.ID, head.Type, err)
	}
	return nil
}

// End tells every lease and every waiting request that the session is over.
func (h *handler) End(err error) {
	a := h.agent
	a.mu.Lock()
	a.session = nil
	leases, requests := a.leases, a.requests
	a.leases, a.requests = map[uint32]*Conn{}, map[uint32]chan<- fileAnswer{}
	a.mu.Unlock()
	for _, c := range leases {
		c.lost(err)
	}
	for _, r := range requests {
		close(r)
	}
}
