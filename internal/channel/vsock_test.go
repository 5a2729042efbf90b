package channel

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

func TestVsockDialErrors(t *testing.T) {
	addr := Address{Kind: Vsock, CID: 2, Port: 9000}
	for _, test := range []struct {
		cause error
		away  bool
		hint  string
	}{
		{unix.ECONNRESET, true, ""},
		{unix.ECONNREFUSED, true, ""},
		{unix.ETIMEDOUT, true, ""},
		{unix.ENODEV, false, "vhost-vsock-pci"},
		{unix.EAFNOSUPPORT, false, "vhost-vsock-pci"},
		{unix.EACCES, false, ""},
	} {
		err := vsockDialError(addr, &net.OpError{Op: "dial", Net: "vsock", Err: os.NewSyscallError("connect", test.cause)})
		if errors.Is(err, ErrHostAway) != test.away || !errors.Is(err, test.cause) || !strings.Contains(err.Error(), test.hint) {
			t.Errorf("%v: %v; want host away: %v, hint %q", test.cause, err, test.away, test.hint)
		}
	}
}

// peerListener accepts connections from the CIDs in turn.
type peerListener struct {
	net.Listener
	cids  []uint32
	conns []*peerConn
}

type peerConn struct {
	net.Conn
	remote net.Addr
	closed bool
}

func (c *peerConn) RemoteAddr() net.Addr { return c.remote }
func (c *peerConn) Close() error         { c.closed = true; return nil }

func (l *peerListener) Accept() (net.Conn, error) {
	if len(l.cids) == 0 {
		return nil, net.ErrClosed
	}
	c := &peerConn{remote: &vsock.Addr{ContextID: l.cids[0], Port: 1024}}
	l.cids, l.conns = l.cids[1:], append(l.conns, c)
	return c, nil
}

// The CID is the VM's identity: another VM that knocks is shown out.
func TestVsockRefusesOtherVMs(t *testing.T) {
	inner := &peerListener{cids: []uint32{4, 3, 2}}
	l := &vsockListener{addr: Address{Kind: Vsock, CID: 3, Port: 9000}, inner: inner}
	for i, want := range []error{ErrPeer, nil, ErrPeer, net.ErrClosed} {
		c, err := l.Accept()
		if !errors.Is(err, want) || (c == nil) != (want != nil) {
			t.Errorf("connection %d: %v, %v; want %v", i, c, err, want)
		}
		if i < len(inner.conns) && inner.conns[i].closed != (want != nil) {
			t.Errorf("connection %d: closed is %v", i, inner.conns[i].closed)
		}
	}
}

// The real kernel, as far as it goes without a VM.
func TestVsockListen(t *testing.T) {
	addr := Address{Kind: Vsock, CID: 3, Port: 0x53500000 | uint32(os.Getpid()&0xffff)}
	l, err := Listen(addr, NoGroup)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip("this kernel has no vsock (CONFIG_VSOCKETS)")
	}
	if err != nil {
		t.Fatal(err)
	}
	checkFDs(t)
	if _, err := Listen(addr, NoGroup); !errors.Is(err, ErrInUse) {
		t.Errorf("second Listen = %v, want ErrInUse", err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		result <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := receive(t, result, "Accept"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
}

func TestVsockLoopback(t *testing.T) {
	// Binding to CID 1 asks for the loopback transport without sending anything anywhere.
	probe, err := vsock.ListenContextID(vsock.Local, 0, nil)
	if err != nil {
		t.Skipf("this kernel has no vsock loopback (CONFIG_VSOCKETS_LOOPBACK): %v", err)
	}
	probe.Close()
	checkFDs(t)
	addr := Address{Kind: Vsock, CID: vsock.Local, Port: 0x53510000 | uint32(os.Getpid()&0xffff)}
	guest, host := connect(t, mustListen(t, addr))
	mustWrite(t, guest, "from the guest")
	mustRead(t, host, "from the guest")
	testInterrupts(t, host)
}
