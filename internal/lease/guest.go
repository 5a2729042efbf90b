package lease

import (
	"errors"
	"fmt"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// Guest is the guest's end of one connection, over its whole life: it may be leased many times.
type Guest struct {
	Socket GuestSocket

	phase  Phase
	parked bool // a handback failed half-way: our socket has no connection any more and cannot take one back
}

// Phase tells who owns the connection, as far as this end knows.
func (g *Guest) Phase() Phase { return g.phase }

// Handover freezes the connection, reads its state into st (the caller has set the addresses) and calls send, which must send HANDOVER and what
// belongs behind it. drain is called in between, when no more input can arrive, to read what the client has already sent.
// After an error the connection is local again and as it was (phase Local), unless it is broken (phase Gone). The error carries the wire.Reason.
func (g *Guest) Handover(st *tcpstate.State, drain, send func() error) error {
	if g.phase != Local {
		return ErrPhase
	}
	if err := g.Socket.Freeze(); err != nil {
		return err // and nothing was done
	}
	if err := drain(); err != nil {
		return g.undo(err)
	}
	if err := g.Socket.Extract(st); err != nil {
		return g.undo(err)
	}
	if err := send(); err != nil { // nothing has left: the host cannot know of it
		return g.undo(err)
	}
	g.phase = Handing
	return nil
}

// undo makes the connection local again after cause.
func (g *Guest) undo(cause error) error {
	if err := g.Socket.Thaw(); err != nil {
		g.abort()
		return errors.Join(cause, fmt.Errorf("the connection cannot go on: %w", err))
	}
	g.phase = Local
	return cause
}

func (g *Guest) abort() {
	g.phase = Gone
	_ = g.Socket.Abort() // the close that follows is all that is left to do
}

// Granted is the event of GRANTED. An error other than ErrPhase means that a byte of the client's was lost between the two sockets: the
// caller asks the host to reset the connection.
func (g *Guest) Granted() error {
	if g.phase != Handing {
		return ErrPhase
	}
	g.phase = Leased
	return g.Socket.Confirm()
}

// Refused is the event of REFUSED: the connection is local again, unless an error is returned.
func (g *Guest) Refused() error {
	if g.phase != Handing {
		return ErrPhase
	}
	return g.undo(nil)
}

// Handback is the event of HANDBACK: it restores the connection in place and calls reply with Taken, or with Keep when the connection has to
// stay on the host. settled is false when bytes of this end are still on their way to the host.
func (g *Guest) Handback(st *tcpstate.State, settled bool, reply func(wire.Message) error) error {
	if g.phase != Leased {
		return ErrPhase
	}
	switch {
	case !settled:
		return reply(wire.Keep{Reason: wire.ReasonUnacked})
	case g.parked:
		return reply(wire.Keep{Reason: wire.ReasonKernel})
	}
	if err := g.Socket.Park(); err != nil {
		return errors.Join(err, reply(wire.Keep{Reason: wire.ReasonKernel}))
	}
	if err := g.Socket.Restore(st); err != nil {
		g.parked = true
		return errors.Join(err, reply(wire.Keep{Reason: wire.ReasonKernel}))
	}
	g.phase = Returning
	return reply(wire.Taken{})
}

// Late is the event of DATA after TAKEN: bytes of the client's that the host's kernel has acknowledged. After an error the connection is gone.
func (g *Guest) Late(p []byte) error {
	if g.phase != Returning {
		return ErrPhase
	}
	err := g.Socket.TakeIn(p)
	if err != nil {
		g.abort()
	}
	return err
}

// Released is the event of RELEASED: the connection is local and may be used. After an error other than ErrPhase it is gone.
func (g *Guest) Released(w tcpstate.PeerWindow) error {
	if g.phase != Returning {
		return ErrPhase
	}
	if err := g.Socket.Update(w); err != nil {
		g.abort()
		return err
	}
	g.phase = Local
	return nil
}

// Closed is the event of CLOSED: the host has no socket any more. Ours goes silently, unless it lives already: then the client must
// be told.
func (g *Guest) Closed() error {
	switch g.phase {
	case Leased:
		g.phase = Gone
		return g.Socket.Release()
	case Returning:
		g.abort()
		return nil
	}
	return ErrPhase
}

// Lost is the event that the session has ended.
//
//   - Handing, Returning: the host may or may not own the connection, so it is reset. If the host has sent anything on it, our RST is outside
//     the client's window and does nothing, and the host's end of the connection is closed by the host or by its kernel. To go on with a
//     connection that is returning would be wrong: a host that has not heard TAKEN goes on too, and acknowledges what the client says.
//   - Leased: the host finishes what is under way and closes, or its kernel does; our socket goes silently. Only a daemon that was killed
//     while its socket was held leaves a connection that nobody has and nobody ends: the caller probes for it (tcprepair.Probe).
func (g *Guest) Lost() {
	switch g.phase {
	case Handing, Returning:
		g.abort()
	case Leased:
		g.phase = Gone
		_ = g.Socket.Release() // a socket in repair mode is silent already
	}
}
