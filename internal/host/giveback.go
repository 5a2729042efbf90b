package host

import (
	"errors"
	"runtime"
	"time"

	"spillway/internal/lease"
	"spillway/internal/share"
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

// response is a SEND that waits for its handback.
type response struct {
	file     *share.File
	order    *order
	withheld int // bytes at the end of its range that have not been sent
}

// tail returns the last n bytes of header and range, unless the file was changed since the response began.
func (r *response) tail(n int) ([]byte, error) {
	fromFile := min(int64(n), r.order.count)
	head := r.order.header[len(r.order.header)-(n-int(fromFile)):]
	p := append(make([]byte, 0, n), head...)[:n]
	_, err := r.file.ReadAt(p[len(head):], r.order.offset+r.order.count-fromFile)
	if err == nil && !unchanged(r.file, &r.order.file) {
		err = wire.ReasonChanged
	}
	return p, err
}

// maxUnacked is how many unacknowledged bytes are left to the guest, which sends them again in front of what was withheld. A receiver
// acknowledges at least every second full segment at once (RFC 1122, 4.2.3.2), but what is less may wait for its delayed-ACK timer, 40 ms
// and more on Linux, and the drain with it.
func (l *leaseConn) maxUnacked(r *response) int {
	if r == nil {
		return 0 // nobody could send them again
	}
	known := int64(len(r.order.header)) + r.order.count
	return int(min(2*int64(l.state.MSS), wire.MaxTail, known)) - r.withheld
}

// returnIdle gives an idle connection back.
func (l *leaseConn) returnIdle() wire.Reason {
	_, over := l.giveBack(nil)
	return over
}

// giveBack gives the connection back to the guest, if nothing is in the way, and waits for the guest's answer. r is the response whose
// end goes with it, or nil when the connection is idle. returned false without an end means that the lease goes on, and that what was
// withheld is still to be sent.
func (l *leaseConn) giveBack(r *response) (returned bool, over wire.Reason) {
	began, drainBegan := time.Now(), l.vm.daemon.now()
	l.socket.spare = l.maxUnacked(r)
	drained := l.drain()
	l.busy += time.Since(began)
	l.vm.daemon.step(StepDrain, drainBegan)
	if !drained {
		l.vm.counters.keeps.Add(1)
		return false, wire.ReasonOK
	}
	if err := l.handBack(r); err != nil {
		l.vm.counters.keeps.Add(1)
		if l.end.Phase() != lease.Leased {
			l.complainOnce("a connection broke while it was given back", err)
			return false, wire.ReasonKernel
		}
		return false, wire.ReasonOK
	}
	releaseBegan := l.vm.daemon.now()
	switch l.awaitAnswer() {
	case wire.TypeTaken:
		returned, over = l.release()
		l.vm.daemon.step(StepRelease, releaseBegan)
		return returned, over
	case wire.TypeKeep:
		l.vm.counters.keeps.Add(1)
		l.busy = 0
		if err := l.goOn(l.end.Kept); err != nil {
			l.complainOnce("a connection broke that the guest did not take back", err)
			return false, wire.ReasonKernel
		}
	default: // the session has ended, or the lease must
		if err := l.goOn(l.end.Lost); err != nil {
			return false, wire.ReasonKernel
		}
	}
	return false, wire.ReasonOK
}

// goOn makes the connection live again by an event of the lease, so that the receiver may read again.
func (l *leaseConn) goOn(event func() error) error {
	l.receiving.Lock()
	defer l.receiving.Unlock()
	err := event()
	l.held = err != nil
	return err
}

// drain waits until the client has acknowledged all but what may be left to the guest. It gives up when something else is to be done.
func (l *leaseConn) drain() bool {
	limit := time.Now().Add(l.vm.daemon.cfg.Limits.DrainTimeout.Value())
	pause := drainSleepMin
	for i := 0; ; i++ {
		n, err := l.socket.outstanding()
		l.mu.Lock()
		idle := err == nil && l.settled()
		l.mu.Unlock()
		switch {
		case !idle:
			return false
		case n <= l.socket.spare:
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

// handBack freezes the connection and sends HANDBACK. After an error the lease goes on, unless its phase says otherwise.
func (l *leaseConn) handBack(r *response) (err error) {
	began := l.vm.daemon.now()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	st := l.state
	l.held = true
	defer func() { l.held = err == nil }()
	return l.end.Return(&st, l.relayUnread, func() error {
		l.vm.daemon.step(StepExtract, began)
		hb := wire.Handback{State: st, Sent: -1}
		if r != nil {
			tail, err := r.tail(l.socket.unacked + r.withheld)
			if err != nil {
				return err // the file was changed: what was withheld cannot be sent either
			}
			hb.Sent, hb.Tail = r.order.count, tail
		}
		l.mu.Lock()
		if !l.settled() {
			l.mu.Unlock()
			return errUnsettled
		}
		// Together with settled: what comes from now on has crossed with HANDBACK, and the guest answers KEEP.
		l.awaiting, l.answer, l.since = true, 0, time.Now()
		hb.Data = l.taken
		l.mu.Unlock()
		err := send(l.handler, l.id, 0, hb)
		if err != nil {
			l.mu.Lock()
			l.awaiting = false
			l.mu.Unlock()
		}
		return err
	})
}

// awaitAnswer waits for TAKEN or KEEP. It returns 0 when none can come any more.
func (l *leaseConn) awaitAnswer() wire.Type {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.answer == 0 && !l.orphan && (l.over == wire.ReasonOK || l.over == wire.ReasonClosed) {
		l.work.Wait()
	}
	l.awaiting = false
	return l.answer
}

// release lets go of a connection that the guest has taken.
func (l *leaseConn) release() (returned bool, over wire.Reason) {
	if err := l.end.Taken(); err != nil {
		// The guest resets the connection when it hears CLOSED.
		l.complainOnce("a byte of the client's was lost while the connection was given back", err)
		return false, wire.ReasonKernel
	}
	l.close()
	l.vm.counters.handbacks.Add(1)
	l.handler.forget(l) // before the guest may use the id again
	_ = send(l.handler, l.id, 0, wire.Released{Busy: uint64(l.busy)})
	return true, wire.ReasonOK
}

func (l *leaseConn) complainOnce(text string, err error) {
	if skipped, ok := l.vm.complain.allow(); ok {
		l.vm.log.Warn(text, "lease", l.id, "client", l.state.Remote, "error", err, "not_logged", skipped)
	}
}
