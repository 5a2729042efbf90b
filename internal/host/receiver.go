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
	for {
		limit, ok := l.awaitCredit()
		if !ok {
			return
		}
		n, err := l.relay(limit)
		if err != nil {
			return // closed, or the deadline of linger
		}
		if n == 0 {
			break
		}
	}
	l.watch()
}

// awaitCredit returns how many bytes may be read at once. It waits until there are any.
func (l *leaseConn) awaitCredit() (limit int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.credit == 0 && !l.discard && !l.orphan {
		l.room.Wait()
	}
	if l.discard || l.orphan {
		return wire.MaxData, true
	}
	return int(min(l.credit, wire.MaxData)), true
}

// relay waits for bytes of the client and passes on what one read gives. It returns 0 at the client's end of file.
//
// No buffer is held while it waits; read(2) writes into the frame itself.
func (l *leaseConn) relay(limit int) (n int, err error) {
	var buf *buffer
	var readErr error
	err = l.socket.raw.Read(func(fd uintptr) bool {
		l.receiving.Lock()
		if l.held { // whatever comes after the handback is for the guest, or comes again when the lease goes on
			l.receiving.Unlock()
			return false
		}
		buf = l.vm.daemon.buffers.Get().(*buffer)
		n, readErr = read(int(fd), buf[wire.HeaderSize:wire.HeaderSize+limit])
		if readErr == unix.EAGAIN {
			l.vm.daemon.buffers.Put(buf)
			l.receiving.Unlock()
			return false
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	defer l.receiving.Unlock()
	defer l.vm.daemon.buffers.Put(buf)
	return n, l.pass(buf, n, readErr)
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

// relayUnread passes on what the client had sent before the freeze. l.receiving is held, no more can arrive.
func (l *leaseConn) relayUnread() error {
	buf := l.vm.daemon.buffers.Get().(*buffer)
	defer l.vm.daemon.buffers.Put(buf)
	for {
		l.mu.Lock()
		limit := min(l.credit, wire.MaxData)
		l.mu.Unlock()
		if limit == 0 {
			return nil // Extract refuses if there is more
		}
		var n int
		err := l.socket.control(func(fd int) (err error) {
			n, err = read(fd, buf[wire.HeaderSize:wire.HeaderSize+limit])
			return err
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err == nil && n == 0:
			return errUnsettled // the receiver will meet the end of file too
		}
		if err := l.pass(buf, n, err); err != nil {
			return err
		}
	}
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
