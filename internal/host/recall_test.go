package host

import (
	"bytes"
	"io"
	"testing"

	"spillway/internal/wire"
)

// takesBack is a guest that takes a connection back. It returns what HANDBACK tells of the SEND under way.
func (g *fakeGuest) takesBack(id uint32, c *connection) (sent int64) {
	g.tb.Helper()
	m, _ := expect[wire.Handback](g, id)
	c.takeBack(m)
	g.send(id, 0, wire.Taken{})
	expect[wire.Released](g, id)
	return m.Sent
}

// finishes is a guest that takes a connection back in the middle of content and sends the rest by itself.
func (g *fakeGuest) finishes(id uint32, c *connection, content []byte) {
	g.tb.Helper()
	sent := g.takesBack(id, c)
	if sent < 0 || sent >= int64(len(content)) {
		g.tb.Fatalf("%d of %d bytes were sent: not in the middle", sent, len(content))
	}
	wait := c.clientReading(content)
	if _, err := c.server.Write(content[sent:]); err != nil {
		g.tb.Fatal(err)
	}
	wait()
}

func (r *rig) recall() {
	r.tb.Helper()
	if _, err := r.daemon.Recall(""); err != nil {
		r.tb.Fatal(err)
	}
}

// TestRecallInFile: a connection that is wanted back stops at a byte, whatever waits in its socket, and the guest goes on from there.
func TestRecallInFile(t *testing.T) {
	for name, before := range map[string]func(c *connection, content []byte) []byte{
		"at the beginning":         func(_ *connection, content []byte) []byte { return content },
		"the client reads nothing": func(c *connection, content []byte) []byte { c.eventuallyFull(); return content },
		"the client has read some": func(c *connection, content []byte) []byte {
			c.clientReads(content[:5<<20])
			return content[5<<20:]
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, content := newRigWithMore(t)
			r.net.CheckNoResets(t)
			g := r.guest(0)
			c := r.lease(g, 1)
			g.send(1, 0, r.whole("more", "head\n"))
			g.waitSends(r, 1)
			rest := before(c, append([]byte("head\n"), content...))
			r.recall()
			sent := g.takesBack(1, c)
			wait := c.clientReading(rest)
			if _, err := c.server.Write(content[sent:]); err != nil {
				t.Fatal(err)
			}
			wait()
			if s := r.status(); s.Handbacks != 1 || s.Keeps != 0 || s.SentBytes != uint64(sent) || s.Leases != 0 {
				t.Errorf("status %+v; %d bytes were sent", s, sent)
			}
		})
	}
}

// eventuallyFull waits until the host cannot send any more.
func (c *connection) eventuallyFull() {
	last := int64(-1)
	c.eventually("the host waits for the client", func() bool {
		now := int64(0)
		c.daemon.vms[0].eachLease(func(l *leaseConn) { now = l.socket.written.Load() })
		full := now == last
		last = now
		return full && now > 0
	})
}

// TestRecallInFileKept: a guest that cannot take it back leaves the host to go on, and has its SENT in the end.
func TestRecallInFileKept(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	r.recall()
	m, _ := expect[wire.Handback](g, 1)
	if m.Sent < 0 || m.Sent >= more {
		t.Errorf("%d bytes were sent", m.Sent)
	}
	g.send(1, 0, wire.Keep{Reason: wire.ReasonKernel})
	c.clientReads(content)
	if m, _ := expect[wire.Sent](g, 1); m.Reason != wire.ReasonOK || m.Bytes != more {
		t.Errorf("SENT %+v", m)
	}
	// The recall is still due.
	if sent := g.takesBack(1, c); sent != -1 {
		t.Errorf("%d bytes of no SEND were sent", sent)
	}
}

// TestRecallInFileLost: a guest that dies after HANDBACK leaves the host to finish the response.
func TestRecallInFileLost(t *testing.T) {
	r, content := newRigWithMore(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	r.recall()
	expect[wire.Handback](g, 1)
	g.hangUp()
	c.clientReads(content)
	c.clientEnds()
	c.release()
}

// TestRecallData: a guest that sends its own bytes without an end comes to a stop, since it gets no credit, and goes on by itself.
func TestRecallData(t *testing.T) {
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	content := bytes.Repeat([]byte("dynamic "), window/8)
	wait := c.clientReading(content[:window/2])
	g.send(1, 0, dataFrames(content[:window/2])...)
	wait()
	r.recall()
	wait = c.clientReading(content[window/2:])
	g.send(1, 0, dataFrames(content[window/2:])...) // crosses with HANDBACK, or does not
	sent := 0
	for {
		head, m := g.next(1)
		switch m := m.(type) {
		case wire.Credit:
		case wire.Handback:
			if m.Data != window { // crossed
				g.send(1, 0, wire.Keep{Reason: wire.ReasonUnacked})
				continue
			}
			wait()
			c.takeBack(m)
			g.send(1, 0, wire.Taken{})
			sent++
		case wire.Released:
			if sent != 1 {
				t.Errorf("RELEASED after %d TAKEN", sent)
			}
			c.clientSays("hello")
			if _, err := io.ReadFull(c.server, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			return
		default:
			t.Fatalf("got %v", head.Type)
		}
	}
}

// dataFrames are DATA of all of p.
func dataFrames(p []byte) (frames []wire.Message) {
	for len(p) > 0 {
		n := min(len(p), wire.MaxData)
		frames = append(frames, wire.Data{Data: p[:n]})
		p = p[n:]
	}
	return frames
}
