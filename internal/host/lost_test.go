package host

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"spillway/internal/config"
	"spillway/internal/wire"
)

// TestSessionLost: whatever a lease is doing when its guest goes away, the client gets what is under way, whole, and then an end of file.
func TestSessionLost(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(*fakeGuest, *connection)
		want   func(r *rig, more []byte) []byte
	}{
		"idle":           {func(*fakeGuest, *connection) {}, func(*rig, []byte) []byte { return nil }},
		"unread request": {func(_ *fakeGuest, c *connection) { go c.client.Write(c.big[:2*window]) }, func(*rig, []byte) []byte { return nil }},
		"in a response": {func(g *fakeGuest, c *connection) {
			g.send(1, 0, c.whole("more", ""))
			g.waitSends(c.rig, 1)
		}, func(_ *rig, more []byte) []byte { return more }},
		"inbox": {func(g *fakeGuest, c *connection) {
			g.send(1, 0, c.whole("more", ""), wire.Data{Data: []byte("trailer")}, wire.End{}, wire.Close{})
			g.waitSends(c.rig, 1)
		}, func(_ *rig, more []byte) []byte { return append(bytes.Clone(more), "trailer"...) }},
		"returning": {func(g *fakeGuest, c *connection) {
			g.send(1, wire.FlagReturn, c.whole("small", ""))
			expect[wire.Sent](g, 1)
			expect[wire.Handback](g, 1)
		}, func(r *rig, _ []byte) []byte { return r.big[:4096] }},
		"returning idle": {func(g *fakeGuest, c *connection) {
			if _, err := c.daemon.Recall("one"); err != nil {
				c.tb.Fatal(err)
			}
			expect[wire.Handback](g, 1)
		}, func(*rig, []byte) []byte { return nil }},
		"half closed": {func(g *fakeGuest, c *connection) {
			g.send(1, 0, wire.Data{Data: []byte("end")}, wire.End{})
		}, func(*rig, []byte) []byte { return []byte("end") }},
	} {
		t.Run(name, func(t *testing.T) {
			r, content := newRigWithMore(t)
			r.net.CheckNoResets(t)
			g := r.guest(0)
			c := r.lease(g, 1)
			tt.before(g, c)
			// After all that was sent before has been taken in.
			frames := r.status().Frames
			g.send(9, 0, wire.Stat{Share: "media", Path: "big"})
			expect[wire.Attr](g, 9)
			if r.status().Frames <= frames {
				t.Error("frames are not counted")
			}
			g.hangUp()
			c.clientReads(tt.want(r, content))
			c.clientEnds()
			if name != "inbox" { // where the guest had closed the connection itself
				time.Sleep(50 * time.Millisecond) // the host is still there for a client that has more to say
				c.clientSays("late")
			}
			c.client.Close()
			r.eventually("the lease ends", func() bool { return r.status().Leases == 0 })
			c.release()
			if s := r.status(); s.Closed["session"]+s.Closed["closed"] != 1 {
				t.Errorf("status %+v", s)
			}
			// The channel serves a new session.
			again := r.guest(0)
			next := r.lease(again, 1)
			again.send(1, 0, r.whole("big", ""))
			next.clientReads(r.big)
		})
	}
}

// waitSends waits until the host has begun so many SENDs.
func (g *fakeGuest) waitSends(r *rig, n uint64) {
	g.tb.Helper()
	r.eventually("the SEND begins", func() bool { return r.status().Sends >= n })
}

// TestSecondConnection: a new connection on the same channel takes the place of the old one, whose leases end.
func TestSecondConnection(t *testing.T) {
	r := newRig(t)
	old := r.guest(0)
	c := r.lease(old, 1)
	g := r.guest(0)
	old.expectEnd()
	c.clientEnds()
	c.client.Close()
	r.eventually("the old lease ends", func() bool { return r.status().Leases == 0 })
	c.release()
	next := r.lease(g, 1)
	g.send(1, 0, r.whole("big", ""))
	next.clientReads(r.big)
}

// TestNoAnswer: a guest that does not answer HANDBACK does not keep the client frozen for longer than a silent guest would, although it
// says PING all the time.
func TestNoAnswer(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.cfg.Limits.SessionTimeout = config.Duration(3 * time.Second)
		r.cfg.Limits.StallTimeout = config.Duration(time.Hour)
	})
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	expect[wire.Sent](g, 1)
	expect[wire.Handback](g, 1)
	c.clientReads(r.big[:4096])
	c.clientEnds()
	c.client.Close()
	g.expectEnd()
	r.eventually("the lease ends", func() bool { return r.status().Leases == 0 })
	c.release()
}

// TestDrain: a daemon that stops gives all connections back, idle ones and those in the middle of a response.
func TestDrain(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	idle, busy := r.lease(g, 1), r.lease(g, 2)
	g.send(2, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	late := r.connect()
	r.stop()
	expect[wire.Drain](g, 0)
	g.send(3, 0, late.freeze())
	if m, _ := expect[wire.Refused](g, 3); m.Reason != wire.ReasonDraining {
		t.Errorf("REFUSED %v", m.Reason)
	}
	late.thaw()

	if sent := g.takesBack(1, idle); sent != -1 {
		t.Errorf("%d bytes of no SEND were sent", sent)
	}
	g.finishes(2, busy, content)
	for _, c := range []*connection{idle, busy} {
		c.clientSays("hello")
		if _, err := io.ReadFull(c.server, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("the daemon does not stop")
	}
}

// TestDrainTimeout: what does not end in time is closed.
func TestDrainTimeout(t *testing.T) {
	r, _ := newRigWithMore(t, drainTimeout(300*time.Millisecond))
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	kept := r.lease(g, 2)
	r.stop()
	expect[wire.Handback](g, 2)
	g.send(2, 0, wire.Keep{Reason: wire.ReasonKernel})
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("the daemon does not stop")
	}
	c.clientReset() // and not left waiting for bytes that nobody can send any more
	kept.clientEnds()
	c.release()
	kept.release()
}

// TestAdmin: the socket, the state and the recall.
func TestAdmin(t *testing.T) {
	r := newRig(t)
	content := r.big
	r.net.CheckNoResets(t)
	if info, err := os.Stat(r.cfg.Admin); err != nil || info.Mode().Perm() != adminMode {
		t.Errorf("admin socket: %v, %v", info.Mode(), err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.cfg.Admin)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: patience}
	do := func(method, path string, want int, into any) {
		t.Helper()
		req, err := http.NewRequest(method, "http://admin"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != want {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
		if into != nil {
			if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
				t.Fatal(err)
			}
		}
	}
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("small", ""))
	c.clientReads(content[:4096])
	expect[wire.Sent](g, 1)
	var recall struct{ Leases int }
	do("POST", "/recall?vm=two", http.StatusOK, &recall)
	if recall.Leases != 0 {
		t.Errorf("recalled %d leases of the other VM", recall.Leases)
	}
	do("POST", "/recall?vm=none", http.StatusNotFound, nil)
	do("GET", "/recall", http.StatusMethodNotAllowed, nil)
	do("POST", "/recall?vm=one", http.StatusOK, &recall)
	if recall.Leases != 1 {
		t.Errorf("recalled %d leases", recall.Leases)
	}
	// The first try crosses with DATA, the second one succeeds.
	expect[wire.Handback](g, 1)
	g.send(1, 0, wire.Data{Data: []byte("crossed")}, wire.Keep{Reason: wire.ReasonUnacked})
	c.clientReads([]byte("crossed"))
	m, _ := expect[wire.Handback](g, 1)
	if m.Data != 7 {
		t.Errorf("HANDBACK tells of %d DATA bytes", m.Data)
	}
	c.takeBack(m)
	g.send(1, 0, wire.Taken{})
	expect[wire.Released](g, 1)
	var status Status
	do("GET", "/status", http.StatusOK, &status)
	one := status.VMs[0]
	if one.Name != "one" || one.Handbacks != 1 || one.Keeps != 1 || one.Leases != 0 || one.Sessions != 1 || one.SentBytes != 4096 {
		t.Errorf("status %+v", one)
	}
	if status.Shares[0].OpenFiles != 1 || status.Shares[0].IdleFiles != 1 {
		t.Errorf("share %+v", status.Shares[0])
	}
}
