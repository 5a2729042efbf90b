package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// errGivenUp is what the server meets after its write deadline has passed in the middle of a SEND.
var errGivenUp = errors.New("reset, as a file was not sent before the write deadline")

// sendFile sends the head that was held back and a file range through the host. It returns the bytes of the range that were sent; fewer than
// asked for without an error means that the caller sends the rest (and the head, which is still held back if nothing was sent).
// c.writing is held.
func (c *Conn) sendFile(send wire.Send) (int64, error) {
	if err := c.lockSettled(); err != nil {
		return 0, err
	}
	send.Header = c.head
	var err error
	wasLocal := c.end.Phase() == lease.Local
	if wasLocal {
		err = c.handover(send)
	} else {
		err = c.sendLeased(send)
	}
	c.mu.Unlock()
	if err != nil {
		var reason wire.Reason
		if !errors.As(err, &reason) {
			reason = wire.ReasonKernel
		}
		c.refuse(reason)
		if reason == wire.ReasonKernel {
			c.agent.warn(&c.agent.handovers, "handover failed; serving locally", c, err)
		}
		if wasLocal {
			c.turn.answered(c.agent.costs, send.Count, locally, true)
		}
		return 0, nil // settle tells if the connection is broken
	}
	n, err := c.awaitSent(send)
	if n == send.Count {
		c.turn.answered(c.agent.costs, n, byHost, wasLocal)
	}
	return n, err
}

// sendFlags are the flags of a SEND: in mode Offload the connection comes back after it, and so it does when the host's way has proved to cost more.
func (c *Conn) sendFlags(count int64) wire.Flags {
	if c.agent.policy.Mode == Offload || c.turn.returns(c.agent.costs, count) {
		return wire.FlagReturn
	}
	return 0
}

// sendLeased orders a range on a leased connection. c.mu is held.
func (c *Conn) sendLeased(send wire.Send) error {
	frame := frames.get()
	defer frames.put(frame)
	*frame = wire.Append(*frame, c.session.ID, c.id, c.sendFlags(send.Count), send)
	if err := c.session.Write(*frame); err != nil {
		return wire.ReasonHostAway
	}
	c.sending, c.sendCount = true, send.Count
	c.ordered = time.Now()
	if !c.asked.IsZero() {
		c.agent.stats.step(StepAnswer, c.ordered.Sub(c.asked))
		c.asked = time.Time{}
	}
	return nil
}

// handover gives the connection to the host together with its first order. c.mu is held. After an error the connection is local.
func (c *Conn) handover(send wire.Send) error {
	if reason := c.agent.refusal(send.Count); reason != wire.ReasonOK {
		return reason
	}
	if c.inEnd {
		return wire.ReasonNotEstablished // our kernel may not know of the FIN: the host's has acknowledged it
	}
	if c.remote.Addr() == c.local.Addr() || c.remote.Addr().IsLoopback() {
		return wire.ReasonAddress // the host never sees the packets of a client on this machine
	}
	link, id, reason := c.agent.enlist(c)
	if reason != wire.ReasonOK {
		return reason
	}
	// Wake a reader that waits for our socket: from now on the client's bytes come through the host.
	_ = c.tcp.SetReadDeadline(longAgo)
	state := tcpstate.State{Local: c.local, Remote: c.remote}
	c.began = time.Now()
	err := c.end.Handover(&state, c.drainInput, func() error {
		if err := state.Check(); err != nil { // the host would end the session
			return fmt.Errorf("%w: %w", wire.ReasonInvalid, err)
		}
		c.agent.stats.step(StepFreeze, time.Since(c.began))
		s := link.session
		c.link, c.session, c.id, c.credit, c.dataSent, c.unCredited, c.outEnd, c.kept = link, s, id, int(s.Hello.Window), 0, 0, false, false
		c.early = c.in.len()
		c.sending, c.sendCount = true, send.Count // before the frame leaves: the answer comes on another goroutine, which waits for c.mu
		frame := frames.get()
		defer frames.put(frame)
		*frame = wire.Append(*frame, s.ID, id, 0, wire.Handover{State: state})
		*frame = wire.Append(*frame, s.ID, id, c.sendFlags(send.Count), send)
		if err := s.Write(*frame); err != nil {
			c.sending = false
			return fmt.Errorf("%w: %w", wire.ReasonHostAway, err)
		}
		return nil
	})
	if err != nil {
		link.delist(id, c)
		c.afterUnwinding(err)
	}
	return err
}

// drainInput reads what the client has sent before the freeze. c.mu is held.
func (c *Conn) drainInput() error {
	var rerr error
	cerr := c.raw.Control(func(fd uintptr) {
		var buf [4 << 10]byte
		for {
			if c.in.len() > maxUnread {
				rerr = wire.ReasonUnreadInput
				return
			}
			n, err := retryEINTR(func() (int, error) { return unix.Read(int(fd), buf[:]) })
			if err == unix.EAGAIN || n == 0 { // 0: the client's FIN; Extract refuses such a connection
				return
			}
			if err != nil {
				rerr = err
				return
			}
			c.in.add(buf[:n])
		}
	})
	return errors.Join(cerr, rerr)
}

// maxUnread bounds what a client may have sent ahead at a handover; more than this is an upload that is still coming.
const maxUnread = 64 << 10

// afterUnwinding makes the connection usable again after a handover that was refused or has failed, or marks it as broken. c.mu is held.
func (c *Conn) afterUnwinding(cause error) {
	switch c.end.Phase() {
	case lease.Local:
		c.becomeLocal()
	case lease.Gone:
		c.fail(cause)
	}
}

// becomeLocal hands the socket back to the server. c.mu is held.
func (c *Conn) becomeLocal() {
	c.session, c.sending = nil, false
	c.asked, c.ordered = time.Time{}, time.Time{}
	_ = c.deadlineToSocket()
	if c.closed {
		_ = c.tcp.Close()
	}
	c.wake()
}

// fail ends the connection for the server. c.mu is held.
func (c *Conn) fail(err error) {
	c.failed = err
	c.session, c.sending = nil, false
	_ = c.tcp.Close() // silent or a reset, as package lease has prepared it
	c.wake()
}

// awaitSent waits for the end of the SEND under way. c.writing is held.
func (c *Conn) awaitSent(send wire.Send) (int64, error) {
	r, err := c.result(send.Count)
	if err != nil {
		return 0, err
	}
	switch r.kind {
	case wire.TypeRefused:
		c.refuse(r.reason)
		return 0, nil
	case wire.TypeSent:
		return c.finishSent(send, r)
	case wire.TypeHandback: // the caller sends the rest
		c.takeHead()
		c.agent.stats.count(func(s *Counts) { s.Sends++; s.SentBytes += uint64(r.bytes) })
		return r.bytes, nil
	}
	c.takeHead()
	return 0, c.settle() // the connection is over, and settle has the cause
}

// pollCount is up to which size, in bytes, the end of a SEND is polled for. A larger file keeps host and client busy, who can use the CPU, and its client has
// still to read when SENT comes, so nobody waits for this side to wake up.
const pollCount = 128 << 10

// result waits for what becomes of the SEND under way. It gives up when the server closes the connection or its write deadline passes; no other
// SEND can begin then (settle), so a result that comes later is taken by nobody.
func (c *Conn) result(count int64) (result, error) {
	for {
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		select {
		case r := <-c.results: // it counts even on a connection that is closed
			return r, nil
		default:
		}
		if closed { // the host resets it
			c.takeHead()
			return result{}, c.opError("write", net.ErrClosed)
		}
		if count <= pollCount {
			c.poll(&c.agent.expects.results, func() bool { return len(c.results) > 0 })
		}
		select {
		case r := <-c.results:
			return r, nil
		case <-c.writable: // Close, among others
		case <-c.sendUntil.wait():
			c.giveUp()
			return result{}, c.opError("write", os.ErrDeadlineExceeded)
		}
	}
}

// giveUp resets a connection whose SEND did not end before the server's write deadline.
func (c *Conn) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeHead()
	if c.failed != nil {
		return
	}
	c.failed = errGivenUp
	if c.end.Phase() == lease.Leased {
		c.sayAbort()
	} // a connection that is on its way to the host is reset when it is there (granted)
}

// finishSent ends a SEND after which the host keeps the connection.
func (c *Conn) finishSent(send wire.Send, r result) (int64, error) {
	if r.reason == wire.ReasonChanged || r.reason == wire.ReasonNotFound {
		c.agent.forgetFile(send.File.Share, send.File.Path) // what was known of it is out of date
	}
	switch {
	case !r.started:
		// Nothing was sent: the head is still ours, and the bytes go as DATA.
		c.refuse(r.reason)
		return 0, nil
	case r.reason != wire.ReasonOK || r.bytes != send.Count:
		c.takeHead()
		return r.bytes, c.opError("sendfile", fmt.Errorf("the host sent %d of %d bytes of %s/%s: %w",
			r.bytes, send.Count, send.File.Share, send.File.Path, r.reason))
	}
	c.takeHead()
	c.agent.stats.count(func(s *Counts) { s.Sends++; s.SentBytes += uint64(r.bytes) })
	return r.bytes, nil
}
