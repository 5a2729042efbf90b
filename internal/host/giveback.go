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
	began := time.Now()
	if !l.await(l.drained) {
		return l.keep(errUnsettled)
	}
	l.vm.counters.took(stepDrain, began)
	return l.handBack(nil, func() int64 { return -1 })
}

// cutShort is giveBack in the middle of a file, whose first byte was written behind before others, as counted from the beginning of the lease.
func (l *leaseConn) cutShort(before int64) wire.Reason {
	l.mu.Lock()
	l.doing, l.recall = drains, recallTried
	l.mu.Unlock()
	unsent := func() int64 { n, _ := l.socket.unsent(); return int64(n) } // of a broken socket nothing comes of it anyway
	// The guest has what came before no more, so it must be on its way. A header waits for the file's first bytes (MSG_MORE), in vain now.
	l.socket.push()
	if !l.await(func() bool { return l.socket.written.Load()-unsent() >= before }) {
		return l.keep(errUnsettled)
	}
	settled := func() bool { n, err := l.socket.outstanding(); return err == nil && int64(n) == unsent() }
	settle := func() error {
		began := time.Now()
		if !l.await(settled) {
			return errUnsettled
		}
		l.vm.counters.took(stepDrain, began)
		return nil
	}
	if l.vm.daemon.kernel.halter == nil { // then all that is queued must be sent
		if !l.await(l.drained) {
			return l.keep(errUnsettled)
		}
		settle = nil
	}
	return l.handBack(settle, func() int64 {
		l.cut = l.socket.sent() - before
		return l.cut
	})
}

// drained tells whether the client has acknowledged everything.
func (l *leaseConn) drained() bool {
	n, err := l.socket.outstanding()
	return err == nil && n == 0
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

// await waits until the client has acknowledged enough. It gives up when something else is to be done, and when the client has reset the connection: what
// it had not acknowledged stays counted (tcp_ioctl, net/ipv4/tcp.c), and the receiver, which would tell, rests meanwhile.
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
		case time.Now().After(limit) || l.socket.isClosed():
			return false
		default:
			time.Sleep(pause)
			pause = min(2*pause, drainSleepMax)
		}
	}
}

// handBack sends HANDBACK and does what the answer asks for. settle is that of lease.Host.Return, sent what HANDBACK tells of the SEND under way.
func (l *leaseConn) handBack(settle func() error, sent func() int64) wire.Reason {
	if err := l.offer(settle, sent); err != nil {
		return l.keep(err)
	}
	began := time.Now()
	var err error
	switch l.awaitAnswer() {
	case wire.TypeTaken:
		over := l.release()
		l.vm.counters.took(stepRelease, began)
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
func (l *leaseConn) offer(settle func() error, sent func() int64) error {
	l.leased = time.Since(l.since)
	began := time.Now()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	l.hear(rests)
	said, err := l.takeUnread()
	if err != nil {
		return err
	}
	st := l.state
	err = l.end.Return(&st, settle, func() error {
		l.vm.counters.took(stepExtract, began)
		bytes := sent()
		l.mu.Lock()
		if !l.settled() {
			l.mu.Unlock()
			return errUnsettled
		}
		// Together with settled: what comes from now on has crossed with HANDBACK, and the guest answers KEEP.
		l.awaiting, l.answer, l.asked, l.doing = true, 0, time.Now(), returns
		hb := wire.Handback{State: st, Data: l.taken, Sent: bytes, Said: said}
		l.mu.Unlock()
		err := send(l.handler, l.id, 0, hb)
		if err != nil {
			l.mu.Lock()
			l.awaiting = false
			l.mu.Unlock()
		}
		return err
	})
	l.spoke = len(said) > 0
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
	late, end, err := l.end.Taken()
	if err != nil {
		// The guest resets the connection when it hears CLOSED.
		if errors.Is(err, tcprepair.ErrNotEstablished) {
			return wire.ReasonClientGone
		}
		l.complainOnce("a connection was lost while it was given back", err)
		return wire.ReasonKernel
	}
	l.vm.counters.handbacks.Add(1)
	l.vm.returned(l)
	l.vm.blind.seen() // everything is acknowledged
	frames := l.lateFrames(late, end)
	l.handler.forget(l) // before the guest may use the id again
	released := wire.Released{Window: l.socket.snapshot.Window.Peer(), Leased: uint64(l.leased)}
	_ = l.handler.session.Write(wire.Append(frames, l.handler.session.ID, l.id, 0, released)) // a session that has ended tells by itself
	if l.spoke {
		before := l.handler.handovers.Load()
		l.handler.session.Poll(&l.vm.expects.handovers, func() bool { return l.handler.handovers.Load() != before })
	}
	l.close()
	return wire.ReasonOK
}

// lateFrames tell the guest what the client has said since HANDBACK: no credit is asked for, as our kernel has acknowledged it.
func (l *leaseConn) lateFrames(p []byte, end bool) (frames []byte) {
	l.vm.counters.relayed.Add(uint64(len(p)))
	for len(p) > 0 {
		n := min(len(p), wire.MaxData)
		frames = wire.Append(frames, l.handler.session.ID, l.id, 0, wire.Data{Data: p[:n]})
		p = p[n:]
	}
	if end {
		frames = wire.Append(frames, l.handler.session.ID, l.id, 0, wire.End{})
	}
	return frames
}

func (l *leaseConn) complainOnce(text string, err error) {
	if skipped, ok := l.vm.complain.Allow(); ok {
		l.vm.log.Warn(text, "lease", l.id, "client", l.state.Remote, "error", err, "not_logged", skipped)
	}
}
