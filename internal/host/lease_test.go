package host

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// TestLease is the main job: take a connection over with its first SEND, relay the next request, serve it, close.
func TestLease(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			r := newRig(t)
			r.net.CheckNoResets(t)
			g := r.guest(0)
			c := r.connect()
			if family == "IPv6" {
				c = r.connect6()
			}
			c.clientSays("request 1")
			got := make([]byte, 9)
			if _, err := io.ReadFull(c.server, got); err != nil {
				t.Fatal(err)
			}
			g.send(7, 0, c.freeze(), r.whole("big", "head 1\n"))
			expect[wire.Granted](g, 7)
			c.clientReads(append([]byte("head 1\n"), r.big...))
			if m, flags := expect[wire.Sent](g, 7); m.Reason != wire.ReasonOK || m.Bytes != int64(len(r.big)) || flags != wire.FlagStarted {
				t.Fatalf("SENT %+v %v", m, flags)
			}

			c.clientSays("request 2")
			g.hears(7, "request 2")
			part := r.whole("big", "head 2\n")
			part.Offset, part.Count = 1000, 70000
			g.send(7, 0, part)
			c.clientReads(append([]byte("head 2\n"), r.big[1000:71000]...))
			expect[wire.Sent](g, 7)

			g.send(7, wire.FlagMore, wire.Data{Data: []byte("chunk ")})
			g.send(7, 0, r.whole("small", ""))
			c.clientReads(append([]byte("chunk "), r.big[:4096]...))
			expect[wire.Sent](g, 7)

			g.send(7, 0, wire.Close{})
			c.clientEnds()
			if m, _ := expect[wire.Closed](g, 7); m.Reason != wire.ReasonClosed {
				t.Errorf("CLOSED %v", m.Reason)
			}
			c.release()
			if s := r.status(); s.Handovers != 1 || s.Sends != 3 || s.SentBytes != uint64(len(r.big)+70000+4096) || s.Leases != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestReturn is the mode that hands back after each response, twice on one connection.
func TestReturn(t *testing.T) {
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.connect()
	for round, name := range []string{"big", "small", "big"} {
		content := r.big
		if name == "small" {
			content = r.big[:4096]
		}
		id := uint32(20 + round)
		c.clientSays("request")
		if _, err := io.ReadFull(c.server, make([]byte, 7)); err != nil {
			t.Fatal(err)
		}
		wait := c.clientReading(append([]byte("head\n"), content...))
		g.send(id, wire.FlagReturn, c.freeze(), r.whole(name, "head\n"))
		expect[wire.Granted](g, id)
		wait() // for the whole response: it does not depend on the handback
		if m, _ := expect[wire.Sent](g, id); m.Reason != wire.ReasonOK || m.Bytes != int64(len(content)) {
			t.Fatalf("SENT %+v", m)
		}
		said := ""
		if round > 0 { // else the client says nothing until the host gives the connection back
			said = "next"
			c.clientSays(said)
		}
		m, _ := expect[wire.Handback](g, id)
		if m.Data != 0 || string(m.Said) != said {
			t.Fatalf("HANDBACK tells of %d DATA bytes, the client said %q; want 0, %q", m.Data, m.Said, said)
		}
		c.takeBack(m)
		// The host's socket still has the connection: what the client says now comes as DATA.
		c.clientSays("late")
		r.eventually("the host's kernel has it", func() bool { return r.unread() == 4 })
		g.send(id, 0, wire.Taken{})
		late, _ := expect[wire.Data](g, id)
		expect[wire.Released](g, id)
		if string(late.Data) != "late" {
			t.Fatalf("DATA after TAKEN: %q", late.Data)
		}
		c.fd(func(fd int) error { return c.freezer.TakeIn(fd, m.State.RecvSeq, late.Data) })
	}
	// The guest's own socket serves it again.
	c.clientSays("hello")
	if _, err := io.ReadFull(c.server, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if s := r.status(); s.Handbacks != 3 || s.Keeps != 0 || s.Leases != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestReturnUpload: a client that goes on to send is not idle; what it sends is relayed, and the next SEND with RETURN tries again.
func TestReturnUpload(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.connect()
	g.send(1, wire.FlagReturn, c.freeze(), r.whole("more", ""))
	expect[wire.Granted](g, 1)
	upload := r.big[:wire.MaxSaid+1]
	c.clientSays(string(upload)) // in the middle of the response, which waits for the client to read
	r.eventually("the host's kernel has it", func() bool { return r.unread() == len(upload) })
	c.clientReads(content)
	expect[wire.Sent](g, 1)
	g.hears(1, string(upload))
	wait := c.clientReading(r.big[:4096])
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	wait()
	expect[wire.Sent](g, 1)
	m, _ := expect[wire.Handback](g, 1)
	c.takeBack(m)
	g.send(1, 0, wire.Taken{})
	expect[wire.Released](g, 1)
}

// TestReturnKept: the guest cannot take the connection back, so the host goes on where it stopped.
func TestReturnKept(t *testing.T) {
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	for range 2 {
		wait := c.clientReading(append([]byte("head\n"), r.big...))
		g.send(1, wire.FlagReturn, r.whole("big", "head\n"))
		wait()
		if m, _ := expect[wire.Sent](g, 1); m.Reason != wire.ReasonOK || m.Bytes != int64(len(r.big)) {
			t.Fatalf("SENT %+v", m)
		}
		expect[wire.Handback](g, 1)
		c.clientSays("next") // it waits in a socket that the netpoller has told of already
		r.eventually("the host's kernel has it", func() bool { return r.unread() == 4 })
		g.send(1, 0, wire.Keep{Reason: wire.ReasonKernel})
		g.hears(1, "next")
	}
	g.send(1, 0, wire.Close{})
	expect[wire.Closed](g, 1)
	c.clientEnds()
	c.release()
}

// TestReturnCrossed: what the guest sends while HANDBACK is on its way is not lost.
func TestReturnCrossed(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	wait := c.clientReading(append(bytes.Clone(r.big[:4096]), "crossed"...))
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	expect[wire.Sent](g, 1)
	m, _ := expect[wire.Handback](g, 1)
	g.send(1, 0, wire.Data{Data: []byte("crossed")}, wire.Keep{Reason: wire.ReasonUnacked})
	if m.Data != 0 {
		t.Errorf("HANDBACK tells of %d DATA bytes", m.Data)
	}
	wait()
	wait = c.clientReading(r.big[:4096])
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	wait()
	expect[wire.Sent](g, 1)
	if m, _ := expect[wire.Handback](g, 1); m.Data != 7 {
		t.Errorf("HANDBACK tells of %d DATA bytes, want 7", m.Data)
	}
	g.send(1, wire.FlagAbort, wire.Close{})
	g.send(1, 0, wire.Keep{Reason: wire.ReasonUnacked})
	expect[wire.Closed](g, 1)
	c.clientReset()
	c.release()
}

// TestData moves more than the window in each direction, by credit.
func TestData(t *testing.T) {
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	var both sync.WaitGroup
	both.Go(func() { // the client sends and receives at the same time
		if _, err := c.client.Write(r.big); err != nil {
			t.Error(err)
		}
	})
	both.Go(func() {
		got := make([]byte, len(r.big))
		if _, err := io.ReadFull(c.client, got); err != nil || !bytes.Equal(got, r.big) {
			t.Errorf("client: %v, or wrong bytes", err)
		}
	})
	credit, sent := window, 0
	var heard []byte
	for sent < len(r.big) || len(heard) < len(r.big) {
		if n := min(credit, wire.MaxData, len(r.big)-sent); n > 0 {
			g.send(1, 0, wire.Data{Data: r.big[sent : sent+n]})
			sent, credit = sent+n, credit-n
			continue
		}
		switch got := <-g.of(1); m := got.message.(type) {
		case wire.Credit:
			credit += int(m.Bytes)
		case wire.Data:
			heard = append(heard, m.Data...)
			g.send(1, 0, wire.Credit{Bytes: uint32(len(m.Data))})
		default:
			t.Fatalf("got %v", got.head.Type)
		}
	}
	both.Wait()
	if !bytes.Equal(heard, r.big) {
		t.Error("the guest heard wrong bytes")
	}
}

// TestCredit: a guest that gives none gets no more than the window, and the rest when it does.
func TestCredit(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := c.client.Write(r.big[:2*window]); err != nil {
			t.Error(err)
		}
	})
	g.hears(1, string(r.big[:window]))
	if n := len(g.of(1)); n != 0 {
		t.Errorf("%d frames beyond the window", n)
	}
	g.send(1, 0, wire.Credit{Bytes: window})
	g.hears(1, string(r.big[window:2*window]))
	writing.Wait()
}

// TestEnd closes each direction while the other one goes on.
func TestEnd(t *testing.T) {
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)

	t.Run("client first", func(t *testing.T) {
		c := r.lease(g, 1)
		c.clientSays("last words")
		if err := c.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		g.hears(1, "last words")
		expect[wire.End](g, 1)
		g.send(1, 0, r.whole("big", "head\n"))
		c.clientReads(append([]byte("head\n"), r.big...))
		expect[wire.Sent](g, 1)
		// A return is not possible any more, and the response is whole all the same.
		g.send(1, wire.FlagReturn, r.whole("small", ""))
		c.clientReads(r.big[:4096])
		expect[wire.Sent](g, 1)
		g.send(1, 0, wire.Close{})
		c.clientEnds()
		expect[wire.Closed](g, 1)
		c.release()
	})
	t.Run("guest first", func(t *testing.T) {
		c := r.lease(g, 2)
		g.send(2, 0, wire.Data{Data: []byte("answer")}, wire.End{})
		c.clientReads([]byte("answer"))
		c.clientEnds()
		c.clientSays("still there")
		g.hears(2, "still there")
		c.client.Close()
		expect[wire.End](g, 2)
		g.send(2, 0, wire.Close{})
		expect[wire.Closed](g, 2)
		c.release()
	})
}

// TestManyLeases runs leases in parallel, each with several responses, in both modes.
func TestManyLeases(t *testing.T) {
	const leases, rounds = 64, 3
	r := newRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	conns := make([]*connection, leases)
	for i := range conns {
		conns[i] = r.connect()
	}
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			id := uint32(100 + i)
			g.send(id, 0, c.freeze())
			expect[wire.Granted](g, id)
			for round := range rounds {
				text := fmt.Sprintf("request %d of %d", round, i)
				c.clientSays(text)
				g.hears(id, text)
				order := r.whole("big", text)
				order.Offset = int64(i * 1000)
				order.Count = 200_000
				flags := wire.Flags(0)
				if i%2 == 1 {
					flags = wire.FlagReturn
				}
				wait := c.clientReading(append([]byte(text), r.big[order.Offset:order.Offset+order.Count]...))
				g.send(id, flags, order)
				if flags == wire.FlagReturn {
					expect[wire.Sent](g, id)
					expect[wire.Handback](g, id)
					g.send(id, 0, wire.Keep{Reason: wire.ReasonUnacked})
					wait()
					continue
				}
				wait()
				expect[wire.Sent](g, id)
			}
			g.send(id, 0, wire.Close{})
			expect[wire.Closed](g, id)
			c.clientEnds()
			c.release()
		})
	}
	all.Wait()
	if s := r.status(); s.Sends != leases*rounds || s.Leases != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestOptions: the host's socket sends at once whatever the guest's setting is, no unknown congestion control is loaded, and its packets have the mark that
// the operator gave the VM.
func TestOptions(t *testing.T) {
	const mark = 0x77
	r := newRig(t, func(r *rig) { r.cfg.VMs[0].Mark = mark })
	g := r.guest(0)
	c := r.connect()
	c.fd(func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0) })
	m := c.freeze()
	usual := m.State.Congestion
	m.State.Congestion = "nosuchname"
	g.send(1, 0, m)
	expect[wire.Granted](g, 1)
	leases := r.daemon.vms[0].eachLease(func(l *leaseConn) {
		err := l.socket.control(func(fd int) error {
			noDelay, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
			if err != nil || noDelay == 0 {
				t.Errorf("TCP_NODELAY %d, %v", noDelay, err)
			}
			name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			if err != nil || name != usual {
				t.Errorf("congestion control %q, %v, want %q", name, err, usual)
			}
			got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
			if got != mark {
				t.Errorf("mark %#x, want %#x", got, mark)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	if leases != 1 {
		t.Errorf("%d leases", leases)
	}
}
