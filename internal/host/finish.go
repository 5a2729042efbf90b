package host

import (
	"errors"
	"time"

	"spillway/internal/lease"
	"spillway/internal/tcprepair"
	"spillway/internal/wire"
)

// lingerLimit bounds how long a connection that was closed waits for what the client may leave undone: to acknowledge the FIN, and to
// close too.
const lingerLimit = 2 * time.Second

// flushSleepMax is the longest pause between two looks at what the client has acknowledged.
const flushSleepMax = 10 * time.Millisecond

// finish closes the connection and tells the guest.
func (l *leaseConn) finish(reason wire.Reason) {
	if l.end.Phase() == lease.Gone && reason == wire.ReasonOK {
		return // given back: its socket is closed
	}
	l.mu.Lock()
	abort := l.abort || reason == wire.ReasonKernel
	l.doing = closes
	l.mu.Unlock()
	if !abort && reason != wire.ReasonClientGone {
		reason, abort = l.conclude(reason)
	}
	if unacked, err := l.socket.outstanding(); err == nil && int64(unacked) < l.socket.written.Load() {
		l.vm.blind.seen()
	}
	if err := l.end.Finish(abort); err != nil && !errors.Is(err, lease.ErrPhase) {
		l.vm.log.Debug("close", "lease", l.id, "client", l.state.Remote, "error", err)
	}
	l.close()
	count(&l.vm.counters.closed, reason)
	l.handler.forget(l) // before the guest may use the id again
	_ = send(l.handler, l.id, 0, wire.Closed{Reason: reason})
}

// conclude ends the connection in good order: it sends the FIN behind all that was written, and stays until the client has acknowledged it,
// instead of leaving that to the kernel. So the guest's frozen socket is there as long as the client may say something, and the
// redirect is not taken away from under a connection when the daemon stops.
//
// It returns the reason of the end, which may have become another one meanwhile, and whether a RST is all that is left to send.
func (l *leaseConn) conclude(reason wire.Reason) (wire.Reason, bool) {
	// Bytes of the client that nobody has read would turn the FIN into a RST, which may overtake what the client has not read yet. And when the
	// guest is gone, its kernel answers what comes after our socket has gone. So the host stays until the client has closed too.
	unread, err := l.socket.unread()
	untilEOF := reason == wire.ReasonSession || err == nil && unread > 0
	l.mu.Lock()
	l.discard, l.ear = true, relays
	began := l.over
	l.mu.Unlock()
	l.room.Signal()
	until := time.Now().Add(lingerLimit)
	if l.socket.shutdown() == nil {
		l.flush(began)
		if untilEOF {
			l.awaitEOF(until)
		}
	}
	outstanding, err := l.socket.outstanding()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != began && l.over != wire.ReasonClosed {
		reason = l.over
	}
	// When the daemon stops, nothing that the client sends reaches this host any more: it would wait in vain for what it lacks.
	return reason, l.abort || reason == wire.ReasonDraining && err == nil && outstanding > 0
}

// flush waits until the client has acknowledged everything. A client that takes no bytes is the sweeper's to notice.
func (l *leaseConn) flush(began wire.Reason) {
	until := time.Now().Add(lingerLimit)
	for pause := drainSleepMin; ; pause = min(2*pause, flushSleepMax) {
		outstanding, err := l.socket.outstanding()
		l.mu.Lock()
		interrupted := l.over != began
		l.mu.Unlock()
		// One byte may be the FIN, which the sweeper does not know of. A daemon that stops waits for nobody for long.
		bounded := outstanding <= 1 || began == wire.ReasonDraining
		if err != nil || outstanding == 0 || interrupted || bounded && time.Now().After(until) {
			return
		}
		time.Sleep(pause)
	}
}

// awaitEOF waits until the client has closed its direction and the connection is over, the receiver dropping what the client still says.
func (l *leaseConn) awaitEOF(until time.Time) {
	l.listen()
	_ = l.socket.file.SetReadDeadline(until) // after discard was set: whoever wakes for the deadline sees it
	<-l.received
	for time.Now().Before(until) {
		l.mu.Lock()
		over := l.over != wire.ReasonOK || !l.eof
		l.mu.Unlock()
		state, err := l.socket.state()
		if over || err != nil || state == tcprepair.Closed {
			return
		}
		time.Sleep(drainSleepMax)
	}
}

// close closes the socket and waits for the receiver.
func (l *leaseConn) close() {
	l.mu.Lock()
	l.live = false
	l.discard, l.ear = true, relays
	if l.pause != nil {
		l.pause.Stop()
	}
	l.mu.Unlock()
	l.room.Signal()
	_ = l.socket.Close() // TCP has nothing to report here
	if l.listens {
		<-l.received
	}
}
