package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reasons for which a connection cannot be extracted. Each is matched with errors.Is against the error of ReadOptions,
// Freeze or Extract.
var (
	// ErrNotEstablished: the state is not ESTABLISHED, most often since the peer has sent its FIN or a RST. errors.As with a
	// *StateError tells the state.
	ErrNotEstablished = errors.New("connection is not established")
	// ErrUnread: the peer sent bytes (in order or not) or a FIN that the application has not read.
	ErrUnread = errors.New("receive queue is not empty")
	// ErrUnacked: bytes that were written have not been sent, or not been acknowledged by the peer.
	ErrUnacked = errors.New("send queue is not empty")
	// ErrNotPlainTCP: the socket is an MPTCP socket, has an upper layer protocol such as kernel TLS, or is not TCP at all.
	ErrNotPlainTCP = errors.New("socket is not plain TCP")
	// ErrWindowShrunk: the receive window was closed or retracted though the receive queue is empty. A kernel that has no
	// memory of the larger window drops what the peer rightfully sent into it.
	ErrWindowShrunk = errors.New("receive window was retracted")
	// ErrPeerWindow: the peer has no room for a segment. When it makes some, it tells the frozen socket, in vain: the new owner would wait for the
	// timer of its window probe.
	ErrPeerWindow = errors.New("peer has no room for a segment")
)

// ErrPoolClosed is returned by Pool.Get after Pool.Close.
var ErrPoolClosed = errors.New("pool of transparent sockets is closed")

// StateError says in which state a connection is that is not established. It matches ErrNotEstablished.
type StateError struct {
	State ConnState
}

func (e *StateError) Error() string { return fmt.Sprintf("%v: %v", ErrNotEstablished, e.State) }

// Is makes errors.Is(err, ErrNotEstablished) true.
func (e *StateError) Is(target error) bool { return target == ErrNotEstablished }

// LeftState is the state in which a failed call left the socket.
type LeftState uint8

// The states.
const (
	LeftLive   LeftState = iota // as before: receiving, closing as usual
	LeftFrozen                  // input dropped, not in repair mode; Thaw undoes it, close sends a FIN
	LeftRepair                  // input dropped, in repair mode; Thaw undoes it, close is silent
	LeftParked                  // TCP_CLOSE in repair mode, input dropped: close is silent, RestoreInPlace may be tried again
	LeftClosed                  // no socket is left
)

func (s LeftState) String() string {
	switch s {
	case LeftLive:
		return "live"
	case LeftFrozen:
		return "frozen"
	case LeftRepair:
		return "frozen in repair mode"
	case LeftParked:
		return "parked"
	case LeftClosed:
		return "closed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Error is the type of every error of this package that concerns a socket.
type Error struct {
	Op   string    // the operation, in lower case: "freeze", "extract", "restore in place" …
	Left LeftState // what the socket is now
	Err  error     // a sentinel of this package, tcpstate.ErrInvalid, or a *CallError
}

func (e *Error) Error() string {
	hint := ""
	if errors.Is(e.Err, unix.EPERM) {
		hint = " (CAP_NET_ADMIN is needed)"
	}
	return fmt.Sprintf("tcprepair: %s: %v%s; the socket is left %v", e.Op, e.Err, hint, e.Left)
}

func (e *Error) Unwrap() error { return e.Err }

// CallError is a system call that failed.
type CallError struct {
	Call  string     // "connect", "setsockopt TCP_REPAIR" …
	Errno unix.Errno // the kernel's answer
}

func (e *CallError) Error() string { return e.Call + ": " + e.Errno.Error() }
func (e *CallError) Unwrap() error { return e.Errno }
