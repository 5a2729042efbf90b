package guest

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// option reads an option of the guest's own socket.
func (c *Conn) option(t *testing.T, level, name int) (value int) {
	t.Helper()
	err := c.socket.control(func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestOptions: what a server sets on a local connection goes along with the next handover, and what it sets on a leased one is there when the
// connection is back, and not before: a frozen socket must not send keepalive probes.
func TestOptions(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	c := h.server
	set := func(delay, alive bool, idle time.Duration) {
		t.Helper()
		err := errors.Join(c.SetNoDelay(!delay), c.SetKeepAlive(alive), c.SetKeepAlivePeriod(idle))
		if err != nil {
			t.Error(err)
		}
	}
	round := func(noDelay bool, want tcpstate.KeepAlive) {
		t.Helper()
		h.begin()
		if got := h.state.State; got.NoDelay != noDelay || got.KeepAlive.Enabled != want.Enabled || got.KeepAlive.Idle != want.Idle {
			t.Errorf("HANDOVER says %v, %+v, want %v, %+v", got.NoDelay, got.KeepAlive, noDelay, want)
		}
		s.say(h.id, 0, wire.Granted{})
		h.sent()
	}
	back := func() {
		t.Helper()
		s.say(h.id, 0, wire.Handback{State: h.state.State, Sent: -1})
		hear[wire.Taken](s)
		s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		r.eventually("it is local", func() bool { return c.phase() == lease.Local })
	}
	set(true, true, time.Minute)
	round(false, tcpstate.KeepAlive{Enabled: true, Idle: time.Minute})
	set(false, false, time.Minute)
	back()
	if on := c.option(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE); on != 0 {
		t.Error("keepalive is on, which was switched off on the leased connection")
	}
	round(true, tcpstate.KeepAlive{})
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute, Interval: time.Minute, Count: 5}); err != nil {
		t.Error(err)
	}
	if on := c.option(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE); on != 0 {
		t.Error("the frozen socket sends keepalive probes")
	}
	back()
	if on, count := c.option(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE), c.option(t, unix.IPPROTO_TCP, unix.TCP_KEEPCNT); on == 0 || count != 5 {
		t.Errorf("keepalive %d with %d probes, want it on with 5", on, count)
	}
	round(true, tcpstate.KeepAlive{Enabled: true, Idle: 2 * time.Minute})
	h.server.Close()
	hear[wire.Close](s)
	h.over(wire.ReasonClosed)
	r.eventually("nothing is leased", func() bool { return r.agent.Snapshot().Leases == 0 })
	for name, err := range map[string]error{
		"SetNoDelay": c.SetNoDelay(true), "SetKeepAlive": c.SetKeepAlive(true), "SetKeepAlivePeriod": c.SetKeepAlivePeriod(time.Minute),
		"SetKeepAliveConfig": c.SetKeepAliveConfig(net.KeepAliveConfig{}), "SetLinger": c.SetLinger(0),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close says %v", name, err)
		}
	}
}

// TestLinger: a connection whose server does not want to linger is reset by Close, wherever it is; every other one is closed in good order, and Close
// does not wait.
func TestLinger(t *testing.T) {
	for _, seconds := range []int{0, -1, 60} {
		r := newRig(t, Policy{Mode: Lease})
		client, server := r.connect()
		if err := errors.Join(server.SetLinger(seconds), server.Close()); err != nil {
			t.Error(err)
		}
		if _, err := client.Read(make([]byte, 1)); seconds == 0 != errors.Is(err, unix.ECONNRESET) || seconds != 0 && err != io.EOF {
			t.Errorf("linger %d, local: the client reads %v", seconds, err)
		}
		s := r.script()
		h := r.leased(s)
		if err := errors.Join(h.server.SetLinger(seconds), h.server.Close()); err != nil {
			t.Error(err)
		}
		want := wire.Flags(0)
		if seconds == 0 {
			want = wire.FlagAbort
		}
		h.hearClose(want)
		h.over(wire.ReasonClosed)
	}
}
