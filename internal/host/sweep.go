package host

import (
	"context"
	"errors"
	"time"

	"spillway/internal/config"
	"spillway/internal/wire"
)

// Sweeps per timeout, which is thus exceeded by at most an eighth.
const sweepsPerTimeout = 8

// progress is what the sweeper remembers of a lease.
type progress struct {
	acked   int64     // bytes that the client had acknowledged at the last sweep
	since   time.Time // when that changed last
	allDone bool      // and nothing was left to acknowledge
}

// sweep looks after all leases until ctx is done: one ticker instead of a timer for each SEND.
func (d *Daemon) sweep(ctx context.Context) {
	limits := &d.cfg.Limits
	shorter := min(limits.StallTimeout.Value(), limits.SessionTimeout.Value())
	tick := time.NewTicker(max(shorter/sweepsPerTimeout, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, v := range d.vms {
				v.eachLease(func(l *leaseConn) { l.sweep(now, limits) })
			}
		}
	}
}

// errNoAnswer ends the session of a guest that leaves a client frozen for as long as a silent guest would be believed.
var errNoAnswer = errors.New("the guest does not answer HANDBACK")

// sweep gives a connection back whose client has acknowledged no byte for the stall time-out while there are some to acknowledge: how long to bear with such a
// client is the server's matter. A client that takes one byte now and then is slow, not stalled.
func (l *leaseConn) sweep(now time.Time, limits *config.Limits) {
	l.mu.Lock()
	live := l.live
	silent := l.awaiting && l.answer == 0 && now.Sub(l.asked) > limits.SessionTimeout.Value()
	l.mu.Unlock()
	if silent {
		l.handler.session.Close(errNoAnswer)
	}
	p := &l.progress
	written := l.socket.written.Load()
	if !live || p.allDone && written == p.acked {
		return
	}
	unacked, err := l.socket.outstanding()
	if err != nil {
		return // closed meanwhile
	}
	acked := written - int64(unacked)
	if p.allDone = unacked == 0; p.allDone {
		l.mu.Lock()
		l.dropPieces() // an idle lease keeps nothing
		l.mu.Unlock()
	}
	switch {
	case p.allDone, acked != p.acked, p.since.IsZero():
		p.acked, p.since = acked, now
	case acked == 0 && !l.seen && now.Sub(p.since) > l.vm.blind.after():
		l.blind(now)
	case now.Sub(p.since) > limits.StallTimeout.Value():
		p.since = now // if the handback is called off, it is tried again
		l.callBack()
	}
	if acked > 0 {
		l.vm.blind.seen()
	}
}

// blind ends a lease whose client does not reach our socket.
func (l *leaseConn) blind(now time.Time) {
	if l.vm.blind.unseen(now) {
		l.vm.log.Error("clients do not reach this host's sockets: no connection is taken over for a while",
			"client", l.state.Remote, "local", l.state.Local, "for", blindFor)
	}
	l.reset(wire.ReasonClientStalled)
}
