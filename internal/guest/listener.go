package guest

import (
	"context"
	"net"
)

// Listener accepts connections that can be leased (net.Listener).
type Listener struct {
	*net.TCPListener
	agent *Agent
}

// Listen listens on a TCP address of the guest. MPTCP, Go's default since 1.24, is off: an MPTCP connection cannot change hands.
func Listen(ctx context.Context, addr string, agent *Agent) (*Listener, error) {
	var lc net.ListenConfig
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
