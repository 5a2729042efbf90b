package host

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"spillway/internal/wire"
)

// held is a Hold under way.
func (r *rig) held(timeout time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := r.daemon.Hold(context.Background(), "one", timeout)
		done <- err
	}()
	return done
}

// leaves is a guest that has no lease any more and ends its session.
func (g *fakeGuest) leaves() {
	g.tb.Helper()
	if _, err := g.conn.Write(wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version})); err != nil {
		g.tb.Error(err)
	}
}

// expectMove waits for DRAIN with MOVE.
func (g *fakeGuest) expectMove() {
	g.tb.Helper()
	if _, flags := expect[wire.Drain](g, 0); flags != wire.FlagMove {
		g.tb.Errorf("DRAIN with flags %v", flags)
	}
}

// TestHold: all connections come back, in the middle of a file too, no new one is taken, and the VM gets no session until it stays after all.
func TestHold(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	idle, busy := r.lease(g, 1), r.lease(g, 2)
	g.send(2, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	late := r.connect()
	done := r.held(maxHoldTimeout)
	g.expectMove()
	g.send(3, 0, late.freeze())
	if m, _ := expect[wire.Refused](g, 3); m.Reason != wire.ReasonDraining {
		t.Errorf("REFUSED %v", m.Reason)
	}
	late.thaw()
	if sent := g.takesBack(1, idle); sent != -1 {
		t.Errorf("%d bytes of no SEND were sent", sent)
	}
	g.finishes(2, busy, content)
	select {
	case err := <-done:
		t.Fatalf("the hold is over while there is a session: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	g.leaves()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d, err := r.daemon.Describe("one"); err != nil || !d.Held || d.Sessions != 0 || d.Leases != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	// Neither on this channel nor on a new one, as that of another QEMU that comes too early.
	conn, err := net.Dial("unix", strings.TrimPrefix(r.cfg.VMs[0].Channels[0], "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n > 0 {
		t.Errorf("the daemon offers a session: %v", err)
	}
	if err := r.daemon.Resume("one", false); err != nil {
		t.Fatal(err)
	}
	g = r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("big", ""))
	c.clientReads(r.big)
	g.takesBackAll(r, map[uint32]*connection{1: c})
}

// takesBackAll is a guest to which everything comes back.
func (g *fakeGuest) takesBackAll(r *rig, leases map[uint32]*connection) {
	g.tb.Helper()
	r.recall()
	for id, c := range leases {
		expect[wire.Sent](g, id)
		g.takesBack(id, c)
	}
}

// TestHoldFails: a server that does not end its session keeps the VM here, and takes leases again.
func TestHoldFails(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	r.eventually("a session", func() bool { return r.status().Sessions == 1 })
	done := r.held(50 * time.Millisecond)
	g.expectMove()
	if err := <-done; err == nil {
		t.Fatal("the VM is held although its server has a session")
	}
	g.expectEnd() // with another session's HELLO
	if d, err := r.daemon.Describe("one"); err != nil || d.Held {
		t.Errorf("%+v, %v", d, err)
	}
	g = r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("big", ""))
	c.clientReads(r.big)
	g.takesBackAll(r, map[uint32]*connection{1: c})
}

// TestHoldCloses: a client that does not acknowledge does not keep a VM from moving.
func TestHoldCloses(t *testing.T) {
	r, _ := newRigWithMore(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	c.eventuallyFull()
	r.net.Client.Must(t, func() error { // it acknowledges nothing any more
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	done := r.held(200 * time.Millisecond)
	g.expectMove()
	for { // HANDBACK does not come; what comes is the end
		_, m := g.next(1)
		if m, ok := m.(wire.Closed); ok {
			if m.Reason != wire.ReasonDraining {
				t.Errorf("CLOSED %v", m.Reason)
			}
			break
		}
	}
	g.leaves()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.release()
}

// TestAdmit: a host takes what fits, and says everything that does not.
func TestAdmit(t *testing.T) {
	r := newRig(t)
	own, err := r.daemon.Describe("one")
	if err != nil {
		t.Fatal(err)
	}
	ref := r.ref("small")
	own.Files = []FileInUse{{ref.Share, ref.Path, ref.Size, ref.MTime}}
	if problems, err := r.daemon.Admit(t.Context(), own); err != nil || len(problems) > 0 {
		t.Errorf("it does not take what it describes: %q, %v", problems, err)
	}
	for name, c := range map[string]struct {
		change func(*Description)
		want   string
	}{
		"version":   {func(d *Description) { d.Protocol++ }, "version"},
		"addresses": {func(d *Description) { d.Addresses = d.Addresses[:1] }, "addresses"},
		"share":     {func(d *Description) { d.Shares = []string{"private"} }, `no share "private"`},
		"channels":  {func(d *Description) { d.Channels = 4 }, "channels"},
		"room":      {func(d *Description) { d.Leases = d.MaxLeases + 1 }, "no room"},
		"gateway":   {func(d *Description) { d.Gateways = []string{"02:00:00:00:00:77", ""} }, "gateway"},
		"no file":   {func(d *Description) { d.Files = []FileInUse{{"media", "none", 1, 1}} }, "not-found"},
		"file":      {func(d *Description) { d.Files = []FileInUse{{ref.Share, ref.Path, ref.Size + 1, ref.MTime}} }, "changed"},
	} {
		other := own
		c.change(&other)
		problems, err := r.daemon.Admit(t.Context(), other)
		if err != nil || len(problems) == 0 || !strings.Contains(strings.Join(problems, "\n"), c.want) {
			t.Errorf("%s: %q, %v, want %q", name, problems, err, c.want)
		}
	}
	r.guest(0)
	r.eventually("a session", func() bool { return r.status().Sessions == 1 })
	if problems, _ := r.daemon.Admit(t.Context(), own); len(problems) != 1 || !strings.Contains(problems[0], "runs here already") {
		t.Errorf("it takes a VM that it has: %q", problems)
	}
	if _, err := r.daemon.Describe("none"); err == nil {
		t.Error("it describes a VM that there is not")
	}
	if err := r.daemon.Depart("one", []netip.Addr{netip.MustParseAddr("192.0.2.1")}); err == nil {
		t.Error("the VM departs to nowhere")
	}
}

// TestHoldReturns: a Hold tells which connections came back, and how long each took.
func TestHoldReturns(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	began := time.Now()
	done := make(chan Held, 1)
	go func() {
		h, err := r.daemon.Hold(context.Background(), "one", maxHoldTimeout)
		if err != nil {
			t.Error(err)
		}
		done <- h
	}()
	g.expectMove()
	g.takesBack(1, c)
	g.leaves()
	h := <-done
	if len(h.Returns) != 1 {
		t.Fatalf("%+v", h)
	}
	back := h.Returns[0]
	client := netip.MustParseAddrPort(c.client.LocalAddr().String())
	if took := milliseconds(time.Since(began)); back.Client != client || back.Asked.Before(began) || back.GuestMs <= 0 || back.TookMs < back.GuestMs || back.TookMs > took {
		t.Errorf("%+v of client %v, in %v ms", back, client, took)
	}
}
