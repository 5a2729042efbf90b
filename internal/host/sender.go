package host

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// creditStep is how many DATA bytes are written before the guest gets a CREDIT for them.
const creditStep = window / 4

// run is the sender: the life of a lease, from HANDOVER to the end.
//
// Its steps return the reason for which the lease ends, and ReasonOK while it goes on.
func (l *leaseConn) run() {
	if l.accept() {
		l.carryOut()
	}
}

// carryOut does one thing after the other until the lease is over.
func (l *leaseConn) carryOut() {
	end := wire.ReasonOK
	for end == wire.ReasonOK && l.end.Phase() != lease.Gone {
		if !l.returnsNext() {
			l.listen()
		}
		end = l.step(l.next())
	}
	l.finish(end)
}

// listen starts the receiver, once.
func (l *leaseConn) listen() {
	if !l.listens {
		l.listens = true
		go l.receive()
	}
}

// returnsNext tells that the next thing to do is a SEND with RETURN. Most leases in mode offload consist of just that, and are over before a
// receiver would have something to read; what the client says meanwhile waits in the socket until relayUnread.
func (l *leaseConn) returnsNext() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.todo) == 0 && len(l.inbox) > 0 && l.inbox[0].order != nil && l.inbox[0].order.giveBack
}

// accept takes the connection over, or refuses it.
func (l *leaseConn) accept() bool {
	began := time.Now()
	var granted bool
	err := l.end.Accept(&l.state, func(m wire.Message) error {
		refused, no := m.(wire.Refused)
		if no {
			l.handler.forget(l) // before the guest may use the id again
			count(&l.vm.counters.refused, refused.Reason)
			return send(l.handler, l.id, 0, refused)
		}
		granted = true
		l.vm.counters.took(stepRestore, began)
		l.vm.counters.handovers.Add(1)
		l.mu.Lock()
		l.since = time.Now()
		l.live, l.granted = true, l.since
		l.mu.Unlock()
		l.socket.boundQueue(l.vm.leaseCount())
		return send(l.handler, l.id, 0, wire.Granted{})
	})
	switch {
	case !granted:
		_ = l.socket.Close() // silent, and mostly there is none
		if skipped, ok := l.vm.complain.Allow(); ok {
			l.vm.log.Warn("handover refused", "client", l.state.Remote, "error", err, "not_logged", skipped)
		}
	case err != nil:
		// The session has ended, and the guest resets the connection. If it has asked for something, that may still come before the reset.
		l.sessionEnded()
	}
	return granted
}

// step does one thing.
func (l *leaseConn) step(it item) wire.Reason {
	if it.aside {
		return l.stepAside()
	}
	switch it.kind {
	case wire.TypeData:
		l.current = &it
		defer func() { l.current = nil }()
		return l.writeData(&it)
	case wire.TypeSend:
		l.current = &it
		defer func() { l.current = nil }()
		if it.again {
			return l.sendAgain(it.order)
		}
		return l.execute(it.order)
	case wire.TypeEnd:
		if err := l.socket.shutdown(); err != nil {
			return clientReason(err)
		}
		return wire.ReasonOK
	case wire.TypeHandback:
		return l.giveBack()
	case wire.TypeClose:
		return wire.ReasonClosed
	}
	return it.end
}

// writeData sends the guest's own bytes and gives it credit for more.
func (l *leaseConn) writeData(it *item) wire.Reason {
	it.whole = max(it.whole, len(it.data))
	if l.broken == wire.ReasonOK {
		if end := l.write(&it.data, it.more); end != wire.ReasonOK || l.end.Phase() == lease.Gone {
			return end
		}
		l.vm.counters.relayed.Add(uint64(it.whole))
	}
	if it.again {
		return wire.ReasonOK
	}
	l.eaten += it.whole
	if !l.wanted() { // else the guest shall come to a stop
		l.grant(creditStep)
	}
	return wire.ReasonOK
}

// grant gives the guest credit for the DATA that was written, if there was at least so much of it.
func (l *leaseConn) grant(step int) {
	if l.eaten == 0 || l.eaten < step {
		return
	}
	l.mu.Lock()
	l.allowed += l.eaten // before the guest learns of it
	l.mu.Unlock()
	_ = send(l.handler, l.id, 0, wire.Credit{Bytes: uint32(l.eaten)}) // a session that has ended tells by itself
	l.eaten = 0
}

// write sends p to the client, waiting as long as the client takes to make room, and takes what it has sent off it. more tells that it is not to be pushed.
// When it returns ReasonOK, all of it was sent, or the lease is Gone.
func (l *leaseConn) write(p *[]byte, more bool) wire.Reason {
	flags := unix.MSG_NOSIGNAL
	if more {
		flags |= unix.MSG_MORE
	}
	for len(*p) > 0 {
		var failure error
		err := l.socket.raw.Write(func(fd uintptr) bool {
			for len(*p) > 0 {
				n, err := unix.SendmsgN(int(fd), *p, nil, nil, flags)
				switch err {
				case nil:
					l.socket.written.Add(int64(n))
					l.wrote(piece{data: (*p)[:n], more: more || n < len(*p)})
					*p = (*p)[n:]
				case unix.EINTR:
				case unix.EAGAIN:
					return false
				default:
					failure = os.NewSyscallError("sendmsg", err)
					return true
				}
			}
			return true
		})
		if err = errors.Join(err, failure); errors.Is(err, os.ErrDeadlineExceeded) && l.isAsked() {
			if end := l.stepAside(); end != wire.ReasonOK || l.end.Phase() == lease.Gone {
				return end
			}
			continue
		}
		if end := l.writeEnd(err); end != wire.ReasonOK {
			return end
		}
	}
	return wire.ReasonOK
}

// writeEnd says what a failure to write means for the lease.
func (l *leaseConn) writeEnd(err error) wire.Reason {
	if err == nil {
		return wire.ReasonOK
	}
	l.mu.Lock()
	over := l.over
	l.mu.Unlock()
	if over != wire.ReasonOK { // finishNow has interrupted it
		return over
	}
	reason := clientReason(err)
	if reason == wire.ReasonKernel {
		if skipped, ok := l.vm.complain.Allow(); ok {
			l.vm.log.Warn("write to a client failed", "lease", l.id, "client", l.state.Remote, "error", err, "not_logged", skipped)
		}
	}
	return reason
}
