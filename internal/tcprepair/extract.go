package tcprepair

import (
	"io"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// infoOptUsecTS is TCPI_OPT_USEC_TS (include/uapi/linux/tcp.h, Linux 6.7): the connection's timestamps count microseconds.
const infoOptUsecTS = 1 << 6

// Extract enters repair mode and reads the connection on the frozen fd into st, except Local and Remote, which the caller
// has, and what ReadOptions fills. An MSS other than 0 is kept: it is constant for the life of a connection, so the side that
// restored it knows it. So is a congestion window that the connection began with on this socket and has not filled. The caller owns fd.
//
// It refuses with ErrNotEstablished, ErrUnread, ErrUnacked, ErrNotPlainTCP, ErrWindowShrunk or ErrPeerWindow in an *Error, which tells
// whether the socket is in repair mode by then. Thaw undoes both.
func Extract(fd int, st *tcpstate.State) error {
	c := calls{fd: fd}
	i := c.info()
	if err := c.enterRepair(&i); err != nil {
		return &Error{Op: "extract", Left: LeftFrozen, Err: err}
	}
	c.readRepair(st, &i)
	c.setTCP(unix.TCP_REPAIR_QUEUE, sendQueue)
	st.SendSeq = c.getTCP(unix.TCP_QUEUE_SEQ)
	c.readReceived(st)
	// The last call: a segment that was past the filter when Freeze attached it may be processed until now. The memory of
	// the queue counts out-of-order segments and a FIN as well, which SIOCINQ does not.
	queued := c.get(unix.SOL_SOCKET, unix.SO_MEMINFO) // its first number is SK_MEMINFO_RMEM_ALLOC
	err := c.err()
	switch {
	case err != nil:
	case queued != 0:
		err = ErrUnread
	case int32(st.Window.RcvWup+st.Window.RcvWnd-st.RecvSeq) <= 0:
		// The queue is empty, so a window that was never retracted would be open. A retraction that left a part of the
		// window open cannot be seen.
		err = ErrWindowShrunk
	case st.Window.SndWnd < uint32(st.MSS):
		err = ErrPeerWindow
	}
	if err != nil {
		return &Error{Op: "extract", Left: LeftRepair, Err: err}
	}
	return nil
}

// Snapshot is Extract for a live socket that stays open to the peer: in repair mode it goes on to receive and to acknowledge, so nothing
// that the peer says is lost, and Seal tells later what it was. read is the sequence number of the next byte that the caller would read:
// st.RecvSeq is set to it, and what is queued behind it counts as said later. written is the sequence number behind the last byte that the caller has
// written, as for Halt. The caller owns fd and neither reads nor writes it until Thaw, or Seal and Park.
//
// A halted socket may have more to send: st.SendSeq is the sequence number of the first byte that has not been on the wire, and the caller, who knows
// what the bytes from there on are, has the new owner send them.
//
// With ended the peer may have closed its direction, which Seal tells.
//
// It refuses with ErrNotEstablished, ErrUnacked or ErrWindowShrunk.
func Snapshot(fd int, st *tcpstate.State, read, written uint32, halted, ended bool) error {
	c := calls{fd: fd}
	i := c.info()
	st.SendSeq = written - i.notSentBytes
	if halted {
		i.notSentBytes = 0
	}
	if ended && ConnState(i.state) == CloseWait {
		i.state = uint8(Established)
	}
	if err := c.enterRepair(&i); err != nil {
		return &Error{Op: "snapshot", Left: LeftLive, Err: err}
	}
	c.readRepair(st, &i)
	if st.Options&tcpstate.OptTimestamps != 0 {
		st.Timestamp = aheadOf(st.Timestamp, i.options&infoOptUsecTS != 0)
	}
	// written is the caller's to know, because a socket that hears its peer must not have its send queue chosen: the kernel then takes what waits there for
	// sent, without sending it, as soon as the peer says something (tcp_write_xmit, net/ipv4/tcp_output.c).
	c.readReceived(st)
	st.RecvSeq = read
	err := c.err()
	w := &st.Window
	edge := w.RcvWup + w.RcvWnd // how far the peer may send
	switch {
	case err != nil:
	case int32(edge-read) <= 0:
		err = ErrWindowShrunk
	case int32(w.RcvWup-read) > 0:
		// The window was last told behind bytes that the new owner gets as said later. It must keep the edge, and
		// TCP_REPAIR_WINDOW takes no rcv_wup beyond the receive sequence (tcp_repair_set_window, net/ipv4/tcp.c).
		w.RcvWup, w.RcvWnd = read, edge-read
	}
	if err != nil {
		return &Error{Op: "snapshot", Left: LeftRepair, Err: err}
	}
	return nil
}

// Seal ends what Snapshot began: it stops the input of fd, and returns how many bytes the peer has said since st was read, and whether
// its FIN came behind them. ReadLate reads them. The peer's window in st becomes the one that it has told last. The connection is st with RecvSeq+late
// from now on, whoever has it. What comes to fd afterwards is sent on: that is, Park is to follow at once. ErrNotEstablished means that the peer has
// reset the connection.
func (h *Holder) Seal(fd int, st *tcpstate.State) (late int, fin bool, err error) {
	c := calls{fd: fd}
	c.set(unix.SOL_SOCKET, unix.SO_ATTACH_BPF, uint32(h.program.FD()))
	i := c.info()
	var w tcpstate.Window
	c.window(&w)
	st.Window.SetPeer(w.Peer())
	late = int(c.getTCP(unix.TCP_QUEUE_SEQ) - st.RecvSeq)
	if err = c.err(); err == nil {
		switch ConnState(i.state) {
		case Established:
			return late, false, nil
		case CloseWait: // the FIN has a sequence number
			return late - 1, true, nil
		}
		err = &StateError{State: ConnState(i.state)}
	}
	return 0, false, &Error{Op: "seal", Left: LeftRepair, Err: err}
}

// ReadLate fills p with the first len(p) bytes of those that Seal has counted.
func ReadLate(fd int, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, _, err := unix.Recvfrom(fd, p, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == nil && n < len(p) {
		// A peek, all that is possible in repair mode, ends before a byte that was sent as urgent (tcp_recvmsg_locked, net/ipv4/tcp.c).
		err = readLive(fd, p)
	}
	if errno, ok := err.(unix.Errno); ok {
		err = &CallError{Call: "recvfrom", Errno: errno}
	}
	if err != nil {
		return &Error{Op: "read late", Left: LeftRepair, Err: err}
	}
	return nil
}

// readLive fills p from a socket that nothing reaches any more, out of repair mode.
func readLive(fd int, p []byte) error {
	c := calls{fd: fd}
	c.goLive()
	for len(p) > 0 && c.err() == nil {
		n, _, err := unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		p = p[n:]
	}
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue) // as it was
	return c.err()
}

// enterRepair checks what must hold of a connection that is to be read, and enters repair mode.
func (c *calls) enterRepair(i *info) error {
	switch {
	case c.errno != 0:
		return c.plainTCPError()
	case ConnState(i.state) != Established:
		return &StateError{State: ConnState(i.state)}
	case i.unackedSegs != 0 || i.notSentBytes != 0:
		return ErrUnacked
	}
	if c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON); c.errno != 0 {
		return c.plainTCPError()
	}
	return nil
}

// readRepair reads what only repair mode tells, except the queues, and i. Before, st.Cwnd is the window that the socket began with; 0: TCP's own.
func (c *calls) readRepair(st *tcpstate.State, i *info) {
	st.Options = i.options & (tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale)
	st.SendWScale, st.RecvWScale = i.wscale&0xf, i.wscale>>4
	st.Cwnd, st.Ssthresh = min(i.startWindow(st.Cwnd), tcpstate.MaxCwnd), i.sndSsthresh
	if st.Ssthresh > tcpstate.MaxCwnd { // TCP_INFINITE_SSTHRESH (include/net/tcp.h): none was found
		st.Ssthresh = 0
	}
	st.RTT = time.Duration(i.rttUs) * time.Microsecond
	if st.MSS == 0 {
		// In repair mode this is the clamp from the handshake, without it the current segment size (do_tcp_getsockopt,
		// net/ipv4/tcp.c). A clamp beyond the limit of the option can only come from a link with a huge MTU.
		st.MSS = uint16(min(c.getTCP(unix.TCP_MAXSEG), tcpstate.MaxMSS))
	}
	st.Timestamp = 0
	if st.Options&tcpstate.OptTimestamps != 0 {
		st.Timestamp = nextTimestamp(c.getTCP(unix.TCP_TIMESTAMP), i.options&infoOptUsecTS != 0)
	}
}

// readReceived reads what was received. The receive queue stays chosen, for Confirm and Seal.
func (c *calls) readReceived(st *tcpstate.State) {
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
	st.RecvSeq = c.getTCP(unix.TCP_QUEUE_SEQ)
	c.window(&st.Window)
}

// initialWindow is TCP_INIT_CWND (include/net/tcp.h; RFC 6928).
const initialWindow = 10

// startWindow is the congestion window that the connection would send its next data with: after a pause it is halved for each retransmission timeout that
// has passed, down to the initial one (RFC 2861; tcp_cwnd_restart, net/ipv4/tcp_output.c).
//
// A window that began with so many segments has not grown before these were delivered: BBR adds to the window what is acknowledged, whether there was use for it or
// not, until it knows the path (bbr_set_cwnd, net/ipv4/tcp_bbr.c), which it begins to learn anew with each change of hands.
func (i *info) startWindow(began uint32) uint32 {
	w := i.sndCwnd
	if began = max(began, initialWindow); i.delivered < began {
		w = min(w, began)
	}
	for idle := int64(i.sinceDataMs) * 1000; idle > int64(i.rtoUs) && i.rtoUs > 0 && w > initialWindow; idle -= int64(i.rtoUs) {
		w = max(w/2, initialWindow)
	}
	return w
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

// clockAhead is how far the clock of a snapshot is ahead. The socket goes on to acknowledge what its peer says, by a clock that runs until Seal; the new owner's
// begins when it restores, which a busy machine may delay by tens of milliseconds. Were it behind what the peer has heard last, the peer would drop what the new owner
// sends as old (PAWS: RFC 7323, section 5.3), and wait for its retransmission timer. A clock may run ahead: all that was sent before is acknowledged.
const clockAhead = time.Second

// aheadOf is a clock reading clockAhead later.
func aheadOf(clock uint32, microseconds bool) uint32 {
	if microseconds {
		return clock + uint32(clockAhead.Microseconds())
	}
	return clock + uint32(clockAhead.Milliseconds())
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
