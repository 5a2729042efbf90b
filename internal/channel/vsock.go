package channel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// The vsock channel has not run over a real vhost device yet: the machines this project is tested on have none.

func dialVsock(ctx context.Context, addr Address) (Conn, error) {
	c, err := vsock.DialContext(ctx, addr.CID, addr.Port, nil)
	if err == nil {
		return c, nil
	}
	return nil, vsockDialError(addr, err)
}

func vsockDialError(addr Address, err error) error {
	e := &Error{Op: "dial", Addr: addr, Err: err}
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ETIMEDOUT):
		// Which one it is depends on the transport; virtio answers a connect without listener with a reset.
		e.Err = fmt.Errorf("%w: %w", ErrHostAway, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EAFNOSUPPORT):
		e.Hint = "this machine has no vsock device: start QEMU with -device vhost-vsock-pci,guest-cid=N (N from 3 up), " +
			"and load the module vmw_vsock_virtio_transport in the guest"
	}
	return e
}

// vsockListener accepts one guest. Every VM of the machine can connect to the port; the kernel vouches for the peer's CID,
// so that this is the VM's identity.
type vsockListener struct {
	addr   Address
	inner  net.Listener
	closed atomic.Bool
}

// listenVsock binds to VMADDR_CID_ANY (include/uapi/linux/vm_sockets.h), since the host's own CID is not 2 when it is
// itself a guest.
func listenVsock(addr Address) (Listener, error) {
	inner, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, addr.Port, nil)
	if err == nil {
		return &vsockListener{addr: addr, inner: inner}, nil
	}
	e := &Error{Op: "listen", Addr: addr, Err: err}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		e.Err = fmt.Errorf("%w: %w", ErrInUse, err)
		e.Hint = "each VM needs a port of its own; is the host daemon already running?"
	case errors.Is(err, unix.EAFNOSUPPORT):
		e.Hint = "load the module vhost_vsock"
	}
	return nil, e
}

func (l *vsockListener) Accept() (Conn, error) {
	c, err := l.inner.Accept()
	if err != nil && l.closed.Load() {
		err = net.ErrClosed // the library may say EBADF
	}
	if err != nil {
		return nil, &Error{Op: "accept", Addr: l.addr, Err: err}
	}
	if peer, ok := c.RemoteAddr().(*vsock.Addr); !ok || peer.ContextID != l.addr.CID {
		c.Close()
		return nil, &Error{Op: "accept", Addr: l.addr, Err: fmt.Errorf("%w: %v", ErrPeer, c.RemoteAddr())}
	}
	return c, nil
}

func (l *vsockListener) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	return l.inner.Close()
}

func (l *vsockListener) Addr() Address { return l.addr }
