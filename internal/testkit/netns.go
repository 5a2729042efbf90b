package testkit

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"spillway/internal/netns"
)

// Namespace is a network namespace of a test.
type Namespace struct{ *netns.Namespace }

// NewNamespace makes an empty network namespace whose loopback is up. It goes when the test ends.
func NewNamespace(tb testing.TB, name string) *Namespace {
	tb.Helper()
	ns, err := netns.New(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := ns.Close(); err != nil {
			tb.Errorf("close network namespace %s: %v", name, err)
		}
	})
	return &Namespace{ns}
}

// Must is Do, and ends the test on an error.
func (ns *Namespace) Must(tb testing.TB, fn func() error) {
	tb.Helper()
	if err := ns.Do(fn); err != nil {
		tb.Fatal(err)
	}
}

// Listen is net.Listen inside the namespace, without MPTCP. The listener is closed when the test ends.
func (ns *Namespace) Listen(tb testing.TB, network, address string) *net.TCPListener {
	tb.Helper()
	var ln net.Listener
	ns.Must(tb, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), network, address)
		return err
	})
	tb.Cleanup(func() {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			tb.Errorf("close listener: %v", err)
		}
	})
	return ln.(*net.TCPListener)
}

// Dial connects from inside the namespace to an address that is an IP address and a port. The connection is closed when the
// test ends.
func (ns *Namespace) Dial(tb testing.TB, network, address string) *net.TCPConn {
	tb.Helper()
	conn, err := ns.Namespace.Dial(&net.Dialer{Timeout: 10 * time.Second}, network, address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() }) // most tests have closed it themselves
	return conn.(*net.TCPConn)
}

// Sysctl writes a value below /proc/sys of the namespace.
func (ns *Namespace) Sysctl(tb testing.TB, path, value string) {
	tb.Helper()
	if err := ns.Namespace.Sysctl(path, value); err != nil {
		tb.Fatal(err)
	}
}
