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

// Bytes at the end of a body that a SEND with RETURN treats by itself.
const (
	// tailSize bytes are withheld for the guest to send after the handback: so the client has no whole response, and sends no
	// request into the frozen window, where it would be lost until the client's retransmission timer runs out.
	tailSize = 1
	// pushSize bytes before the tail go as segments of one byte. Two small pushed segments make the client's kernel acknowledge as soon as the
	// client has read them (ICSK_ACK_PUSHED2, tcp_cleanup_rbuf, net/ipv4/tcp.c) instead of after its delayed-ACK timer of 40 ms, for which
	// the drain would wait.
	pushSize = 2
)

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
	defer l.vm.release(f)

	began, busyBefore := time.Now(), l.busy
	var kept [pushSize + tailSize]byte // the end of the body, when it is to be given back
	end := kept[:0]
	if o.giveBack {
		end = kept[:min(o.count, int64(len(kept)))]
	}
	sent, failure, over := l.sendBody(o, f, end)
	l.busy = busyBefore + time.Since(began)
	l.vm.daemon.step(StepSend, began)
	l.vm.counters.bytes.Add(uint64(sent))
	if over != wire.ReasonOK {
		return over
	}
	if failure != wire.ReasonOK {
		started := sent > 0 || len(o.header) > 0
		if started {
			l.broken = failure
		}
		return l.answerSend(failure, sent, started)
	}
	if len(end) == 0 {
		return l.answerSend(wire.ReasonOK, sent, true)
	}
	tail := end[len(end)-tailSize:]
	if returned, over := l.giveBack(o.count, tail); returned || over != wire.ReasonOK {
		return over
	}
	if over := l.write(tail, 0); over != wire.ReasonOK {
		return over
	}
	l.vm.counters.bytes.Add(tailSize)
	return l.answerSend(wire.ReasonOK, o.count, true)
}

// sendBody sends the header and the range, but for the tail if end is not empty: end is then filled with the last bytes of the range. It
// returns how many bytes of the file were sent, and either why the file could not be sent, or why the lease is over.
func (l *leaseConn) sendBody(o *order, f *share.File, end []byte) (sent int64, failure, over wire.Reason) {
	more := 0
	if o.count > 0 {
		more = unix.MSG_MORE
	}
	if over := l.write(o.header, more); over != wire.ReasonOK {
		return 0, wire.ReasonOK, over
	}
	body := o.count - int64(len(end))
	sent, failure, over = l.sendFile(f, o, body)
	if len(end) == 0 || failure != wire.ReasonOK || over != wire.ReasonOK {
		return sent, failure, over
	}
	if _, err := f.ReadAt(end, o.offset+body); err != nil {
		// What was corked leaves: the client must see the short body.
		return sent, l.vm.fileReason(err), wire.ReasonOK
	}
	for i := range end[:len(end)-tailSize] {
		// MSG_EOR: the next byte must not join the segment, even if that waits for the client's window.
		if over := l.write(end[i:i+1], unix.MSG_EOR); over != wire.ReasonOK {
			return sent, wire.ReasonOK, over
		}
		sent++
	}
	return sent, wire.ReasonOK, wire.ReasonOK
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
