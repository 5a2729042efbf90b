package host

import (
	"context"
	"testing"
	"time"

	"spillway/internal/wire"
)

// readsOf is how a guest reads bytes of a share that it has no mount of. The READs are on their way when it returns.
func (g *fakeGuest) readsOf(ref wire.FileRef, offset int64) (answer func() []byte) {
	g.tb.Helper()
	const firstID = 500
	id := uint32(firstID)
	for off := offset; off < ref.Size; off += wire.MaxRead {
		g.send(id, 0, wire.Read{File: ref, Offset: off, Count: uint32(min(wire.MaxRead, ref.Size-off))})
		id++
	}
	return func() (all []byte) {
		g.tb.Helper()
		for n := uint32(firstID); n < id; n++ {
			m, _ := expect[wire.Bytes](g, n)
			if m.Reason != wire.ReasonOK {
				g.tb.Fatalf("READ %d: %v", n-firstID, m.Reason)
			}
			all = append(all, m.Data...)
		}
		return all
	}
}

// waitingSend is a lease whose SEND waits for the origin behind so many bytes of the file, which the client has read.
func waitingSend(t *testing.T, name string, before int) (*rig, *originServer, *fakeGuest, *connection, wire.FileRef) {
	t.Helper()
	r, o := newCacheRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	ref := vod(g, 20, name)
	c := r.lease(g, 1)
	g.send(1, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
	if before > 0 {
		c.clientReads(append([]byte("head\n"), r.big[:before]...))
	}
	r.eventually("the SEND waits for the origin", func() (waits bool) {
		r.daemon.vms[0].eachLease(func(l *leaseConn) {
			l.mu.Lock()
			waits = l.stopWait != nil
			l.mu.Unlock()
		})
		return waits && o.gets.Load() == 1
	})
	return r, o, g, c, ref
}

// TestRecallWhileOriginIsSilent: a connection that is wanted back while its SEND waits for the origin goes to the guest at the byte that the client has got; the
// guest reads on from there, through the cache, which waits for the same bytes.
func TestRecallWhileOriginIsSilent(t *testing.T) {
	for name, before := range map[string]int{"slow": 0, "half": halfway} {
		t.Run(name, func(t *testing.T) {
			r, o, g, c, ref := waitingSend(t, name, before)
			r.recall()
			if before == 0 {
				c.clientReads([]byte("head\n")) // it must not wait for the file's first bytes any more
			}
			if sent := g.takesBack(1, c); sent != int64(before) {
				t.Fatalf("HANDBACK tells of %d bytes, want %d", sent, before)
			}
			rest := g.readsOf(ref, int64(before))
			close(o.gate)
			wait := c.clientReading(r.big[before:])
			if _, err := c.server.Write(rest()); err != nil {
				t.Fatal(err)
			}
			wait()
			if n := o.gets.Load(); n != 1 {
				t.Errorf("the origin was asked for bytes %d times", n)
			}
			if s := r.status(); s.Handbacks != 1 || s.Keeps != 0 || s.SentBytes != uint64(before) || s.Leases != 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestRecallWhileOriginIsSilentKept: a guest that cannot take it back leaves the host to wait for the origin again.
func TestRecallWhileOriginIsSilentKept(t *testing.T) {
	for name, before := range map[string]int{"slow": 0, "half": halfway} {
		t.Run(name, func(t *testing.T) {
			r, o, g, c, ref := waitingSend(t, name, before)
			r.recall()
			if m, _ := expect[wire.Handback](g, 1); m.Sent != int64(before) {
				t.Errorf("HANDBACK tells of %d bytes, want %d", m.Sent, before)
			}
			g.send(1, 0, wire.Keep{Reason: wire.ReasonKernel})
			if before == 0 {
				c.clientReads([]byte("head\n"))
			}
			r.eventually("the SEND waits again", func() bool { return r.status().Keeps == 1 })
			close(o.gate)
			c.clientReads(r.big[before:])
			if m, _ := expect[wire.Sent](g, 1); m.Reason != wire.ReasonOK || m.Bytes != ref.Size {
				t.Errorf("SENT %+v", m)
			}
			if sent := g.takesBack(1, c); sent != -1 { // the recall is still due
				t.Errorf("%d bytes of no SEND were sent", sent)
			}
		})
	}
}

// TestRecallWhileOriginIsAsked: a connection that is wanted back, or whose daemon stops, while its SEND waits to hear from the origin whether there is such a
// version, goes to the guest: nothing of the response has been sent, and the guest sends it.
func TestRecallWhileOriginIsAsked(t *testing.T) {
	for name, want := range map[string]func(*rig){"recall": (*rig).recall, "stop": func(r *rig) { r.stop() }} {
		t.Run(name, func(t *testing.T) {
			r, o := newCacheRig(t)
			r.net.CheckNoResets(t)
			g := r.guest(0)
			ref := vod(g, 20, "late")
			r.daemon.shares["vod"].(cacheFiles).Evict("late", false)
			c := r.lease(g, 1)
			g.send(1, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
			r.eventually("the origin is asked again", func() bool { return o.late.Load() == 2 })
			want(r)
			if m, flags := expect[wire.Sent](g, 1); m.Reason != wire.ReasonDraining || m.Bytes != 0 || flags != 0 {
				t.Fatalf("SENT %+v, flags %v", m, flags)
			}
			if sent := g.takesBack(1, c); sent != -1 {
				t.Errorf("HANDBACK tells of %d bytes of a SEND that has ended", sent)
			}
			if _, err := c.server.Write([]byte("by the guest")); err != nil {
				t.Fatal(err)
			}
			c.clientReads([]byte("by the guest"))
		})
	}
}

// TestRecallStorm: recalls that come at any moment of a SEND that the origin holds up, and of one that it does not, move the connection or do not, and
// change no byte.
func TestRecallStorm(t *testing.T) {
	r, o := newCacheRig(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	ref := vod(g, 20, "half")
	opened := time.AfterFunc(50*time.Millisecond, func() { close(o.gate) }) // whatever has happened until then
	defer opened.Stop()
	for id := range uint32(20) {
		c := r.lease(g, 1+id)
		wait := c.clientReading(append([]byte("head\n"), r.big...))
		g.send(1+id, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Duration(id) * 100 * time.Microsecond):
					_, _ = r.daemon.Recall("")
				}
			}
		}()
		for back, all := false, false; !back; {
			switch _, m := g.next(1 + id); m := m.(type) {
			case wire.Sent:
				if all = true; m.Reason != wire.ReasonOK || m.Bytes != ref.Size {
					t.Fatalf("SENT %+v", m)
				}
			case wire.Handback:
				if m.Sent < 0 && !all { // it has crossed with the SEND
					g.send(1+id, 0, wire.Keep{Reason: wire.ReasonUnacked})
					continue
				}
				back = true
				c.takeBack(m)
				g.send(1+id, 0, wire.Taken{})
				expect[wire.Released](g, 1+id)
				if !all {
					if _, err := c.server.Write(g.readsOf(ref, m.Sent)()); err != nil {
						t.Fatal(err)
					}
				}
			default:
				t.Fatalf("got %+v", m)
			}
		}
		wait()
		stop()
		<-stopped
	}
}
