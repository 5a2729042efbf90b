package host

import (
	"errors"
	"time"

	"spillway/internal/lease"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// A lease that goes to another host steps aside: its sender stops at a byte, the socket is halted, what is on its way is acknowledged, and the state is read, as
// for a HANDBACK in the middle of a file. Then the sender waits for what becomes of it.

// carryState of a lease.
type carryState uint8

const (
	stays  carryState = iota
	asked             // it is to step aside
	aside             // it has: the sender waits, everything else of the lease may be read
	leaves            // verdict: another host has it
	cutOff            // verdict: nobody knows who has it, or its state is old
)

// errOver is why a lease cannot step aside: it is about to end, or to come back to the guest.
var errOver = errors.New("the connection is about to end")

// askAside tells the sender to step aside; the client has until then to acknowledge what is on its way.
func (l *leaseConn) askAside(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.carry != stays {
		return
	}
	l.carry, l.carryUntil = asked, until
	if l.live {
		l.socket.interruptWrite()
	}
	if l.stopWait != nil {
		l.stopWait()
	}
	l.work.Signal()
}

// isAsked tells whether the sender is to step aside.
func (l *leaseConn) isAsked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.carry == asked
}

// isAside tells whether it has. passing tells that the lease is ending, or in the middle of a change of hands, and will not.
func (l *leaseConn) isAside() (is, passing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.carry == aside, l.doing == starts || l.doing == returns || l.doing == closes
}

// judge tells a lease that has stepped aside, or was asked to, what becomes of it.
func (l *leaseConn) judge(verdict carryState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.carry == asked:
		l.carry = stays
		if l.live && l.over == wire.ReasonOK {
			l.socket.resumeWrite()
		}
	case l.carry == aside:
		l.carry = verdict
	}
	l.work.Signal()
}

// stepAside does so, waits for the verdict and carries it out. With ReasonOK the lease goes on, or its phase is Gone.
func (l *leaseConn) stepAside() wire.Reason {
	err := l.goAside()
	l.mu.Lock()
	if err != nil {
		l.carry = stays
	}
	for l.carry == aside {
		l.work.Wait()
	}
	verdict := l.carry
	l.carry = stays
	l.abort = l.abort || verdict == cutOff
	l.mu.Unlock()
	switch {
	case err != nil: // and the lease is as it was, if it lives
	case verdict == leaves:
		return l.left()
	case verdict == cutOff:
		l.socket.settleHeld()
		return wire.ReasonSession
	default:
		err = l.end.Kept()
		l.socket.settleHeld()
	}
	if l.end.Phase() != lease.Leased {
		l.complainOnce("a connection broke while it was to go to another host", err)
		return wire.ReasonKernel
	}
	l.mu.Lock()
	l.doing, l.ear = sends, relays
	if l.recall == recallSoon {
		l.ear = announces
	}
	if l.over == wire.ReasonOK {
		l.socket.resumeWrite()
	}
	l.mu.Unlock()
	l.room.Signal()
	return wire.ReasonOK
}

// left ends a lease that another host has.
func (l *leaseConn) left() wire.Reason {
	if err := l.end.Left(); err != nil {
		l.complainOnce("a connection that another host has was not let go of", err)
	}
	l.socket.settleHeld() // what is held goes to the new owner
	l.handler.forget(l)
	l.close()
	return wire.ReasonOK
}

// goAside halts the socket and reads its state.
func (l *leaseConn) goAside() error {
	l.mu.Lock()
	l.doing = drains
	l.mu.Unlock()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	l.hear(rests)
	l.socket.leaving = true
	defer func() { l.socket.leaving = false }()
	st := l.state
	return l.end.Return(&st, l.awaitHalted, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.carry != asked || l.over != wire.ReasonOK {
			return errOver
		}
		l.carry = aside
		return nil
	})
}

// awaitHalted waits until the client has acknowledged all that has left.
func (l *leaseConn) awaitHalted() error {
	for pause := drainSleepMin; ; pause = min(2*pause, drainSleepMax) {
		outstanding, err := l.socket.outstanding()
		unsent, uerr := l.socket.unsent()
		l.mu.Lock()
		called, until := l.carry == asked && l.over == wire.ReasonOK, l.carryUntil
		l.mu.Unlock()
		switch {
		case err != nil || uerr != nil || !called || l.socket.isClosed():
			return errOver
		case outstanding == unsent:
			return nil
		case time.Now().After(until):
			return errUnsettled
		}
		time.Sleep(pause)
	}
}

// piece is something that was written to the client and may not have left yet: bytes, or a range of a file.
type piece struct {
	end    int64 // of all that the socket has been given, where it ends
	data   []byte
	more   bool
	file   wire.FileRef
	offset int64
	count  int64 // of the file; 0: it is data
}

// Pieces are kept until they have left, and looked through when there are so many of them, or so many bytes in them.
const (
	manyPieces = 8
	manyBytes  = 16 << 10
)

// wrote notes what the socket was given last.
func (l *leaseConn) wrote(p piece) {
	p.end = l.socket.written.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.pieces); n > 0 && p.count > 0 {
		last := &l.pieces[n-1]
		if last.count > 0 && last.file == p.file && last.offset+last.count == p.offset {
			last.count, last.end = last.count+p.count, p.end
			return
		}
	}
	l.pieces = append(l.pieces, p)
	bytes := 0
	for _, p := range l.pieces {
		bytes += len(p.data)
	}
	if len(l.pieces) > manyPieces || bytes > manyBytes {
		l.dropPieces()
	}
}

// dropPieces forgets what has left. l.mu is held.
func (l *leaseConn) dropPieces() {
	left := l.socket.written.Load() // first: the sender may write meanwhile
	unsent, err := l.socket.unsent()
	if err != nil {
		return // closed: so will the lease be
	}
	left -= int64(unsent)
	n := 0
	for n < len(l.pieces) && l.pieces[n].end <= left {
		n++
	}
	l.pieces = append(l.pieces[:0:0], l.pieces[n:]...)
}

// again are the items that write once more what lies behind the first sent bytes. l.mu is held.
func (l *leaseConn) again(sent int64) (items []item) {
	for _, p := range l.pieces {
		size := p.count + int64(len(p.data)) // one of them is 0
		skip := max(sent-(p.end-size), 0)
		switch {
		case skip >= size:
		case p.count > 0:
			items = append(items, item{kind: wire.TypeSend, again: true, order: &order{file: p.file, offset: p.offset + skip, count: size - skip}})
		default:
			items = append(items, item{kind: wire.TypeData, again: true, more: p.more, data: p.data[skip:]})
		}
	}
	return items
}

// leave seals the socket of a lease that is aside, and tells all that another host needs to go on with it. late is what the client has said and nobody has read, fin
// that its FIN came behind it.
func (l *leaseConn) leave() (st tcpstate.State, late []byte, fin bool, todo []item, err error) {
	l.socket.holdOn()
	if late, fin, err = l.end.Seal(); err != nil {
		return st, nil, false, nil, err
	}
	st = l.socket.snapshot
	st.RecvSeq -= uint32(len(late)) // behind the FIN, if there is one: as if it had come first
	todo = l.again(l.socket.sent())
	if l.current != nil {
		todo = append(todo, *l.current)
	}
	return st, late, fin, append(append(todo, l.todo...), l.inbox...), nil
}
