// Package channel opens the byte stream between a guest and the host daemon: a virtio-serial port, a unix socket or a
// vsock connection.
//
// It is the first step of the data path on both sides. The guest calls [Keep], which dials and redials for ever; the host
// daemon calls [Listen] and [Serve]. What travels on the stream is the business of package wire; this package knows bytes
// only. Two properties of the stream shape the protocol above it:
//
//   - On the host, the address is the VM's identity. One address belongs to one VM and serves one connection at a time,
//     and the newest connection wins: QEMU reconnects after a crash, and what remains of the old connection is dead.
//   - A virtio-serial port is no connection. Bytes written for a daemon that died are read by the next one, so both ends
//     must be able to synchronize in the middle of a stream.
//
// It must not be used for media: the point of Spillway is that no media byte crosses from host to guest.
//
// Needs: virtio-serial the kernel driver virtio_console (any kernel since 2.6.36) and the right to open /dev/vport*; vsock
// the kernel's vsock transport, in the guest virtio_transport, on the host vhost_vsock (4.8); unix sockets nothing.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrHostAway is matched by errors of Dial and of Write on a virtio port when nobody serves the other end at the moment.
// Trying again later is the right answer, which is what Keep does.
var ErrHostAway = errors.New("nobody serves the other end")

// ErrInUse is matched by an error of Listen when somebody listens at the address already.
var ErrInUse = errors.New("somebody listens there already")

// ErrPeer is matched by an error of Accept when a VM knocked at an address that is not its own. That connection is closed;
// the listener goes on.
var ErrPeer = errors.New("the connection comes from another VM")

// Error is returned by every operation of this package that fails. Nothing is left open by an operation that returned one.
type Error struct {
	Op   string // "dial", "listen", "accept" or "write"
	Addr Address
	Err  error  // the cause
	Hint string // what the user can do, or empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("channel %s: %s: %v", e.Addr, e.Op, e.Err)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Conn is an open channel. One goroutine may read while another one writes; Close and the deadlines unblock both.
//
// Read returns io.EOF when the other side is gone, on every kind of channel. A Conn that has reported it stays dead, even
// if the other side comes back. Write writes everything or returns an error.
type Conn interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Listener accepts the connections of one VM.
//
// Accept returns each connection as it comes, also while an older one is open: whoever calls it must close the older one,
// as Serve does.
type Listener interface {
	Accept() (Conn, error)
	// Close stops listening and removes the socket file. Connections that were accepted stay open.
	Close() error
	Addr() Address
}

// Dial opens the guest's end of the channel in one attempt. The caller owns the Conn.
func Dial(ctx context.Context, addr Address) (Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, &Error{Op: "dial", Addr: addr, Err: err}
	}
	switch addr.Kind {
	case Virtio:
		return dialVirtio(addr, systemPorts())
	case Unix:
		return dialUnix(ctx, addr)
	case Vsock:
		return dialVsock(ctx, addr)
	}
	return nil, &Error{Op: "dial", Addr: addr, Err: errors.ErrUnsupported, Hint: formsHint}
}

// NoGroup leaves a socket's file to the group of this process.
const NoGroup = -1

// Listen opens the host's end of the channel. Beside root the group gid may connect to a unix socket, or NoGroup other than this process's own.
// The caller owns the Listener.
func Listen(addr Address, gid int) (Listener, error) {
	switch addr.Kind {
	case Unix:
		return listenUnix(addr, gid)
	case Vsock:
		return listenVsock(addr)
	case Virtio:
		return nil, &Error{
			Op: "listen", Addr: addr, Err: errors.ErrUnsupported,
			Hint: "a virtio-serial port is the guest's end; on the host listen at unix:PATH and let QEMU connect to it: " +
				qemuArguments("PATH", addr.Name),
		}
	}
	return nil, &Error{Op: "listen", Addr: addr, Err: errors.ErrUnsupported, Hint: formsHint}
}
