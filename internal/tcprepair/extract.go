package tcprepair

import (
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// infoOptUsecTS is TCPI_OPT_USEC_TS (include/uapi/linux/tcp.h, Linux 6.7): the connection's timestamps count microseconds.
const infoOptUsecTS = 1 << 6

// Extract enters repair mode and reads the connection on the frozen fd into st, except Local and Remote, which the caller
// has, and what ReadOptions fills. An MSS other than 0 is kept: it is constant for the life of a connection, so the side that
// restored it knows it. The caller owns fd.
//
// It refuses with ErrNotEstablished, ErrUnread, ErrUnacked, ErrNotPlainTCP or ErrWindowShrunk in an *Error, which tells
// whether the socket is in repair mode by then. Thaw undoes both.
func Extract(fd int, st *tcpstate.State) error {
	_, err := ExtractUnacked(fd, st, 0)
	return err
}

// ExtractUnacked is Extract for a connection that may have up to limit bytes (payload) in its send queue, unacknowledged or unsent. It
// returns how many there are, and st.SendSeq is the sequence number of the first: whoever restores the connection must send exactly these
// bytes again, which the peer takes for a retransmission. The queue itself is not read: the caller knows what it has sent.
func ExtractUnacked(fd int, st *tcpstate.State, limit int) (unacked int, err error) {
	c := calls{fd: fd}
	i := c.info()
	if i.unackedSegs != 0 || i.notSentBytes != 0 {
		unacked = c.ioctl(unix.SIOCOUTQ, "ioctl SIOCOUTQ")
	}
	switch {
	case c.errno != 0:
		err = c.plainTCPError()
	case ConnState(i.state) != Established:
		err = &StateError{State: ConnState(i.state)}
	case unacked > limit:
		err = ErrUnacked
	default:
		if c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON); c.errno != 0 {
			err = c.plainTCPError()
		}
	}
	if err != nil {
		return 0, &Error{Op: "extract", Left: LeftFrozen, Err: err}
	}
	c.readRepair(st, &i)
	st.SendSeq -= uint32(unacked)
	// The last call: a segment that was past the filter when Freeze attached it may be processed until now. The memory of
	// the queue counts out-of-order segments and a FIN as well, which SIOCINQ does not.
	queued := c.get(unix.SOL_SOCKET, unix.SO_MEMINFO) // its first number is SK_MEMINFO_RMEM_ALLOC
	switch err = c.err(); {
	case err != nil:
	case queued != 0:
		err = ErrUnread
	case int32(st.Window.RcvWup+st.Window.RcvWnd-st.RecvSeq) <= 0:
		// The queue is empty, so a window that was never retracted would be open. A retraction that left a part of the
		// window open cannot be seen.
		err = ErrWindowShrunk
	}
	if err != nil {
		return 0, &Error{Op: "extract", Left: LeftRepair, Err: err}
	}
	return unacked, nil
}

// readRepair reads what only repair mode tells, and i.
func (c *calls) readRepair(st *tcpstate.State, i *info) {
	st.Options = i.options & (tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale)
	st.SendWScale, st.RecvWScale = i.wscale&0xf, i.wscale>>4
	if st.MSS == 0 {
		// In repair mode this is the clamp from the handshake, without it the current segment size (do_tcp_getsockopt,
		// net/ipv4/tcp.c). A clamp beyond the limit of the option can only come from a link with a huge MTU.
		st.MSS = uint16(min(c.getTCP(unix.TCP_MAXSEG), tcpstate.MaxMSS))
	}
	st.Timestamp = 0
	if st.Options&tcpstate.OptTimestamps != 0 {
		st.Timestamp = nextTimestamp(c.getTCP(unix.TCP_TIMESTAMP), i.options&infoOptUsecTS != 0)
	}
	c.setTCP(unix.TCP_REPAIR_QUEUE, sendQueue)
	st.SendSeq = c.getTCP(unix.TCP_QUEUE_SEQ)
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue) // and stays so, for Confirm
	st.RecvSeq = c.getTCP(unix.TCP_QUEUE_SEQ)
	c.window(&st.Window)
}

// nextTimestamp makes a clock reading fit for another kernel. Since Linux 6.7 bit 0 means microseconds; older kernels answer
// the clock with any bit 0, which a newer one would misread, running the clock 1,000 times too fast. Two are added so that
// the clock never runs backwards, which PAWS would take for an old segment (RFC 7323, section 5).
func nextTimestamp(clock uint32, microseconds bool) uint32 {
	if microseconds {
		return (clock + 2) | 1
	}
	return (clock + 2) &^ 1
}

// Confirm tells whether the socket on fd is still as Extract left it, and fails with ErrUnread if a segment slipped in. Such
// a segment had passed the filter on another CPU before Freeze attached it, and its CPU was held up since. It is
// acknowledged, so the peer will not send it again, and the state that went to the other side is without it. Call Confirm
// as late as possible: after the other side has restored, and before Release or Park. It costs one system call.
func Confirm(fd int, st *tcpstate.State) error {
	c := calls{fd: fd}
	seq := c.getTCP(unix.TCP_QUEUE_SEQ)
	err := c.err()
	if err == nil && seq != st.RecvSeq {
		err = ErrUnread
	}
	if err != nil {
		return &Error{Op: "confirm", Left: LeftRepair, Err: err}
	}
	return nil
}

// plainTCPError is the first failure, as ErrNotPlainTCP if it says so: MPTCP knows no TCP_REPAIR, other protocols no TCP_INFO.
func (c *calls) plainTCPError() error {
	if c.errno == unix.ENOPROTOOPT || c.errno == unix.EOPNOTSUPP {
		return ErrNotPlainTCP
	}
	return c.err()
}
