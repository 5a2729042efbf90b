package guest

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// event takes one frame of the lease. It is called by the goroutine that reads the channel and waits for nothing but c.mu.
func (c *Conn) event(head wire.Header, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return nil // it crossed with the end of the lease
	}
	switch head.Type {
	case wire.TypeGranted:
		return c.granted()
	case wire.TypeRefused:
		return c.refused(payload)
	case wire.TypeData:
		return c.data(payload)
	case wire.TypeCredit:
		m, err := wire.ParseCredit(payload)
		if err != nil {
			return err
		}
		c.credit += int(m.Bytes)
		c.wake()
	case wire.TypeSent:
		return c.sent(head, payload)
	case wire.TypeEnd:
		c.inEnd = true
		c.wake()
	case wire.TypeClosed:
		return c.closedByHost(payload)
	case wire.TypeHandback:
		return c.handback(payload)
	case wire.TypeReleased:
		return c.released(payload)
	default:
		return fmt.Errorf("%w: not for a guest", wire.ErrFormat)
	}
	return nil
}

// tell gives news to the writer. The capacity of c.results is the number of results that a SEND can have, so a full channel means that the
// host repeats itself.
func (c *Conn) tell(r result) error {
	select {
	case c.results <- r:
		return nil
	default:
		return fmt.Errorf("%w: out of turn", wire.ErrFormat)
	}
}

func (c *Conn) granted() error {
	err := c.end.Granted()
	if errors.Is(err, lease.ErrPhase) {
		return err
	}
	c.agent.stats.count(func(s *Counts) { s.Handovers++ })
	took := time.Since(c.began)
	c.agent.stats.step(StepHandover, took)
	if c.agent.costs != nil {
		c.agent.costs.leased(took)
	}
	switch {
	case err != nil:
		c.agent.warn(&c.agent.handovers, "a byte of the client's was lost in the handover; resetting the connection", c, err)
		c.sayAbort()
	case c.failed != nil: // the server gave up meanwhile
		c.sayAbort()
	case c.closed: // the server closed it meanwhile
		c.sayClose()
	}
	return nil
}

func (c *Conn) refused(payload []byte) error {
	m, err := wire.ParseRefused(payload)
	if err != nil {
		return err
	}
	err = c.end.Refused()
	if errors.Is(err, lease.ErrPhase) {
		return err
	}
	c.link.delist(c.id, c)
	c.afterUnwinding(err)
	return c.tell(result{kind: wire.TypeRefused, reason: m.Reason})
}

func (c *Conn) data(payload []byte) error {
	m, err := wire.ParseData(payload)
	if err != nil {
		return err
	}
	if c.end.Phase() == lease.Returning {
		return c.late(m.Data)
	}
	return c.said(m.Data)
}

// said takes what the client has said while the host had the connection.
func (c *Conn) said(p []byte) error {
	switch {
	case len(p) == 0:
	case c.in.len()+len(p) > int(c.session.Hello.Window)+maxUnread:
		return fmt.Errorf("%w: more DATA than the window allows", wire.ErrFormat)
	case c.closed: // nobody will read it: keep the window open
		c.giveCredit(len(p))
	default:
		if c.in.len() == 0 && c.asked.IsZero() {
			c.asked = time.Now()
		}
		c.in.add(p)
		c.wake()
	}
	return nil
}

func (c *Conn) sent(head wire.Header, payload []byte) error {
	m, err := wire.ParseSent(payload)
	if err != nil {
		return err
	}
	if !c.sending {
		return fmt.Errorf("%w: no SEND is under way", wire.ErrFormat)
	}
	c.sending = false
	if !c.ordered.IsZero() {
		c.agent.stats.step(StepOrder, time.Since(c.ordered))
		c.ordered = time.Time{}
	}
	return c.tell(result{kind: wire.TypeSent, reason: m.Reason, bytes: m.Bytes, started: head.Flags&wire.FlagStarted != 0})
}

func (c *Conn) closedByHost(payload []byte) error {
	m, err := wire.ParseClosed(payload)
	if err != nil {
		return err
	}
	if err := c.end.Closed(); errors.Is(err, lease.ErrPhase) {
		return err
	}
	c.link.delist(c.id, c)
	c.over(hostClosed(m.Reason))
	if c.aborted || m.Reason != wire.ReasonClosed && m.Reason != wire.ReasonClientGone {
		// The host has sent a RST, which nobody sends again, and which a client may not take for one: of a socket that was halted in the middle of
		// a file it has a sequence number that the client does not expect.
		c.probeLater()
	}
	return nil
}

// hostClosed is the error that the server sees, in the words of a local connection where there are any.
func hostClosed(r wire.Reason) error {
	switch r {
	case wire.ReasonClientGone:
		return os.NewSyscallError("read", unix.ECONNRESET)
	case wire.ReasonClientStalled:
		return os.NewSyscallError("write", unix.ETIMEDOUT)
	}
	return fmt.Errorf("closed by the host: %w", r)
}

// over ends the connection for the server and for a writer that waits. c.mu is held.
func (c *Conn) over(err error) {
	waits := c.sending
	c.fail(err)
	if waits {
		_ = c.tell(result{})
	}
}

// handback takes HANDBACK: it restores the connection in place and answers the host. That is some 30 us of system calls, less than another
// goroutine would take to wake up.
func (c *Conn) handback(payload []byte) error {
	m, err := wire.ParseHandback(payload)
	if err != nil {
		return err
	}
	if c.end.Phase() != lease.Leased {
		return lease.ErrPhase
	}
	if err := c.said(m.Said); err != nil {
		return err
	}
	began := time.Now()
	if c.sending && m.Sent > c.sendCount {
		return fmt.Errorf("%w: %d bytes sent of %d", wire.ErrFormat, m.Sent, c.sendCount)
	}
	settled := m.Data == c.dataSent && (m.Sent >= 0) == c.sending && !c.outEnd && !c.closed && c.failed == nil
	err = c.end.Handback(&m.State, settled, func(answer wire.Message) error {
		c.say(answer, 0)
		return nil
	})
	if err != nil {
		c.agent.warn(&c.agent.handbacks, "could not take a connection back; it stays on the host", c, err)
	}
	if c.end.Phase() != lease.Returning {
		c.kept = true
		c.agent.stats.count(func(s *Counts) { s.Kept++ })
		return nil
	}
	if c.sending { // a recall has cut it short
		c.sending = false
		_ = c.tell(result{kind: wire.TypeHandback, bytes: m.Sent})
	}
	c.offeredAt, c.takenAt = began, time.Now()
	c.agent.stats.step(StepRestore, c.takenAt.Sub(began))
	return nil
}

// late takes what the client said while the connection changed hands: the host's kernel has acknowledged it, ours must know.
func (c *Conn) late(p []byte) error {
	if err := c.end.Late(p); err != nil {
		c.breakDown("what the client said is lost", err)
		return nil
	}
	c.in.add(p)
	return nil
}

// breakDown ends a connection that could not be taken back after all.
func (c *Conn) breakDown(text string, err error) {
	c.agent.warn(&c.agent.handbacks, "handback: "+text+"; resetting the connection", c, err)
	c.link.delist(c.id, c)
	c.over(err)
}

func (c *Conn) released(payload []byte) error {
	m, err := wire.ParseReleased(payload)
	if err != nil {
		return err
	}
	if err := c.end.Released(m.Window); errors.Is(err, lease.ErrPhase) {
		return err
	} else if err != nil {
		c.breakDown("the client's window cannot be set", err)
		return nil
	}
	now := time.Now()
	c.agent.stats.step(StepRelease, now.Sub(c.takenAt))
	c.agent.stats.step(StepHandback, now.Sub(c.offeredAt))
	c.agent.stats.count(func(s *Counts) { s.Handbacks++ })
	if c.agent.policy.Mode == Offload && !c.kept {
		c.agent.stats.step(StepLeased, time.Duration(m.Leased))
		c.agent.stats.step(StepRound, now.Sub(c.began)-time.Duration(m.Leased))
	}
	c.link.delist(c.id, c)
	c.becomeLocal()
	return nil
}

// lost is the end of the session.
func (c *Conn) lost(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.end.Phase()
	c.end.Lost()
	if before == lease.Gone || c.end.Phase() != lease.Gone {
		return
	}
	c.agent.stats.count(func(s *Counts) { s.Lost++ })
	c.over(fmt.Errorf("the session with the host ended: %w", cause))
	// A daemon that was killed while it held the socket has left a client that waits for ever; and of a connection on its way home, our reset may
	// lie before what the client has.
	c.probeLater()
}

// probeLater looks some time after whether the client of a connection that is over has heard of it.
func (c *Conn) probeLater() {
	for _, after := range []time.Duration{probeFirst, probeAgain, 5 * probeAgain} {
		time.AfterFunc(after, c.probe)
	}
}

// Probes of a lost connection. The first leaves the kernel time to close the sockets of a killed daemon, one of which would swallow the client's
// answer; the others come when a client that answers only twice a second (net.ipv4.tcp_invalid_ratelimit) does so again.
const (
	probeFirst = 50 * time.Millisecond
	probeAgain = 600 * time.Millisecond
)

// probe makes the client of a lost connection say where it is.
func (c *Conn) probe() {
	if err := c.socket.Probe(); err != nil {
		c.agent.log.Debug("probe", "client", c.remote, "error", err)
	}
}
