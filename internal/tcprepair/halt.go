package tcprepair

import (
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// Halt makes the live socket on fd, which Restore has made, send nothing new, however much waits in its send queue: the first step of giving a connection
// back in the middle of a transfer. It goes on to receive, to acknowledge and to retransmit; Progress tells when the peer has
// acknowledged all that has been on the wire, and SnapshotHalted reads the connection's state at this point. Thaw undoes it, but what the
// kernel took for sent meanwhile leaves only after a retransmission timer. The caller owns fd.
//
// In repair mode with the send queue selected, tcp_write_xmit (net/ipv4/tcp_output.c) goes through the motions of sending without a segment. The
// retransmission timer knows nothing of that: once it has run out, what only seemed to be sent is sent. A halt is a matter of a round trip.
func Halt(fd int) error {
	c := calls{fd: fd}
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	c.setTCP(unix.TCP_REPAIR_QUEUE, sendQueue)
	if err := c.err(); err != nil {
		return &Error{Op: "halt", Left: LeftRepair, Err: err}
	}
	return nil
}

// Progress is how far a socket has come since Restore made it, in bytes of the stream that it sends.
type Progress struct {
	Sent  uint64 // have been on the wire
	Acked uint64 // were acknowledged
}

// ProgressOf tells how far the socket on fd has come. It changes nothing.
func ProgressOf(fd int) (Progress, error) {
	c := calls{fd: fd}
	i := c.info()
	return i.progress(), inspectError(&c)
}

// progress goes by the counters of what was transmitted: snd_nxt counts what a halted socket only seems to send.
func (i *info) progress() Progress {
	return Progress{Sent: i.bytesSent - i.bytesRetrans, Acked: i.bytesAcked}
}

// SnapshotHalted is Snapshot for a halted socket, whose send queue need not be empty: st.SendSeq becomes the sequence number of the first byte that has not been
// on the wire, and the caller, who knows what the bytes from there on are, has the new owner send them. start is the send sequence number that Restore was
// given. It refuses with ErrNotEstablished, ErrUnacked (what has been on the wire is not acknowledged yet) or ErrWindowShrunk.
func SnapshotHalted(fd int, st *tcpstate.State, read, start uint32) error {
	c := calls{fd: fd}
	i := c.info()
	p := i.progress()
	var refusal error
	switch {
	case c.errno != 0:
		refusal = c.err()
	case ConnState(i.state) != Established:
		refusal = &StateError{State: ConnState(i.state)}
	case p.Acked != p.Sent:
		refusal = ErrUnacked
	}
	if refusal != nil {
		return &Error{Op: "snapshot", Left: LeftRepair, Err: refusal}
	}
	c.readParameters(st, &i) // the send queue must stay selected
	c.window(&st.Window)
	st.SendSeq = start + uint32(p.Sent)
	return snapshotWindow(&c, st, read)
}
