package host

import (
	"bytes"
	"testing"
	"time"

	"spillway/internal/config"
	"spillway/internal/tcprepair"
	"spillway/internal/wire"
)

// more is a response that no socket buffer between host and client can hold.
const more = 32 << 20

// newRigWithMore has the file "more" of that size; its content begins like that of "big".
func newRigWithMore(t *testing.T, options ...func(*rig)) (*rig, []byte) {
	t.Helper()
	r := newRig(t, options...)
	content := make([]byte, more)
	copy(content, r.big)
	copy(content[more-len(r.big):], r.big)
	r.write("more", content)
	return r, content
}

func stallTimeout(d time.Duration) func(*rig) {
	return func(r *rig) { r.cfg.Limits.StallTimeout = config.Duration(d) }
}

func drainTimeout(d time.Duration) func(*rig) {
	return func(r *rig) { r.cfg.Limits.DrainTimeout = config.Duration(d) }
}

// reset makes the client send a RST.
func (c *connection) reset() {
	c.tb.Helper()
	if err := c.client.SetLinger(0); err != nil {
		c.tb.Fatal(err)
	}
	c.client.Close()
}

// TestClientResets: whatever the lease is doing, the guest hears that the client is gone.
func TestClientResets(t *testing.T) {
	for name, before := range map[string]func(*fakeGuest, *connection){
		"idle": func(*fakeGuest, *connection) {},
		"in a response": func(g *fakeGuest, c *connection) {
			g.send(1, 0, c.whole("more", "head\n"))
			c.clientReads([]byte("head\n"))
		},
		"without credit": func(g *fakeGuest, c *connection) { go c.client.Write(c.big); g.hears(1, string(c.big[:window])) },
		"in a drain": func(g *fakeGuest, c *connection) {
			g.send(1, wire.FlagReturn, c.whole("big", "head\n"))
			c.clientReads([]byte("head\n"))
		},
		"half closed": func(g *fakeGuest, c *connection) {
			if err := c.client.CloseWrite(); err != nil {
				c.tb.Fatal(err)
			}
			expect[wire.End](g, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newRigWithMore(t)
			g := r.guest(0)
			c := r.lease(g, 1)
			before(g, c)
			c.reset()
			if name == "without credit" {
				g.send(1, 0, wire.Credit{Bytes: window})
			}
			if m := g.closed(1); m.Reason != wire.ReasonClientGone {
				t.Errorf("CLOSED %v", m.Reason)
			}
			c.release()
			if s := r.status(); s.Closed["client-gone"] != 1 || s.Leases != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestClientResetsUnacknowledged: a client that goes while the daemon waits for its acknowledgements, to give the connection back, is not waited for.
func TestClientResetsUnacknowledged(t *testing.T) {
	const size = 40_000 // more than the client takes, and less than what the host's socket does
	r := newRig(t, drainTimeout(time.Hour))
	r.write("medium", r.big[:size])
	g := r.guest(0)
	c := r.connect()
	if err := c.client.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	g.send(1, wire.FlagReturn, c.freeze(), r.whole("medium", ""))
	expect[wire.Granted](g, 1)
	expect[wire.Sent](g, 1)
	if unacked := r.daemon.Leases().VMs[0].Leases[0].UnackedBytes; unacked == 0 {
		t.Fatal("the client has taken everything: nothing is tested")
	}
	c.reset()
	if m := g.closed(1); m.Reason != wire.ReasonClientGone {
		t.Errorf("CLOSED %v", m.Reason)
	}
	c.release()
}

// TestClientResetsInHandback: a guest that takes a connection which its client has reset meanwhile hears that the client is gone, and of no failure.
func TestClientResetsInHandback(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	c.clientReads(r.big[:4096])
	expect[wire.Sent](g, 1)
	m, _ := expect[wire.Handback](g, 1)
	c.takeBack(m)
	c.reset()
	r.eventually("the host's socket has the RST", func() bool {
		state := tcprepair.Established
		r.daemon.vms[0].eachLease(func(l *leaseConn) { state, _ = l.socket.state() })
		return state == tcprepair.Closed
	})
	g.send(1, 0, wire.Taken{})
	if m := g.closed(1); m.Reason != wire.ReasonClientGone {
		t.Errorf("CLOSED %v", m.Reason)
	}
	c.server.Close()
}

// closed waits for CLOSED, and takes all DATA before it.
func (g *fakeGuest) closed(id uint32) wire.Closed {
	g.tb.Helper()
	for limit := time.After(patience); ; {
		select {
		case got := <-g.of(id):
			switch m := got.message.(type) {
			case wire.Closed:
				return m
			case wire.Data:
				g.send(id, 0, wire.Credit{Bytes: uint32(len(m.Data))})
			default:
				g.tb.Fatalf("lease %d: got %v, want CLOSED", id, got.head.Type)
			}
		case <-limit:
			g.tb.Fatalf("lease %d: no CLOSED", id)
		}
	}
}

// TestSlowClient: a client that takes a little now and then is served to its end, also when that takes longer than the stall time-out.
func TestSlowClient(t *testing.T) {
	r, content := newRigWithMore(t, stallTimeout(2*time.Second))
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.connect()
	if err := c.client.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	g.send(1, 0, c.freeze(), r.whole("more", ""))
	expect[wire.Granted](g, 1)
	taken, buf := 0, make([]byte, 8<<10)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		n, err := c.client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf[:n], content[taken:taken+n]) {
			t.Fatal("wrong bytes")
		}
		taken += n
	}
	if taken >= more {
		t.Fatal("the client was not slow")
	}
	_ = c.client.SetReadBuffer(1 << 20)
	c.clientReads(content[taken:])
	if m, _ := expect[wire.Sent](g, 1); m.Bytes != more {
		t.Errorf("SENT %+v", m)
	}
	g.send(1, 0, wire.Close{})
	expect[wire.Closed](g, 1)
	c.clientEnds()
	c.release()
}

// TestPausingClient: a zero window that is shorter than the stall time-out does no harm.
func TestPausingClient(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, wire.FlagReturn, r.whole("more", ""))
	time.Sleep(5 * time.Second) // this is what is tested
	wait := c.clientReading(content)
	expect[wire.Sent](g, 1)
	expect[wire.Handback](g, 1)
	g.send(1, 0, wire.Keep{Reason: wire.ReasonKernel})
	wait()
	g.send(1, 0, wire.Close{})
	expect[wire.Closed](g, 1)
	c.clientEnds()
	c.release()
}

// TestStalledClient: a connection whose client has stopped reading is given back, and goes on at the guest; unless all of the response is in the kernel's
// buffer, which the guest has no more.
func TestStalledClient(t *testing.T) {
	r, content := newRigWithMore(t, stallTimeout(300*time.Millisecond))
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	c.clientReads(content[:1<<20])
	sent := g.takesBack(1, c) // after the time-out
	wait := c.clientReading(content[1<<20:])
	if _, err := c.server.Write(content[sent:]); err != nil {
		t.Fatal(err)
	}
	wait()

	r.write("part", content[:3<<20])
	c = r.lease(g, 2)
	if err := c.client.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	g.send(2, 0, r.whole("part", ""))
	c.clientReads(content[:3<<20-200<<10])
	expect[wire.Sent](g, 2)
	time.Sleep(time.Second) // three times the time-out
	c.clientReads(content[3<<20-200<<10 : 3<<20])
	g.takesBack(2, c) // since it is idle now
}

// TestPathFails: where clients of a VM have been seen to reach our sockets, be it for a moment, one that acknowledges nothing has a path that fails, and goes on
// when it works again.
func TestPathFails(t *testing.T) {
	r, content := newRigWithMore(t, stallTimeout(time.Minute))
	r.net.CheckNoResets(t)
	g := r.guest(0)
	v := r.daemon.vms[0]
	if after := v.blind.after(); after != blindAfter {
		t.Errorf("nobody was seen, and the limit is %v", after)
	}
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	c.clientReads(content)
	expect[wire.Sent](g, 1)
	g.send(1, 0, wire.Close{})
	expect[wire.Closed](g, 1)
	c.release()
	if after := v.blind.after(); after != blindSeenAfter {
		t.Errorf("a client was seen, and the limit is %v", after)
	}

	c = r.connect()
	thaw := c.freezeClient() // nothing reaches it
	g.send(2, 0, c.freeze(), r.whole("more", ""))
	expect[wire.Granted](g, 2)
	time.Sleep(blindAfter + time.Second)
	thaw()
	c.clientReads(content)
	expect[wire.Sent](g, 2)
	g.send(2, 0, wire.Close{})
	expect[wire.Closed](g, 2)
	c.release()
}

// TestBlind: clients that never acknowledge anything do not reach our sockets. After some of them the VM keeps its connections.
func TestBlind(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	var all []*connection
	for id := range uint32(blindLeases) {
		c := r.connect()
		freeze := c.freezeClient() // its kernel takes nothing in, as if nothing arrived
		g.send(1+id, 0, c.freeze(), r.whole("small", "head"))
		expect[wire.Granted](g, 1+id)
		expect[wire.Sent](g, 1+id)
		defer freeze()
		all = append(all, c)
	}
	for id, c := range all {
		if m, _ := expect[wire.Closed](g, uint32(1+id)); m.Reason != wire.ReasonClientStalled {
			t.Errorf("CLOSED %v", m.Reason)
		}
		c.release()
	}
	c := r.connect()
	g.send(9, 0, c.freeze())
	if m, _ := expect[wire.Refused](g, 9); m.Reason != wire.ReasonPath {
		t.Errorf("REFUSED %v", m.Reason)
	}
	c.thaw()
}
