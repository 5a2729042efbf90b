package lease

import (
	"errors"
	"fmt"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// Host is the host's end of one lease.
type Host struct {
	Socket HostSocket

	phase Phase
}

// Phase tells who owns the connection, as far as this end knows.
func (h *Host) Phase() Phase { return h.phase }

// Accept is the event of HANDOVER: it restores the connection and calls reply with Granted, or with Refused and ends.
func (h *Host) Accept(st *tcpstate.State, reply func(wire.Message) error) error {
	if h.phase != Local {
		return ErrPhase
	}
	if err := h.Socket.Restore(st); err != nil {
		h.phase = Gone
		_ = h.Socket.Release() // it never was live: nothing may be heard of it
		return errors.Join(err, reply(wire.Refused{Reason: reasonOf(err)}))
	}
	h.phase = Leased
	return reply(wire.Granted{})
}

// Return gives the connection back: it reads the state into st and calls send, which must send HANDBACK. The socket goes on to listen to the
// client until the guest has its own, so that nothing is lost in between. After an error the connection is still leased and as it was (phase
// Leased), unless it is broken (phase Gone). The caller makes sure that nothing is unacknowledged and nothing more is to be sent; in the middle of a
// response it gives settle, which is called when nothing new leaves the socket any more, and waits until the client has acknowledged the rest.
func (h *Host) Return(st *tcpstate.State, settle, send func() error) error {
	if h.phase != Leased {
		return ErrPhase
	}
	if settle != nil {
		if err := h.Socket.Halt(); err != nil {
			return h.undo(err)
		}
		if err := settle(); err != nil {
			return h.undo(err)
		}
	}
	if err := h.Socket.Snapshot(st); err != nil {
		return h.undo(err)
	}
	if err := send(); err != nil {
		return h.undo(err)
	}
	h.phase = Returning
	return nil
}

// undo keeps the lease after a return that has failed, or was called off.
func (h *Host) undo(cause error) error {
	if err := h.Socket.Thaw(); err != nil {
		h.phase = Gone
		_ = h.Socket.Abort() // the close that follows is all that is left to do
		return errors.Join(cause, fmt.Errorf("the connection cannot go on: %w", err))
	}
	h.phase = Leased
	return cause
}

// Taken is the event of TAKEN: the guest has the connection, and our socket leaves the kernel's table. It returns what the client has said meanwhile, and
// whether it has closed its direction: the caller sends them as DATA and END, then RELEASED, and closes the socket, which is silent. After an error it closes
// it and sends CLOSED: the client has reset the connection, or a byte of its was lost between the two sockets. Both ends reset the connection
// then, as CLOSED may not arrive.
func (h *Host) Taken() (late []byte, end bool, err error) {
	if h.phase != Returning {
		return nil, false, ErrPhase
	}
	h.phase = Gone
	if late, end, err = h.Socket.Seal(); err != nil {
		return nil, false, errors.Join(err, h.Socket.Abort())
	}
	return late, end, h.Socket.Release()
}

// Seal is the first half of Taken, for a connection that goes to another host instead: nothing of the client's is acknowledged any more, and it returns what has
// been since Return. It is Returning until Left or Kept tells what became of it, after an error too, which may be that the client has reset it.
func (h *Host) Seal() (late []byte, end bool, err error) {
	if h.phase != Returning {
		return nil, false, ErrPhase
	}
	return h.Socket.Seal()
}

// Left is the event that the other host has the connection. The caller closes the socket, which is silent.
func (h *Host) Left() error {
	if h.phase != Returning {
		return ErrPhase
	}
	h.phase = Gone
	return h.Socket.Release()
}

// Kept is the event of KEEP, or that no other host has taken the connection: the lease goes on, unless an error is returned.
func (h *Host) Kept() error {
	if h.phase != Returning {
		return ErrPhase
	}
	return h.undo(nil)
}

// Finish ends the lease because the connection ends. The caller closes the socket, which speaks TCP, and sends CLOSED. With abort the close sends
// RST.
func (h *Host) Finish(abort bool) error {
	if h.phase != Leased && h.phase != Returning {
		return ErrPhase
	}
	returning := h.phase == Returning
	h.phase = Gone
	switch {
	case abort:
		return h.Socket.Abort()
	case returning: // a socket that stays held would close silently
		err := h.undo(nil)
		h.phase = Gone
		return err
	}
	return nil
}

// Lost is the event that the session has ended. A lease stays Leased: the caller finishes what is under way and calls Finish. A connection that was
// being returned is ours again: a guest that took it resets it, and if the guest died, nobody else will close it.
func (h *Host) Lost() error {
	if h.phase == Returning {
		return h.undo(nil)
	}
	return nil
}
