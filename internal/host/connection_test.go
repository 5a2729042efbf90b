package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcprepair"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// connection is one TCP connection between the client and the guest.
type connection struct {
	*rig
	client, server *net.TCPConn
	freezer        *tcprepair.Freezer
	handedOver     wire.Handover
}

// connect makes a connection over IPv4.
func (r *rig) connect() *connection { return r.connectTo("tcp4", testkit.Guest4, r.guests) }

// connect6 makes a connection over IPv6.
func (r *rig) connect6() *connection { return r.connectTo("tcp6", testkit.Guest6, r.guest6) }

func (r *rig) connectTo(network, host string, l *net.TCPListener) *connection {
	r.tb.Helper()
	freezer, err := tcprepair.NewFreezer()
	if err != nil {
		r.tb.Fatal(err)
	}
	c := &connection{rig: r, freezer: freezer}
	c.client = r.net.Client.Dial(r.tb, network, net.JoinHostPort(host, "80"))
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		r.tb.Fatal(err)
	}
	if c.server, err = l.AcceptTCP(); err != nil {
		r.tb.Fatal(err)
	}
	_ = c.client.SetDeadline(time.Now().Add(patience))
	r.tb.Cleanup(func() {
		c.server.Close()
		freezer.Close()
	})
	return c
}

// fd runs f with the descriptor of the guest's socket.
func (c *connection) fd(f func(fd int) error) {
	c.tb.Helper()
	raw, err := c.server.SyscallConn()
	if err != nil {
		c.tb.Fatal(err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil || ferr != nil {
		c.tb.Fatal(err, ferr)
	}
}

// freeze takes the connection out of the guest's kernel.
func (c *connection) freeze() wire.Handover {
	c.tb.Helper()
	m := wire.Handover{}
	m.State.Local = c.server.LocalAddr().(*net.TCPAddr).AddrPort()
	m.State.Remote = c.server.RemoteAddr().(*net.TCPAddr).AddrPort()
	c.fd(func(fd int) error {
		return errors.Join(tcprepair.ReadOptions(fd, &m.State), c.freezer.Freeze(fd), tcprepair.Extract(fd, &m.State))
	})
	c.handedOver = m
	return m
}

// takeBack restores the connection in place.
func (c *connection) takeBack(m wire.Handback) {
	c.tb.Helper()
	c.fd(func(fd int) error {
		return errors.Join(tcprepair.Park(fd), tcprepair.RestoreInPlace(fd, &m.State, c.handedOver.State.KeepAlive))
	})
}

// unread returns how many bytes of the client's wait in the host's socket.
func (r *rig) unread() (n int) {
	r.daemon.vms[0].eachLease(func(l *leaseConn) { n, _ = l.socket.unread() })
	return n
}

// freezeClient makes the client's kernel drop what comes, until the returned function is called.
func (c *connection) freezeClient() (thaw func()) {
	c.tb.Helper()
	raw, err := c.client.SyscallConn()
	if err != nil {
		c.tb.Fatal(err)
	}
	control := func(f func(fd int) error) {
		var ferr error
		if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil || ferr != nil {
			c.tb.Fatal(err, ferr)
		}
	}
	control(c.freezer.Freeze)
	return func() {
		control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	}
}

// thaw undoes freeze.
func (c *connection) thaw() {
	c.tb.Helper()
	c.fd(func(fd int) error { return tcprepair.Thaw(fd, c.handedOver.State.KeepAlive) })
}

// release closes the guest's socket silently, as a guest does whose lease is over.
func (c *connection) release() {
	c.fd(tcprepair.Release)
	c.server.Close()
}

// lease makes a connection and a lease of it.
func (r *rig) lease(g *fakeGuest, id uint32) *connection {
	r.tb.Helper()
	c := r.connect()
	g.send(id, 0, c.freeze())
	expect[wire.Granted](g, id)
	return c
}

// clientReads checks what comes to the client next.
func (c *connection) clientReads(want []byte) {
	c.tb.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.client, got); err != nil {
		c.tb.Fatalf("the client has %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		c.tb.Fatal("the client got wrong bytes")
	}
}

// clientReading is clientReads in the background; the returned function waits for it.
func (c *connection) clientReading(want []byte) (wait func()) {
	done := make(chan error, 1)
	go func() {
		got := make([]byte, len(want))
		n, err := io.ReadFull(c.client, got)
		switch {
		case err != nil:
			err = fmt.Errorf("the client has %d of %d bytes: %w", n, len(want), err)
		case !bytes.Equal(got, want):
			err = errors.New("the client got wrong bytes")
		}
		done <- err
	}()
	return func() {
		c.tb.Helper()
		if err := <-done; err != nil {
			c.tb.Fatal(err)
		}
	}
}

// clientEnds checks that the client gets an end of file now.
func (c *connection) clientEnds() {
	c.tb.Helper()
	if n, err := c.client.Read(make([]byte, 1)); err != io.EOF {
		c.tb.Fatalf("the client reads %d bytes and %v, want EOF", n, err)
	}
}

// clientReset checks that the client gets a reset.
func (c *connection) clientReset() {
	c.tb.Helper()
	if _, err := io.Copy(io.Discard, c.client); !errors.Is(err, unix.ECONNRESET) {
		c.tb.Fatalf("the client reads %v, want a reset", err)
	}
}

func (c *connection) clientSays(text string) {
	c.tb.Helper()
	if _, err := c.client.Write([]byte(text)); err != nil {
		c.tb.Fatal(err)
	}
}
