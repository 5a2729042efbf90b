package host

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"spillway/internal/tcprepair"
	"spillway/internal/wire"
)

// receive is the receiver: it turns what the client says into frames until the socket is closed, or, once discard is set, until the client
// has closed too.
func (l *leaseConn) receive() {
	defer close(l.received)
	l.mu.Lock()
	eof := l.eof // of a connection that comes from another host
	l.mu.Unlock()
	for !eof {
		n, err := l.relay(l.awaitTurn())
		if err != nil {
			return // closed, or the deadline of linger
		}
		if n == 0 {
			break
		}
		if n > 0 {
			l.pollReply()
		}
	}
	l.watch()
}

// pollReply asks for the guest's answer to what the client has said.
func (l *leaseConn) pollReply() {
	l.mu.Lock()
	before := l.relayedAt
	l.mu.Unlock()
	l.handler.session.Poll(&l.vm.expects.replies, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.heard != before || l.over != wire.ReasonOK || l.discard
	})
}

// awaitTurn returns how many bytes may be read at once. It waits until there are any, and until there is something for the receiver to do.
func (l *leaseConn) awaitTurn() (limit int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.ear == rests || l.credit == 0 && !l.discard && !l.orphan {
		l.room.Wait()
	}
	if l.discard || l.orphan {
		return wire.MaxData
	}
	return int(min(l.credit, wire.MaxData))
}

// notYet is what relay returns when it has read nothing, as the sender has something to do first.
const notYet = -1

// relay waits for bytes of the client and passes on what one read gives, or announces that there are some. It returns 0 at the client's end
// of file.
//
// No buffer is held while it waits; read(2) writes into the frame itself.
func (l *leaseConn) relay(limit int) (n int, err error) {
	var buf *buffer
	var readErr error
	err = l.socket.raw.Read(func(fd uintptr) bool {
		l.receiving.Lock()
		l.mu.Lock()
		ear := l.ear
		l.mu.Unlock()
		if ear != relays {
			defer l.receiving.Unlock()
			if ear == announces && !readable(int(fd)) {
				return false
			}
			l.spoken()
			n = notYet
			return true
		}
		buf = l.vm.daemon.buffers.Get().(*buffer)
		n, readErr = read(int(fd), buf[wire.HeaderSize:wire.HeaderSize+limit])
		if readErr == unix.EAGAIN && l.finished {
			n, readErr = 0, nil
			return true
		}
		if readErr == unix.EAGAIN {
			l.vm.daemon.buffers.Put(buf)
			l.receiving.Unlock()
			return false
		}
		return true
	})
	if err != nil || n == notYet {
		return n, err
	}
	defer l.receiving.Unlock()
	defer l.vm.daemon.buffers.Put(buf)
	return n, l.pass(buf, n, readErr)
}

// readable tells whether a read would return at once.
func readable(fd int) bool {
	var one [1]byte
	_, _, err := unix.Recvfrom(fd, one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err != unix.EAGAIN
}

// read is read(2).
func read(fd int, p []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, p); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// pass tells the guest what a read gave: n bytes behind the place for a frame's header in buf, the end of file, or an error.
// l.receiving is held.
func (l *leaseConn) pass(buf *buffer, n int, err error) error {
	l.socket.read += uint32(n)
	if n == 0 && err == nil && l.wasReset() {
		err = unix.ECONNRESET
	}
	l.mu.Lock()
	quiet := l.discard || l.orphan
	switch {
	case err != nil:
		l.finishNow(clientReason(err))
		l.mu.Unlock()
		return err
	case n == 0:
		l.eof = true
	case !quiet:
		l.credit -= int64(n)
		l.relayedAt = l.heard
	}
	l.mu.Unlock()
	switch {
	case quiet:
		return nil
	case n == 0:
		_ = send(l.handler, l.id, 0, wire.End{}) // a session that has ended tells by itself
		return nil
	}
	l.vm.counters.relayed.Add(uint64(n))
	// The data lies where the encoder puts it, so nothing is moved and the frame is in buf.
	frame := wire.Append(buf[:0], l.handler.session.ID, l.id, 0, wire.Data{Data: buf[wire.HeaderSize : wire.HeaderSize+n]})
	_ = l.handler.session.Write(frame)
	return nil
}

// wasReset tells a reset from the client's FIN at an end of file: the kernel reports a reset once, and maybe the sender got it.
func (l *leaseConn) wasReset() bool {
	state, err := l.socket.state()
	l.mu.Lock()
	defer l.mu.Unlock()
	return err == nil && state == tcprepair.Closed && !l.ended && !l.discard
}

// takeUnread reads what waits in the receive queue for a HANDBACK that brings it to the guest. It fails when that is too much: an upload is
// not idle. l.receiving is held.
func (l *leaseConn) takeUnread() ([]byte, error) {
	n, err := l.socket.unread()
	l.mu.Lock()
	limit := min(l.credit, wire.MaxSaid)
	l.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case int64(n) > limit:
		return nil, errUnsettled
	case n == 0:
		return nil, nil
	}
	said := make([]byte, n)
	err = l.socket.control(func(fd int) (err error) {
		n, err = read(fd, said)
		return err
	})
	l.mu.Lock()
	l.credit -= int64(n)
	l.mu.Unlock()
	l.socket.read += uint32(n)
	l.vm.counters.relayed.Add(uint64(n))
	return said[:n], err
}

// watch waits, after the client's end of file, for the client's reset or for the socket's close: the guest may take long to answer a
// client that is gone. A connection that both sides have closed in good order ends when the guest says so.
func (l *leaseConn) watch() {
	err := l.socket.raw.Read(func(fd uintptr) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		state, err := tcprepair.TCPState(int(fd))
		if l.discard || err != nil || state != tcprepair.Closed {
			return l.discard || err != nil
		}
		cause, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && cause != 0 {
			l.finishNow(clientReason(unix.Errno(cause)))
			return true
		}
		return false
	})
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		return
	}
	l.stop(clientReason(err)) // the netpoller cannot watch the socket any more
}
