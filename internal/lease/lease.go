// Package lease is the protocol of handover, lease and handback as a state machine: the guest's end and the host's end of one connection,
// over the smallest interfaces that they need. It decides who owns the connection after each event and each failure, and undoes half a
// step. docs/handover.md draws it.
//
// It moves no file bytes and holds no lock; packages guest and host call it under their connection's lock and add the data path. The one
// rule behind it: at any time one side sends on the connection, and a side that cannot know whether it is the one only ends the connection.
package lease

import (
	"errors"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// Socket is one TCP socket as the kernel's repair interface moves it; tcprepair does the work. Its states: live, frozen (no input is
// processed), held (frozen and in repair mode: its close is silent), open (in repair mode, but receiving), parked (held and without a
// connection).
type Socket interface {
	// Thaw: frozen, held or open → live.
	Thaw() error
	// Release makes the socket silent: its close sends nothing. Any state.
	Release() error
	// Abort makes the socket's close send RST. Any state.
	Abort() error
}

// GuestSocket is the guest's own socket, which comes back to life in place.
type GuestSocket interface {
	Socket
	// Freeze: live → frozen; after an error still live.
	Freeze() error
	// Extract: frozen → held, and fills all of the state but the addresses.
	Extract(*tcpstate.State) error
	// Confirm: held → held; an error when a byte of the client's was taken in after Extract.
	Confirm() error
	// Park: held → parked.
	Park() error
	// Restore: parked → live.
	Restore(*tcpstate.State) error
	// TakeIn: live → live, p further on in what the client says.
	TakeIn(p []byte) error
	// Update: live → live, with the window that the client has told the host since the state of Restore was read.
	Update(tcpstate.PeerWindow) error
}

// HostSocket is the host's socket, made for this lease.
type HostSocket interface {
	Socket
	// Restore: fresh → live.
	Restore(*tcpstate.State) error
	// Halt: live → halted, which is open, and sends nothing new though there may be more to send.
	Halt() error
	// Snapshot: live or halted → open, and fills all of the state but the addresses. What the client says from now on is acknowledged.
	Snapshot(*tcpstate.State) error
	// Seal: open → held. It returns what the client has said since Snapshot, and whether its FIN came, too.
	Seal() (late []byte, end bool, err error)
}

// Phase of a connection at one end.
type Phase uint8

// Phases; docs/handover.md shows them as a picture.
const (
	Local     Phase = iota // guest: the connection is the guest's own; host: no connection yet
	Handing                // guest: HANDOVER is sent, the answer is out
	Leased                 // the host owns the connection
	Returning              // HANDBACK is sent; the guest may or may not have taken it
	Gone                   // this end is done with the connection
)

func (p Phase) String() string {
	return [...]string{"local", "handing", "leased", "returning", "gone"}[p]
}

// ErrPhase is an event that the phase does not allow: from the other side it is a breach of the protocol.
var ErrPhase = errors.New("lease: event out of turn")

// reasonOf finds the reason in an error of a Socket; system calls that fail for other causes are ReasonKernel.
func reasonOf(err error) wire.Reason {
	var r wire.Reason
	if errors.As(err, &r) {
		return r
	}
	return wire.ReasonKernel
}
