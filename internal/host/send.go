package host

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// sendfileChunk bounds one sendfile(2), so that a fast client cannot keep the sender from noticing that it is to stop, or that the file
// was changed.
const sendfileChunk = 4 << 20

// execute does a SEND.
func (l *leaseConn) execute(o *order) wire.Reason {
	already := o.sent
	if !o.begun {
		l.vm.counters.sends.Add(1)
	}
	if l.broken != wire.ReasonOK {
		return l.answerSend(l.broken, 0, true)
	}
	f, reason := l.acquire(o)
	if reason != wire.ReasonOK {
		if over := l.overNow(); over != wire.ReasonOK {
			return over
		}
		return l.answerSend(reason, 0, false)
	}
	defer l.vm.release(f, o.file)
	if c := partial(f); c != nil && o.count > 0 && !o.begun {
		// Before the header: what cannot be had at all has not begun to be sent.
		if _, err := l.awaitBytes(c, o.offset); err != nil && !errors.Is(err, context.Canceled) {
			return l.answerSend(l.vm.fileReason(err), 0, false)
		}
	}

	began := time.Now()
	sent, failure, over := l.sendBody(o, f)
	l.recallAgain()
	l.vm.counters.took(stepSend, began)
	l.vm.counters.bytes.Add(uint64(max(sent-already, 0)))
	switch {
	case over != wire.ReasonOK || l.end.Phase() == lease.Gone: // over, or given back
		return over
	case failure != wire.ReasonOK:
		started := sent > 0 || o.begun
		if started {
			l.broken = failure
		}
		return l.answerSend(failure, sent, started)
	}
	return l.complete(f, o)
}

// complete ends a SEND of which all bytes are in the socket. If the file was changed meanwhile, they are not those of one version, and the
// client must not take them for a whole response: a RST discards what it has not got yet.
func (l *leaseConn) complete(f file, o *order) wire.Reason {
	if unchanged(f, &o.file) {
		if o.giveBack {
			l.callBackSoon()
		}
		return l.answerSend(wire.ReasonOK, o.count, true)
	}
	l.broken = wire.ReasonChanged
	if unacked, err := l.socket.outstanding(); err == nil && unacked == 0 {
		return l.answerSend(wire.ReasonChanged, o.count, true)
	}
	count(&l.vm.counters.failed, wire.ReasonChanged)
	l.mu.Lock()
	l.abort = true
	l.mu.Unlock()
	return wire.ReasonChanged
}

// sendBody sends the header and the range. It returns how many bytes of the file were sent, and either why the file could not be sent, or why
// the lease is over.
func (l *leaseConn) sendBody(o *order, f file) (sent int64, failure, over wire.Reason) {
	if len(o.header) > 0 {
		o.begun = true
		if over := l.write(&o.header, o.count > 0); over != wire.ReasonOK || l.end.Phase() == lease.Gone {
			return 0, wire.ReasonOK, over
		}
	}
	sent, failure, over = l.sendFile(f, o, true)
	return sent, failure, over
}

// sendAgain sends what another host had queued of a file when the connection left it. The guest knows no better than that it was sent.
func (l *leaseConn) sendAgain(o *order) wire.Reason {
	ctx, cancel := l.vm.patience(context.Background(), o.file.Share)
	defer cancel()
	f, reason := l.vm.acquire(ctx, o.file, o.offset)
	if reason == wire.ReasonOK {
		defer l.vm.release(f, o.file)
		var over wire.Reason
		if _, reason, over = l.sendFile(f, o, false); over != wire.ReasonOK || l.end.Phase() == lease.Gone {
			return over
		}
	}
	if reason != wire.ReasonOK { // the client lacks bytes that it has been promised
		l.mu.Lock()
		l.abort = true
		l.mu.Unlock()
	}
	return reason
}

// sendFile sends the order's range, or what is left of it, or as much as there is time for before the connection is wanted back, if that may interrupt it.
func (l *leaseConn) sendFile(f file, o *order, recallable bool) (sent int64, failure, over wire.Reason) {
	offset, before := o.offset+o.sent, l.socket.written.Load()-o.sent
	l.enterFile(recallable)
	defer l.enterFile(false)
	for sent = o.sent; sent < o.count; sent = o.sent {
		if l.isAsked() {
			if over := l.stepAside(); over != wire.ReasonOK || l.end.Phase() == lease.Gone {
				return sent, wire.ReasonOK, over
			}
		}
		if recallable && l.wanted() {
			if over := l.cutShort(before); over != wire.ReasonOK || l.end.Phase() == lease.Gone {
				return l.cut, wire.ReasonOK, over
			}
			l.enterFile(true)
		}
		if sent > 0 && !unchanged(f, &o.file) {
			return sent, wire.ReasonChanged, wire.ReasonOK
		}
		chunk := min(o.count-sent, sendfileChunk)
		if c := partial(f); c != nil {
			n, err := l.awaitBytes(c, offset)
			switch {
			case errors.Is(err, context.Canceled):
				if over := l.overNow(); over != wire.ReasonOK {
					return sent, wire.ReasonOK, over
				}
				continue // wanted back, or to step aside
			case err != nil:
				return sent, l.vm.fileReason(err), wire.ReasonOK
			case n == 0:
				return sent, wire.ReasonTruncated, wire.ReasonOK
			}
			chunk = min(chunk, n)
		}
		chunk = l.vm.daemon.cold.prepare(f, offset, chunk)
		n, reason, err := l.sendChunk(f, &offset, chunk)
		if n > 0 {
			l.wrote(piece{file: o.file, offset: offset - n, count: n})
			o.sent, o.begun = o.sent+n, true
		}
		sent = o.sent
		if reason != wire.ReasonOK {
			return sent, reason, wire.ReasonOK
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && (recallable && l.wanted() || l.isAsked()) {
			continue
		}
		if over := l.writeEnd(err); over != wire.ReasonOK {
			return sent, wire.ReasonOK, over
		}
	}
	return sent, wire.ReasonOK, wire.ReasonOK
}

// enterFile lets a recall interrupt the sender, or not any more.
func (l *leaseConn) enterFile(in bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFile = in; in {
		l.doing = sends
	}
	if l.over == wire.ReasonOK && l.live && l.carry == stays {
		l.socket.resumeWrite()
	}
}

// overNow tells why the lease is to end at once, if it is.
func (l *leaseConn) overNow() wire.Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// unchanged checks a file again that was acquired some time ago. What a cache has written but not completed, nobody else knows.
func unchanged(f file, ref *wire.FileRef) bool {
	if partial(f) != nil {
		return true
	}
	var st unix.Stat_t
	err := unix.Fstat(f.Fd(), &st)
	return err == nil && st.Size == ref.Size && st.Mtim.Nano() == ref.MTime
}

// sendChunk sends up to count bytes, fewer after it had to wait for the client. An error is one of the client's socket.
func (l *leaseConn) sendChunk(f file, offset *int64, count int64) (sent int64, failure wire.Reason, err error) {
	var socketErr error
	err = l.socket.raw.Write(func(fd uintptr) bool {
		for {
			// The offset is explicit: everybody who sends this file shares its descriptor.
			n, err := unix.Sendfile(int(fd), f.Fd(), offset, int(count))
			switch {
			case err == nil && n == 0:
				failure = wire.ReasonTruncated
			case err == nil:
				sent = int64(n)
				l.socket.written.Add(sent)
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case clientReason(err) == wire.ReasonClientGone:
				socketErr = os.NewSyscallError("sendfile", err)
			default: // EIO of the disk, most likely
				failure = l.vm.fileReason(os.NewSyscallError("sendfile", err))
			}
			return true
		}
	})
	return sent, failure, errors.Join(err, socketErr)
}

// answerSend tells the guest that its SEND is over.
func (l *leaseConn) answerSend(reason wire.Reason, bytes int64, started bool) wire.Reason {
	count(&l.vm.counters.failed, reason)
	var flags wire.Flags
	if started {
		flags = wire.FlagStarted
	}
	l.mu.Lock()
	l.sending = false // before the guest learns of it: it may order the next one
	l.mu.Unlock()
	_ = send(l.handler, l.id, flags, wire.Sent{Reason: reason, Bytes: bytes}) // a session that has ended tells by itself
	return wire.ReasonOK
}
