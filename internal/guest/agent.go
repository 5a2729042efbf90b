package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"spillway/internal/loglimit"
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

// Agent is the guest's end of the channels to the host, of which each has one session at a time. Its methods are safe for concurrent use.
type Agent struct {
	policy  Policy
	poll    time.Duration
	log     *slog.Logger
	freezer *tcprepair.Freezer     // nil: this kernel or this user cannot freeze sockets
	start   *tcprepair.StartWindow // nil: it cannot be had
	stats   *Stats
	costs   *costs // nil: the threshold is fixed
	expects expectations

	// What a broken host or kernel causes at every request. Two, so that neither hides the other.
	handovers, handbacks loglimit.Limiter

	mu      sync.Mutex
	links   []*link                        // none: the host is away
	arrival chan struct{}                  // not nil: this VM moves; closed when the next session begins
	moves   uint64                         // that have ended so
	keepers map[string][]func(path string) // by share; see OnForget
	lastID  uint32
}

// expectations of what a server's goroutine waits for.
type expectations struct {
	requests session.Expectation // the client's next words
	results  session.Expectation // of a SEND
	changes  session.Expectation // of hands: GRANTED, RELEASED
}

// rightsHint says what to do when the kernel lets this process load no program. Before Linux 5.11 such programs count as locked memory.
const rightsHint = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW (and LimitMEMLOCK=infinity before Linux 5.11); " +
	"`spillway doctor guest` says what is missing; mode off serves without offloading"

// NewAgent makes an agent that serves everything locally until Run has found the host. The error says what this process lacks for
// offloading; in mode Off nothing is needed.
func NewAgent(opts Options) (*Agent, error) {
	a := &Agent{
		policy: opts.Policy,
		poll:   opts.BusyPoll,
		log:    opts.Logger,
		stats:  newStats(),
		lastID: rand.Uint32(), // no answer to an earlier process's request is taken for one of ours
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	if a.policy.Mode == Off {
		return a, nil
	}
	if a.policy.Threshold == ThresholdAuto {
		a.costs = &costs{mode: a.policy.Mode}
	}
	freezer, err := tcprepair.NewFreezer()
	if err != nil {
		return nil, fmt.Errorf("cannot offload from here: %w; %s", err, rightsHint)
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

// Serve runs sessions over conn until it fails or ctx is done. One call at a time for each channel; channel.Keep calls it again on the next connection.
func (a *Agent) Serve(ctx context.Context, conn session.Conn) error {
	ended := func(err error) {
		switch {
		case errors.Is(err, session.ErrMove):
			a.log.Info("session with the host ended", "reason", err)
		case ctx.Err() == nil: // else we have ended it, and err is only how it was interrupted
			a.log.Warn("session with the host ended", "error", err)
		}
	}
	return session.Guest(ctx, conn, session.Options{BusyPoll: a.poll, Ended: ended}, a.begin)
}

// warn logs what went wrong with a connection, if the limit allows a line now.
func (a *Agent) warn(limit *loglimit.Limiter, text string, c *Conn, err error) {
	if skipped, ok := limit.Allow(); ok {
		a.log.Warn(text, "client", c.remote, "error", err, "not_logged", skipped)
	}
}

// Stats returns the live counters.
func (a *Agent) Stats() *Stats { return a.stats }

// Snapshot returns the counters and the state of the agent.
func (a *Agent) Snapshot() Snapshot {
	s := a.stats.snapshot()
	s.Mode = a.policy.Mode.String()
	s.Host, s.Channels, s.Leases = a.state()
	if a.costs != nil {
		s.Learned = a.costs.learned()
	}
	return s
}

// states of the host, as this side sees it.
const (
	hostUp       = "up"
	hostDraining = "draining" // it takes no more leases
	hostAway     = "away"     // there is no session
)

// state returns that of the host, the number of sessions and of leases.
func (a *Agent) state() (host string, channels, leases int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	host = hostAway
	for _, l := range a.links {
		leases += len(l.leases)
		if !l.draining {
			host = hostUp
		} else if host == hostAway {
			host = hostDraining
		}
	}
	return host, len(a.links), leases
}

// enlist gives c an id on the session that has the fewest leases.
func (a *Agent) enlist(c *Conn) (*link, uint32, wire.Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.links) == 0 {
		return nil, 0, wire.ReasonHostAway
	}
	var best *link
	leases := 0
	for _, l := range a.links {
		leases += len(l.leases)
		if !l.draining && (best == nil || len(l.leases) < len(best.leases)) {
			best = l
		}
	}
	switch {
	case best == nil:
		return nil, 0, wire.ReasonDraining
	case leases >= int(best.session.Hello.MaxLeases): // the host counts those of all sessions of this VM
		return nil, 0, wire.ReasonLimit
	}
	id := a.nextID(func(id uint32) bool { return best.leases[id] != nil })
	best.leases[id] = c
	return best, id, wire.ReasonOK
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
