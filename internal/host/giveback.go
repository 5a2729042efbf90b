package host

import (
	"errors"
	"runtime"
	"time"

	"spillway/internal/lease"
	"spillway/internal/tcprepair"
	"spillway/internal/wire"
)

// Pauses of a drain. On a LAN the acknowledgement comes within microseconds of the last byte.
const (
	drainYields   = 16
	drainSleepMin = 50 * time.Microsecond
	drainSleepMax = time.Millisecond
)

// errUnsettled ends a return for which the connection is not idle after all.
var errUnsettled = errors.New("the connection is not idle")

// giveBack gives the connection back to the guest, if nothing is in the way, and waits for the guest's answer. A reason other than ReasonOK means
// that the lease is over.
//
// Nothing of the client's gets lost: its acknowledgements and what it says reach our socket until the guest's lives, and are passed on.
func (l *leaseConn) giveBack() wire.Reason {
	began := l.vm.daemon.now()
	if !l.await(func() bool { n, err := l.socket.outstanding(); return err == nil && n == 0 }) {
		return l.keep(errUnsettled)
	}
	l.vm.daemon.step(StepDrain, began)
	return l.handBack(nil, func() (int64, error) { return -1, nil })
}

// cutShort is giveBack in the middle of a file, of which the first byte is the client's byte number before, as counted from the beginning of the lease.
func (l *leaseConn) cutShort(before int64) wire.Reason {
	l.mu.Lock()
	l.recall = recallTried
	l.mu.Unlock()
	// The guest has what came before no more.
	if !l.await(func() bool { p, err := l.socket.progress(); return err == nil && p.Sent >= uint64(before) }) {
		return l.keep(errUnsettled)
	}
	settle := func() error {
		began := l.vm.daemon.now()
		if !l.await(func() bool { p, err := l.socket.progress(); return err == nil && p.Acked == p.Sent }) {
			return errUnsettled
		}
		l.vm.daemon.step(StepDrain, began)
		return nil
	}
	return l.handBack(settle, func() (int64, error) {
		p, err := l.socket.progress()
		l.socket.sent = p.Sent
		return int64(p.Sent) - before, err
	})
}

// keep goes on with a lease that was not given back, unless its phase says otherwise.
func (l *leaseConn) keep(err error) wire.Reason {
	l.hear(relays)
	l.vm.counters.keeps.Add(1)
	l.grant(creditStep) // which was kept back so that the guest would come to a stop
	if l.end.Phase() != lease.Leased {
		l.complainOnce("a connection broke while it was given back", err)
		return wire.ReasonKernel
	}
	return wire.ReasonOK
}

// await waits until the client has acknowledged enough. It gives up when something else is to be done.
func (l *leaseConn) await(enough func() bool) bool {
	limit := time.Now().Add(l.vm.daemon.cfg.Limits.DrainTimeout.Value())
	pause := drainSleepMin
	for i := 0; ; i++ {
		done := enough()
		l.mu.Lock()
		idle := l.settled()
		l.mu.Unlock()
		switch {
		case !idle:
			return false
		case done:
			return true
		case i < drainYields:
			runtime.Gosched()
		case time.Now().After(limit):
			return false
		default:
			time.Sleep(pause)
			pause = min(2*pause, drainSleepMax)
		}
	}
}

// handBack sends HANDBACK and does what the answer asks for. settle is that of lease.Host.Return, sent what HANDBACK tells of the SEND under way.
func (l *leaseConn) handBack(settle func() error, sent func() (int64, error)) wire.Reason {
	if err := l.offer(settle, sent); err != nil {
		return l.keep(err)
	}
	began := l.vm.daemon.now()
	var err error
	switch l.awaitAnswer() {
	case wire.TypeTaken:
		over := l.release()
		l.vm.daemon.step(StepRelease, began)
		return over
	case wire.TypeKeep:
		err = l.end.Kept()
		l.since = time.Now()
	default: // the session has ended, or the lease must
		err = l.end.Lost()
	}
	return l.keep(err)
}

// offer reads the connection's state and sends HANDBACK.
func (l *leaseConn) offer(settle func() error, sent func() (int64, error)) error {
	l.leased = time.Since(l.since)
	began := l.vm.daemon.now()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	l.hear(rests)
	said, err := l.takeUnread()
	if err != nil {
		return err
	}
	st := l.state
	err = l.end.Return(&st, settle, func() error {
		l.vm.daemon.step(StepExtract, began)
		bytes, err := sent()
		if err != nil {
			return err
		}
		l.mu.Lock()
		if !l.settled() {
			l.mu.Unlock()
			return errUnsettled
		}
		// Together with settled: what comes from now on has crossed with HANDBACK, and the guest answers KEEP.
		l.awaiting, l.answer, l.asked = true, 0, time.Now()
		hb := wire.Handback{State: st, Data: l.taken, Sent: bytes, Said: said}
		l.mu.Unlock()
		err = send(l.handler, l.id, 0, hb)
		if err != nil {
			l.mu.Lock()
			l.awaiting = false
			l.mu.Unlock()
		}
		return err
	})
	l.socket.clientWaits = len(said) > 0
	if err != nil && len(said) > 0 {
		_ = send(l.handler, l.id, 0, wire.Data{Data: said}) // a session that has ended tells by itself
	}
	return err
}

// awaitAnswer waits for TAKEN or KEEP. It returns 0 when none can come any more.
func (l *leaseConn) awaitAnswer() wire.Type {
	l.handler.session.Poll(&l.vm.expects.answers, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.answer != 0 || l.over != wire.ReasonOK
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.answer == 0 && !l.orphan && (l.over == wire.ReasonOK || l.over == wire.ReasonClosed) {
		l.work.Wait()
	}
	l.awaiting = false
	return l.answer
}

// release lets go of a connection that the guest has taken.
func (l *leaseConn) release() (over wire.Reason) {
	if err := l.end.Taken(l.passLate); err != nil {
		// The guest resets the connection when it hears CLOSED.
		if errors.Is(err, tcprepair.ErrNotEstablished) {
			return wire.ReasonClientGone
		}
		l.complainOnce("a connection was lost while it was given back", err)
		return wire.ReasonKernel
	}
	l.vm.counters.handbacks.Add(1)
	l.handler.forget(l) // before the guest may use the id again
	_ = send(l.handler, l.id, 0, wire.Released{Window: l.socket.snapshot.Window.Peer(), Leased: uint64(l.leased)})
	if l.socket.clientWaits {
		before := l.handler.handovers.Load()
		l.handler.session.Poll(&l.vm.expects.handovers, func() bool { return l.handler.handovers.Load() != before })
	}
	l.close()
	return wire.ReasonOK
}

// passLate tells the guest what the client has said since HANDBACK: no credit is asked for, as our kernel has acknowledged it.
func (l *leaseConn) passLate(p []byte, end bool) {
	var frames []byte
	for len(p) > 0 {
		n := min(len(p), wire.MaxData)
		frames = wire.Append(frames, l.handler.session.ID, l.id, 0, wire.Data{Data: p[:n]})
		p = p[n:]
	}
	if end {
		frames = wire.Append(frames, l.handler.session.ID, l.id, 0, wire.End{})
	}
	l.vm.counters.relayed.Add(uint64(len(frames)))
	_ = l.handler.session.Write(frames) // a session that has ended tells by itself
}

func (l *leaseConn) complainOnce(text string, err error) {
	if skipped, ok := l.vm.complain.allow(); ok {
		l.vm.log.Warn(text, "lease", l.id, "client", l.state.Remote, "error", err, "not_logged", skipped)
	}
}
