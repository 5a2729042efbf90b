package tcprepair

import (
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// NewTransparent makes a socket for Restore: AF_INET or AF_INET6, non-blocking, close-on-exec, allowed to have addresses that
// are not this machine's, frozen and in repair mode. The caller owns the fd and closes it, which is silent.
//
// The drop program keeps segments away from the half-made connection that exists between connect and the last option: it
// would acknowledge them without timestamps and with a wrongly scaled window.
func (f *Freezer) NewTransparent(family int) (fd int, err error) {
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		errno, _ := err.(unix.Errno) // package unix returns nothing else
		return -1, &Error{Op: "new transparent socket", Left: LeftClosed, Err: &CallError{Call: "socket", Errno: errno}}
	}
	c := calls{fd: fd}
	c.setTransparent(family == unix.AF_INET6, true)
	usual := usualOptions(family)
	c.setOptions(&tcpstate.State{}, &usual)
	c.set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) // what is read must be what the sequence numbers count
	c.set(unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.fd)
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue) // where load starts
	if err := c.err(); err != nil {
		unix.Close(fd)
		return -1, &Error{Op: "new transparent socket", Left: LeftClosed, Err: err}
	}
	return fd, nil
}

// Restore makes the socket on fd, which comes from NewTransparent for the family of st, the connection of st: live when it
// returns, with the options, keepalive and congestion control of st, or the system's congestion control if the kernel has no
// such one (see CongestionControls for states from a guest). The caller owns fd, also after an error, when it is still in
// repair mode: close it, which is silent, and do not use it again.
func Restore(fd int, st *tcpstate.State) error { return restore(fd, st, nil, true) }

// RestoreHeld is Restore of a connection that is not to live yet: it stays frozen and in repair mode until Thaw, and its close is silent. said is what the peer
// has sent from st.RecvSeq on, which the socket that had the connection before has acknowledged (Seal): it is in the receive queue, to be read. The caller owns fd.
func RestoreHeld(fd int, st *tcpstate.State, said []byte) error { return restore(fd, st, said, false) }

func restore(fd int, st *tcpstate.State, said []byte, live bool) error {
	if err := st.Check(); err != nil {
		return &Error{Op: "restore", Left: LeftRepair, Err: err}
	}
	family := unix.AF_INET
	if st.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	local, remote := newSockaddr(family, st.Local), newSockaddr(family, st.Remote)
	c := calls{fd: fd}
	usual := usualOptions(family)
	c.setOptions(&usual, st)
	c.setCongestion(st.Congestion)
	c.setSequence(st)
	c.bind(&local)
	c.connect(&remote)
	c.setConnected(st)
	if len(said) > 0 {
		c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
		c.send(said)
	}
	if live {
		c.detach()
		c.goLive()
	}
	if err := c.err(); err != nil {
		return &Error{Op: "restore", Left: LeftRepair, Err: err}
	}
	return nil
}

// Park moves the extracted connection on fd silently to TCP_CLOSE: it leaves the kernel's connection table, and the fd is
// ready for RestoreInPlace, or for a close, which is silent. See the package comment for what must not happen meanwhile. The
// caller owns fd.
func Park(fd int) error {
	c := calls{fd: fd}
	c.disconnect()
	if err := c.err(); err != nil {
		return &Error{Op: "park", Left: LeftRepair, Err: err}
	}
	return nil
}

// RestoreInPlace makes the parked fd the connection of st, which must be the one that it was. It is live when it returns. Its
// options, congestion control and keepalive parameters are those that the fd has had all the time; ka is what ReadOptions
// told. The caller owns fd. After an error it is parked again and RestoreInPlace may be retried, unless the *Error says
// otherwise.
func RestoreInPlace(fd int, st *tcpstate.State, ka tcpstate.KeepAlive) error {
	if err := st.Check(); err != nil {
		return &Error{Op: "restore in place", Left: LeftParked, Err: err}
	}
	c := calls{fd: fd}
	c.loadInPlace(st)
	if err := c.err(); err != nil {
		left := LeftParked
		again := calls{fd: fd}
		if again.disconnect(); again.errno != 0 {
			left = LeftRepair
		}
		return &Error{Op: "restore in place", Left: left, Err: err}
	}
	c.detach()
	c.goLive()
	c.keepAliveOn(ka)
	if err := c.err(); err != nil {
		return &Error{Op: "restore in place", Left: LeftRepair, Err: err}
	}
	return nil
}

// loadInPlace makes the parked socket the connection of st, still frozen and in repair mode.
func (c *calls) loadInPlace(st *tcpstate.State) {
	bound := c.localAddress()
	family := bound.family()
	if c.errno == 0 && family == unix.AF_INET && !st.Local.Addr().Is4() {
		c.fail(unix.EAFNOSUPPORT, "bind", 0, 0)
	}
	local, remote := newSockaddr(family, st.Local), newSockaddr(family, st.Remote)
	c.setTCP(unix.TCP_MAXSEG, uint32(st.MSS)) // see setOptions
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
	c.setSequence(st)
	c.bind(&local)
	if c.errno == unix.EINVAL && c.call == "bind" && bound == local {
		// A socket that an earlier RestoreInPlace has bound stays so when it is parked, and refuses to be bound again. An
		// accepted one loses its port, although getsockname does not say so.
		c.forget()
	}
	c.connect(&remote)
	c.setConnected(st)
}

// setSequence gives the closed socket its sequence numbers. It starts at the receive queue and ends at the other one.
func (c *calls) setSequence(st *tcpstate.State) {
	c.setTCP(unix.TCP_QUEUE_SEQ, st.RecvSeq)
	c.setTCP(unix.TCP_REPAIR_QUEUE, sendQueue)
	c.setTCP(unix.TCP_QUEUE_SEQ, st.SendSeq)
}

// setConnected gives the socket, once connected, the rest of st.
func (c *calls) setConnected(st *tcpstate.State) {
	// The window shifts are set even when there are none: connect has chosen a shift of its own, which the peer does not know
	// (tcp_connect_init). A connection without window scaling is one with shifts of 0 from here on.
	options := [3]repairOption{{code: unix.TCPOPT_WINDOW}}
	if st.Options&tcpstate.OptWScale != 0 {
		options[0].value = uint32(st.SendWScale) | uint32(st.RecvWScale)<<16
	}
	n := 1
	if st.Options&tcpstate.OptSACK != 0 {
		options[n] = repairOption{code: unix.TCPOPT_SACK_PERMITTED}
		n++
	}
	if st.Options&tcpstate.OptTimestamps != 0 {
		options[n] = repairOption{code: unix.TCPOPT_TIMESTAMP}
		n++
	}
	c.setRepairOptions(options[:n])
	if st.Options&tcpstate.OptTimestamps != 0 {
		c.setTCP(unix.TCP_TIMESTAMP, st.Timestamp)
	}
	c.setWindow(&st.Window)
}

// TakeIn moves the receive sequence of the live connection on fd past p, which the peer has sent, from the sequence number seq on, to the socket that had
// the connection before, where it was acknowledged (Seal). The bytes do not stay in the receive queue: the caller has them. It owns fd, of which nobody
// has read anything behind seq.
//
// The peer may have sent p, or a part of it, again to fd meanwhile, as an acknowledgement was late: it counts once. And the peer goes by the window
// of the socket before, which may have been full, until it hears of this one's: fd tells it.
func (f *Freezer) TakeIn(fd int, seq uint32, p []byte) error {
	c := calls{fd: fd}
	c.set(unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.fd) // nothing may come between looking and adding
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
	if have := int(int32(c.getTCP(unix.TCP_QUEUE_SEQ) - seq)); have < len(p) {
		c.send(p[max(have, 0):])
		if now := c.getTCP(unix.TCP_QUEUE_SEQ); have < 0 || now != seq+uint32(len(p)) {
			c.fail(unix.EILSEQ, "take in", unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
	}
	// With no window to begin with, the read that follows opens it, which the kernel tells the peer at once (__tcp_cleanup_rbuf, net/ipv4/tcp.c).
	// A segment that has come out of order may have told the peer's window, but TCP_REPAIR_WINDOW takes no snd_wl1 beyond the window.
	var w tcpstate.Window
	c.window(&w)
	w.RcvWnd = 0
	if next := c.getTCP(unix.TCP_QUEUE_SEQ); int32(w.SndWl1-next) > 0 {
		w.SndWl1 = next
	}
	c.setWindow(&w)
	c.goLive()
	c.discard(len(p))
	c.detach()
	if err := c.err(); err != nil {
		return &Error{Op: "take in", Left: LeftRepair, Err: err}
	}
	return nil
}

// UpdateWindow gives the live connection on fd the peer's window as the socket that had the connection before heard of it last (Seal). was is what
// RestoreInPlace got: if the peer has told fd itself of a newer one, nothing is done. The caller owns fd.
func UpdateWindow(fd int, was, now tcpstate.PeerWindow) error {
	c := calls{fd: fd}
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	var w tcpstate.Window
	c.window(&w)
	if w.Peer() == was {
		w.SetPeer(now)
		c.setWindow(&w)
	}
	c.goLive()
	if err := c.err(); err != nil {
		return &Error{Op: "update window", Left: LeftRepair, Err: err}
	}
	return nil
}

// Release makes the coming close of fd silent, by entering repair mode if Extract has not done so: no FIN and no RST leaves,
// since the connection lives on elsewhere. The caller owns fd and must close it now, and nothing else: a shutdown(2), such
// as CloseWrite, would send a FIN.
func Release(fd int) error {
	c := calls{fd: fd}
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	if err := c.err(); err != nil {
		return &Error{Op: "release", Left: LeftFrozen, Err: err}
	}
	return nil
}

// Abort makes the coming close of fd send a RST, whether it was frozen, extracted or live. A parked socket has no connection
// any more: its close stays silent. The caller owns fd and must close it now.
func Abort(fd int) error {
	c := calls{fd: fd}
	off := unix.TCP_REPAIR_OFF_NO_WP
	c.setTCP(unix.TCP_REPAIR, uint32(off))
	c.setLinger(unix.Linger{Onoff: 1})
	if err := c.err(); err != nil {
		return &Error{Op: "abort", Left: LeftFrozen, Err: err}
	}
	return nil
}
