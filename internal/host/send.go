package host

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/share"
	"spillway/internal/wire"
)

// sendfileChunk bounds one sendfile(2), so that a fast client cannot keep the sender from noticing that it is to stop, or that the file
// was changed.
const sendfileChunk = 4 << 20

// withheldSize bytes at the end of a body that is to be handed back are left for the guest to send after the handback: so the client has no whole
// response, and sends no request into the frozen window, where it would be lost until the client's retransmission timer runs out.
const withheldSize = 1

// execute does a SEND.
func (l *leaseConn) execute(o *order) wire.Reason {
	l.vm.counters.sends.Add(1)
	if l.broken != wire.ReasonOK {
		return l.answerSend(l.broken, 0, true)
	}
	f, reason := l.vm.acquire(o.file)
	if reason != wire.ReasonOK {
		return l.answerSend(reason, 0, false)
	}
	defer l.vm.release(f, o.file)

	withheld := 0
	if o.giveBack {
		withheld = int(min(o.count, withheldSize))
	}
	began := time.Now()
	sent, failure, over := l.sendBody(o, f, o.count-int64(withheld))
	l.busy += time.Since(began)
	l.vm.daemon.step(StepSend, began)
	l.vm.counters.bytes.Add(uint64(sent))
	switch {
	case over != wire.ReasonOK:
		return over
	case failure != wire.ReasonOK:
		started := sent > 0 || len(o.header) > 0
		if started {
			l.broken = failure
		}
		return l.answerSend(failure, sent, started)
	case withheld == 0:
		return l.complete(f, o)
	}
	return l.finishReturn(&response{file: f, order: o, withheld: withheld})
}

// finishReturn gives the connection back with the end of a response, or sends this end.
func (l *leaseConn) finishReturn(r *response) wire.Reason {
	if returned, over := l.giveBack(r); returned || over != wire.ReasonOK {
		return over
	}
	rest, err := r.tail(r.withheld)
	if err != nil {
		l.broken = l.vm.fileReason(err)
		return l.answerSend(l.broken, r.order.count-int64(r.withheld), true)
	}
	if over := l.write(rest, 0); over != wire.ReasonOK {
		return over
	}
	l.vm.counters.bytes.Add(uint64(r.withheld))
	return l.complete(r.file, r.order)
}

// complete ends a SEND of which all bytes are in the socket. If the file was changed meanwhile, they are not those of one version, and the
// client must not take them for a whole response: a RST discards what it has not got yet.
func (l *leaseConn) complete(f *share.File, o *order) wire.Reason {
	if unchanged(f, &o.file) {
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

// sendBody sends the header and the first count bytes of the range. It returns how many bytes of the file were sent, and either why the file
// could not be sent, or why the lease is over.
func (l *leaseConn) sendBody(o *order, f *share.File, count int64) (sent int64, failure, over wire.Reason) {
	more := 0
	if count > 0 {
		more = unix.MSG_MORE
	}
	if over := l.write(o.header, more); over != wire.ReasonOK {
		return 0, wire.ReasonOK, over
	}
	return l.sendFile(f, o, count)
}

// sendFile sends count bytes of the order's range from its beginning.
func (l *leaseConn) sendFile(f *share.File, o *order, count int64) (sent int64, failure, over wire.Reason) {
	offset := o.offset
	for sent < count {
		if sent > 0 && !unchanged(f, &o.file) {
			return sent, wire.ReasonChanged, wire.ReasonOK
		}
		n, reason, err := l.sendChunk(f, &offset, min(count-sent, sendfileChunk))
		sent += n
		if reason != wire.ReasonOK {
			return sent, reason, wire.ReasonOK
		}
		if over := l.writeEnd(err); over != wire.ReasonOK {
			return sent, wire.ReasonOK, over
		}
	}
	return sent, wire.ReasonOK, wire.ReasonOK
}

// unchanged checks a file again that was acquired some time ago.
func unchanged(f *share.File, ref *wire.FileRef) bool {
	var st unix.Stat_t
	err := unix.Fstat(f.Fd(), &st)
	return err == nil && st.Size == ref.Size && st.Mtim.Nano() == ref.MTime
}

// sendChunk sends up to count bytes, fewer after it had to wait for the client. An error is one of the client's socket.
func (l *leaseConn) sendChunk(f *share.File, offset *int64, count int64) (sent int64, failure wire.Reason, err error) {
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
				l.written.Add(sent)
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

// answerSend tells the guest that its SEND is over. It may order the next one from now on.
func (l *leaseConn) answerSend(reason wire.Reason, bytes int64, started bool) wire.Reason {
	count(&l.vm.counters.failed, reason)
	var flags wire.Flags
	if started {
		flags = wire.FlagStarted
	}
	l.mu.Lock()
	l.sending = false
	l.mu.Unlock()
	_ = send(l.handler, l.id, flags, wire.Sent{Reason: reason, Bytes: bytes}) // a session that has ended tells by itself
	return wire.ReasonOK
}
