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
	c.agent.stats.step(StepHandover, time.Since(c.began))
	switch {
	case err != nil:
		c.agent.log.Warn("a byte of the client's was lost in the handover; resetting the connection", "client", c.remote, "error", err)
		c.say(wire.Close{}, wire.FlagAbort)
	case c.failed != nil: // the server gave up meanwhile
		c.say(wire.Close{}, wire.FlagAbort)
	case c.closed: // the server closed it meanwhile
		c.say(wire.Close{}, 0)
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
	c.agent.delist(c.id, c)
	c.afterUnwinding(err)
	return c.tell(result{kind: wire.TypeRefused, reason: m.Reason})
}

func (c *Conn) data(payload []byte) error {
	m, err := wire.ParseData(payload)
	if err != nil {
		return err
	}
	if c.in.len()+len(m.Data) > int(c.session.Hello.Window)+maxUnread {
		return fmt.Errorf("%w: more DATA than the window allows", wire.ErrFormat)
	}
	if c.closed { // nobody will read it: keep the window open
		c.giveCredit(len(m.Data))
		return nil
	}
	c.in.add(m.Data)
	c.wake()
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
	c.agent.delist(c.id, c)
	c.over(hostClosed(m.Reason))
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
	m.Tail = append([]byte(nil), m.Tail...)
	began := time.Now()
	settled := m.Data == c.dataSent && (m.Sent >= 0) == c.sending && !c.outEnd && !c.closed && c.failed == nil
	err = c.end.Handback(&m.State, settled, func(answer wire.Message) error {
		if answer.Type() == wire.TypeTaken {
			c.sendTail(&m, withheldSize)
		}
		c.say(answer, 0)
		return nil
	})
	if err != nil {
		c.agent.log.Warn("could not take a connection back; it stays on the host", "client", c.remote, "error", err)
	}
	if c.end.Phase() != lease.Returning {
		c.agent.stats.count(func(s *Counts) { s.Kept++ })
		return nil
	}
	c.taken, c.takenAt = nil, time.Now()
	c.agent.stats.step(StepRestore, c.takenAt.Sub(began))
	if m.Sent >= 0 {
		c.taken = &m
	}
	return nil
}

func (c *Conn) released(payload []byte) error {
	m, err := wire.ParseReleased(payload)
	if err != nil {
		return err
	}
	if err := c.end.Released(); err != nil {
		return err
	}
	now := time.Now()
	c.agent.stats.step(StepRelease, now.Sub(c.takenAt))
	c.agent.stats.count(func(s *Counts) { s.Handbacks++ })
	if c.taken != nil {
		c.sendTail(c.taken, 0)
		c.agent.stats.step(StepTail, time.Since(now))
		c.agent.stats.step(StepBusy, time.Duration(m.Busy))
		c.agent.stats.step(StepRound, time.Since(c.began)-time.Duration(m.Busy))
	}
	c.agent.delist(c.id, c)
	taken := c.taken
	c.taken = nil
	c.becomeLocal()
	if taken == nil {
		return nil // it was idle: nobody waits
	}
	return c.tell(result{kind: wire.TypeReleased, handback: taken})
}

// withheldSize bytes at the end of a tail are sent after RELEASED: as long as the client lacks one, it sends no request into the host's frozen socket.
const withheldSize = 1

// sendTail sends what came with a handback, but for the last keep bytes, as far as the kernel takes it at once; the writer, who wakes up later, sends
// the rest. c.mu is held.
//
// All but the withheld byte is sent before TAKEN, though the client has it, most likely: with it our socket's sequence number is where the client
// expects it, so that a FIN or RST of ours counts, should this process die now.
func (c *Conn) sendTail(m *wire.Handback, keep int) {
	p := m.Tail[:max(len(m.Tail)-keep, 0)]
	if len(p) == 0 {
		return
	}
	_ = c.raw.Control(func(fd uintptr) { // the writer meets an error again
		n, _ := retryEINTR(func() (int, error) {
			return unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		m.Tail = m.Tail[n:]
	})
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
