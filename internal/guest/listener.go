package guest

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener accepts connections that can be leased (net.Listener).
type Listener struct {
	*net.TCPListener
	agent *Agent
}

// Listen listens on a TCP address of the guest. MPTCP, Go's default since 1.24, is off: an MPTCP connection cannot change hands. A byte that a client sends as
// urgent comes in its place among the others, as RFC 6093 recommends and as it does on the host.
func Listen(ctx context.Context, addr string, agent *Agent) (*Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
		return errors.Join(cerr, os.NewSyscallError("setsockopt(SO_OOBINLINE)", err))
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Listener{l.(*net.TCPListener), agent}, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c, err := newConn(l.agent, tcp)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	l.agent.stats.count(func(s *Counts) { s.Accepted++ })
	return c, nil
}
