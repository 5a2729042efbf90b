package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Namespace is a network namespace.
type Namespace struct {
	Name   string // for messages only
	handle netns.NsHandle
}

// NewNamespace makes an empty network namespace whose loopback is up. It goes when the test ends.
func NewNamespace(tb testing.TB, name string) *Namespace {
	tb.Helper()
	ns := &Namespace{Name: name, handle: netns.None()}
	err := onThread(func() error {
		var err error
		ns.handle, err = netns.New() // which also enters it
		return err
	})
	if err != nil {
		tb.Fatalf("make network namespace %s (root is needed): %v", name, err)
	}
	tb.Cleanup(func() {
		if err := ns.handle.Close(); err != nil {
			tb.Errorf("close network namespace %s: %v", name, err)
		}
	})
	ns.Must(tb, func() error { return linkUp("lo") })
	return ns
}

// FD is the file descriptor of the namespace, for libraries that want one. It belongs to the Namespace.
func (ns *Namespace) FD() int { return int(ns.handle) }

// Do runs fn inside the namespace, on an OS thread of its own. Sockets that fn makes stay in the namespace and can be used
// anywhere; goroutines that fn starts are outside of it. fn must not call tb.Fatal: it runs on another goroutine.
func (ns *Namespace) Do(fn func() error) error {
	err := onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter: %w", err)
		}
		return fn()
	})
	if err != nil {
		return fmt.Errorf("in network namespace %s: %w", ns.Name, err)
	}
	return nil
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
	var conn net.Conn
	ns.Must(tb, func() (err error) {
		conn, err = net.DialTimeout(network, address, 10*time.Second)
		return err
	})
	tb.Cleanup(func() { conn.Close() }) // most tests have closed it themselves
	return conn.(*net.TCPConn)
}

// Sysctl writes a value below /proc/sys of the namespace.
func (ns *Namespace) Sysctl(tb testing.TB, path, value string) {
	tb.Helper()
	ns.Must(tb, func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
}

// onThread runs fn on an OS thread that nothing else uses and that ends with it: so fn may change the thread's namespace.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		// A fn that calls runtime.Goexit, as tb.Fatal does, must not hang the test.
		err := errors.New("the function did not return")
		defer func() { result <- err }()
		err = fn()
	}()
	return <-result
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
