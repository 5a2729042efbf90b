package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// Addresses of the link between the two hosts.
var (
	firstHost  = []netip.Addr{netip.MustParseAddr("10.79.0.1"), netip.MustParseAddr("fd79::1")}
	secondHost = []netip.Addr{netip.MustParseAddr("10.79.0.2"), netip.MustParseAddr("fd79::2")}
)

// second starts a daemon on a second host, which has a link to the first one and reaches the client over it.
func (r *rig) second() *rig {
	r.tb.Helper()
	ns := testkit.NewNamespace(r.tb, "second")
	ns.Sysctl(r.tb, "net/ipv4/conf/all/rp_filter", "0")
	ns.Sysctl(r.tb, "net/ipv4/conf/default/rp_filter", "0")
	ns.Sysctl(r.tb, "net/ipv6/conf/default/accept_dad", "0")
	ns.Sysctl(r.tb, "net/ipv4/ip_forward", "1")
	ns.Sysctl(r.tb, "net/ipv6/conf/all/forwarding", "1")
	host := r.net.Host
	prefixes := func(all []netip.Addr) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(all[0], 24), netip.PrefixFrom(all[1], 64)}
	}
	if err := errors.Join(
		host.Veth("second0", 20, ns.Namespace, "eth0"),
		host.Addresses("second0", prefixes(firstHost)...),
		ns.Addresses("eth0", prefixes(secondHost)...),
		ns.DefaultRoutes(firstHost[0], firstHost[1]),
	); err != nil {
		r.tb.Fatal(err)
	}
	host.AwaitLocal(r.tb, firstHost[1])
	ns.AwaitLocal(r.tb, secondHost[1])
	other := &rig{
		tb: r.tb, net: &testkit.Network{Client: r.net.Client, Host: ns, Guest: r.net.Guest}, files: r.files, big: r.big, cfg: r.cfg, done: make(chan struct{}),
	}
	move := func(path string) string { return strings.TrimSuffix(path, ".sock") + "-second.sock" }
	other.cfg.Admin = move(r.cfg.Admin)
	other.cfg.VMs = append(other.cfg.VMs[:0:0], r.cfg.VMs...)
	for i := range other.cfg.VMs {
		other.cfg.VMs[i].Channels = []string{move(r.cfg.VMs[i].Channels[0])}
	}
	other.start()
	return other
}

// carriedMove is a VM that moves from one host to another together with its leases.
type carriedMove struct {
	*testing.T
	from, to *rig
	guest    *fakeGuest
	channel  net.Conn // to the second host, until the guest has it
	paused   []byte   // the guest's last words that QEMU at the second host says
}

// moving connects the channel to the second host.
func moving(t *testing.T, from *rig, g *fakeGuest) *carriedMove {
	t.Helper()
	from.net.CheckNoResets(t)
	m := &carriedMove{T: t, from: from, to: from.second(), guest: g}
	m.expect()
	return m
}

// expect is a QEMU at the second host that waits for the VM.
func (m *carriedMove) expect() {
	m.Helper()
	m.must(m.to.daemon.Expect("one", firstHost))
	channel, err := net.Dial("unix", strings.TrimPrefix(m.to.cfg.VMs[0].Channels[0], "unix:"))
	m.must(err)
	m.Cleanup(func() { channel.Close() })
	m.channel = channel
	m.to.eventually("the channel waits for a session", m.to.waits)
}

// waits tells whether the VM's channel waits for a session that comes.
func (r *rig) waits() bool {
	v := r.daemon.vms[0]
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.arrival.waiting[0] == 1
}

func (m *carriedMove) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *carriedMove) halt() {
	m.Helper()
	h, err := m.from.daemon.Halt(m.Context(), "one", secondHost, maxHoldTimeout)
	m.must(err)
	if h.Closed != 0 || h.Leases != m.from.status().Leases {
		m.Errorf("%+v", h)
	}
}

// transfer hands everything over, as JSON.
func (m *carriedMove) transfer() {
	m.Helper()
	out, err := m.from.daemon.Export("one")
	m.must(err)
	text, err := json.Marshal(out)
	m.must(err)
	m.Logf("%v, %d bytes", out, len(text))
	var in Carried
	m.must(json.Unmarshal(text, &in))
	m.must(m.to.daemon.Import(m.Context(), "one", &in))
	m.must(m.from.daemon.Silent("one"))
}

// commit lets the guest run at the second host, and returns it.
func (m *carriedMove) commit() *fakeGuest {
	m.Helper()
	_, err := m.channel.Write(m.paused)
	m.must(err)
	m.must(m.to.daemon.Commit("one", firstHost))
	m.must(m.from.daemon.Leave("one", secondHost))
	m.guest.hangUp()
	g := &fakeGuest{tb: m, conn: m.channel, id: m.guest.id, frames: m.guest.frames, ended: make(chan struct{})}
	m.Cleanup(g.hangUp)
	go g.read(wire.NewGuestReader(m.channel))
	go g.ping()
	m.from.eventually("no lease is left at the first host", func() bool { return m.from.status().Leases == 0 })
	return g
}

// move is all of it.
func (m *carriedMove) move() *fakeGuest {
	m.Helper()
	m.halt()
	m.transfer()
	return m.commit()
}

// TestCarryIdle: an idle lease goes on at another host, where it is used, and is recalled.
func TestCarryIdle(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("big", ""))
	c.clientReads(r.big)
	expect[wire.Sent](g, 1)
	m := moving(t, r, g)
	g = m.move()
	c.clientSays("next")
	g.hears(1, "next")
	g.send(1, 0, r.whole("big", "head\n"))
	c.clientReads(append([]byte("head\n"), r.big...))
	if sent, _ := expect[wire.Sent](g, 1); sent.Reason != wire.ReasonOK || sent.Bytes != int64(len(r.big)) {
		t.Errorf("%+v", sent)
	}
	c.clientEndsLease(g)
}

// clientEndsLease closes the connection from both sides.
func (c *connection) clientEndsLease(g *fakeGuest) {
	c.tb.Helper()
	g.send(1, 0, wire.Close{})
	c.clientEnds()
	c.client.Close()
	g.awaits(1, wire.TypeClosed)
	c.release()
}

// awaits drops what comes of a lease until a frame of the type.
func (g *fakeGuest) awaits(id uint32, want wire.Type) wire.Message {
	g.tb.Helper()
	for {
		if _, m := g.next(id); m.Type() == want {
			return m
		}
	}
}

// TestCarryInFile: a response that the move meets goes on at the byte at which it stopped, and is one SENT to the guest.
func TestCarryInFile(t *testing.T) {
	for name, before := range map[string]func(c *connection){
		"while the client reads":  func(*connection) {},
		"while there is no room":  func(c *connection) { c.eventuallyFull() },
		"half a response is read": func(c *connection) { c.clientReads([]byte("head\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			r, content := newRigWithMore(t)
			g := r.guest(0)
			c := r.lease(g, 1)
			m := moving(t, r, g)
			g.send(1, 0, r.whole("more", "head\n"))
			g.waitSends(r, 1)
			want := append([]byte("head\n"), content...)
			var wait func()
			switch before(c); name {
			case "while the client reads":
				wait = c.clientReading(want)
			case "half a response is read":
				want = want[len("head\n"):]
			}
			g = m.move()
			if wait == nil {
				wait = c.clientReading(want)
			}
			wait()
			if sent, flags := expect[wire.Sent](g, 1); sent.Reason != wire.ReasonOK || sent.Bytes != int64(len(content)) || flags != wire.FlagStarted {
				t.Errorf("%+v, flags %v", sent, flags)
			}
			if n := m.to.status().Sends; n != 0 {
				t.Errorf("%d SENDs were begun", n)
			}
			c.clientEndsLease(g)
		})
	}
}

// TestCarryQueued: what the guest has said last, also in part, and what waits in the socket for room, goes along in its order.
func TestCarryQueued(t *testing.T) {
	r := newRig(t)
	const size = 5000
	r.write("medium", r.big[:size])
	g := r.guest(0)
	c := r.lease(g, 1)
	m := moving(t, r, g)
	var want []byte
	data := r.big[:3000]
	for unsent := 0; unsent < 3*size; { // until the client has no room, and for some time afterwards
		g.send(1, 0, wire.Data{Data: data}, r.whole("medium", "head\n"))
		want = append(append(append(want, data...), "head\n"...), r.big[:size]...)
		g.awaits(1, wire.TypeSent)
		r.daemon.vms[0].eachLease(func(l *leaseConn) { unsent, _ = l.socket.unsent() })
	}
	g.send(1, 0, wire.Data{Data: data})
	want = append(want, data...)
	m.halt()
	// While it is halted, the guest goes on for a moment, and is paused in the middle of a frame.
	last := wire.Append(wire.Append(nil, g.id, 1, 0, wire.Data{Data: []byte("whole")}), g.id, 1, 0, wire.Data{Data: []byte("torn")})
	if _, err := g.conn.Write(last[:len(last)-2]); err != nil {
		t.Fatal(err)
	}
	m.paused = last[len(last)-2:]
	want = append(want, "wholetorn"...)
	m.transfer()
	g = m.commit()
	c.clientReads(want)
	c.clientEndsLease(g)
}

// TestCarryLate: what the client says while its connection is halted, while nobody has it, and its end of file, are heard at the second host.
func TestCarryLate(t *testing.T) {
	for _, when := range []string{"before", "halted", "sealed"} {
		for _, closes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, closes: %v", when, closes), func(t *testing.T) {
				r := newRig(t)
				g := r.guest(0)
				c := r.lease(g, 1)
				m := moving(t, r, g)
				says := func(now string) {
					if now != when {
						return
					}
					c.clientSays("late")
					if closes {
						if err := c.client.CloseWrite(); err != nil {
							t.Fatal(err)
						}
					}
				}
				says("before")
				if when == "before" {
					g.hears(1, "late")
					if closes {
						expect[wire.End](g, 1)
					}
				}
				m.halt()
				says("halted")
				if when == "halted" {
					r.eventually("the host's socket has it", func() bool { return r.unread() >= len("late") })
				}
				m.transfer()
				says("sealed")
				time.Sleep(5 * time.Millisecond) // it is held now, and nobody waits for it
				g = m.commit()
				if when != "before" {
					g.hears(1, "late")
					if closes {
						expect[wire.End](g, 1)
					}
				}
				g.send(1, 0, r.whole("big", ""))
				c.clientReads(r.big)
				expect[wire.Sent](g, 1)
				if !closes {
					c.clientSays("more")
					g.hears(1, "more")
				}
				t.Logf("the client has waited for %d of TCP's timers", r.net.Client.TCPCounter(t, "TCPTimeouts")) // none, unless the machine stood still
				c.clientEndsLease(g)
			})
		}
	}
}

// TestCarryNot: whatever had been done when a move fails, the leases go on where they were.
func TestCarryNot(t *testing.T) {
	for _, after := range []string{"halt", "transfer"} {
		t.Run(after, func(t *testing.T) {
			r, content := newRigWithMore(t)
			g := r.guest(0)
			c, idle := r.lease(g, 1), r.lease(g, 2)
			m := moving(t, r, g)
			g.send(1, 0, r.whole("more", "head\n"))
			g.waitSends(r, 1)
			m.halt()
			idle.clientSays("while it is halted")
			if after == "transfer" {
				m.transfer()
				c.clientSays("while nobody has it") // is dropped, and said again
			}
			if err := m.to.daemon.Resume("one", false); err != nil {
				t.Fatal(err)
			}
			if n := m.to.status().Leases; n != 0 {
				t.Errorf("%d leases are left at the second host", n)
			}
			if err := r.daemon.Arrive("one", secondHost); err != nil {
				t.Fatal(err)
			}
			if err := r.daemon.Resume("one", false); err != nil {
				t.Fatal(err)
			}
			c.clientReads(append([]byte("head\n"), content...))
			if sent := g.awaits(1, wire.TypeSent).(wire.Sent); sent.Bytes != int64(len(content)) {
				t.Errorf("%+v", sent)
			}
			g.hears(2, "while it is halted")
			g.send(2, 0, r.whole("big", ""))
			idle.clientReads(r.big)
			expect[wire.Sent](g, 2)
			// And it moves at the second attempt.
			m.channel.Close()
			m.expect()
			g = m.move()
			g.send(2, 0, r.whole("big", ""))
			idle.clientReads(r.big)
			g.send(2, 0, wire.Close{})
			idle.clientEnds()
			c.clientEndsLease(g)
		})
	}
}

// TestCarryRefused: a daemon takes nothing that it does not expect, or that is not in order, and keeps nothing of it.
func TestCarryRefused(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	m := moving(t, r, g)
	m.halt()
	out, err := r.daemon.Export("one")
	m.must(err)
	text, err := json.Marshal(out)
	m.must(err)
	for name, change := range map[string]func(*Carried){
		"version":       func(in *Carried) { in.Version++ },
		"channel":       func(in *Carried) { in.Sessions[0].Channel = 1 },
		"window":        func(in *Carried) { in.Sessions[0].Window++ },
		"session twice": func(in *Carried) { in.Sessions = append(in.Sessions, in.Sessions[0]) },
		"lease twice":   func(in *Carried) { s := &in.Sessions[0]; s.Leases = append(s.Leases, s.Leases[0]) },
		"input":         func(in *Carried) { in.Sessions[0].Input = make([]byte, 70_000) },
		"state":         func(in *Carried) { in.Sessions[0].Leases[0].State = []byte("no state") },
		"credit":        func(in *Carried) { in.Sessions[0].Leases[0].Credit = window + 1 },
		"item":          func(in *Carried) { in.Sessions[0].Leases[0].Todo = []CarriedItem{{Kind: wire.TypeHello}} },
		"no file": func(in *Carried) {
			in.Sessions[0].Leases[0].Todo = []CarriedItem{{Kind: wire.TypeSend, Order: &CarriedOrder{}}}
		},
		"file elsewhere": func(in *Carried) {
			f := FileInUse{"media", "none", 9, 9}
			in.Sessions[0].Leases[0].Todo = []CarriedItem{{Kind: wire.TypeSend, Order: &CarriedOrder{File: f, Count: 1}}}
		},
	} {
		var in Carried
		m.must(json.Unmarshal(text, &in))
		change(&in)
		if err := m.to.daemon.Import(t.Context(), "one", &in); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if n := m.to.status().Leases; n != 0 {
		t.Errorf("%d leases are left of what was refused", n)
	}
	var in Carried
	m.must(json.Unmarshal(text, &in))
	if err := m.to.daemon.Import(t.Context(), "two", &in); err == nil {
		t.Error("another VM takes it")
	}
	m.must(m.to.daemon.Resume("one", false))
	_, err = m.channel.Read(make([]byte, 1)) // the channel gets a session of its own
	m.must(err)
	m.must(m.to.daemon.Expect("one", firstHost))
	var again Carried
	m.must(json.Unmarshal(text, &again))
	if err := m.to.daemon.Import(t.Context(), "one", &again); err == nil || !strings.Contains(err.Error(), "has not connected") {
		t.Errorf("without a channel: %v", err)
	}
	m.channel.Close()
	m.expect()
	m.must(m.to.daemon.Import(t.Context(), "one", &in))
	g = m.commit()
	c.clientEndsLease(g)
}

// TestCarryOffload: a response that is to be given back afterwards is, by the second host.
func TestCarryOffload(t *testing.T) {
	r, content := newRigWithMore(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	m := moving(t, r, g)
	g.send(1, wire.FlagReturn, r.whole("more", ""))
	g.waitSends(r, 1)
	g = m.move()
	c.clientReads(content)
	expect[wire.Sent](g, 1)
	if back, _ := expect[wire.Handback](g, 1); back.Sent != -1 {
		t.Errorf("%+v", back)
	}
	g.send(1, 0, wire.Keep{Reason: wire.ReasonKernel}) // the guest of this test has no way to the second host
	c.clientEndsLease(g)
}

// TestCarryCloses: a client that acknowledges nothing does not keep the others from going along.
func TestCarryCloses(t *testing.T) {
	r, content := newRigWithMore(t)
	g := r.guest(0)
	silent, c := r.lease(g, 2), r.lease(g, 1)
	g.send(2, 0, r.whole("small", ""))
	silent.clientReads(r.big[:4096])
	expect[wire.Sent](g, 2)
	r.eventually("the client has acknowledged everything", func() bool {
		outstanding := 0
		r.daemon.vms[0].eachLease(func(l *leaseConn) {
			if n, _ := l.socket.outstanding(); l.id == 2 {
				outstanding = n
			}
		})
		return outstanding == 0
	})
	thaw := silent.freezeClient()
	defer thaw()
	g.send(2, 0, wire.Data{Data: []byte("is not acknowledged")})
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 2)
	h, err := r.daemon.Halt(t.Context(), "one", []netip.Addr{netip.MustParseAddr(testkit.Client4), netip.MustParseAddr(testkit.Client6)}, 200*time.Millisecond)
	if err != nil || h.Closed != 1 || h.Leases != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	if err := r.daemon.Resume("one", false); err != nil {
		t.Fatal(err)
	}
	if m := g.awaits(2, wire.TypeClosed).(wire.Closed); m.Reason != wire.ReasonDraining {
		t.Errorf("CLOSED %v", m.Reason)
	}
	c.clientReads(content)
	g.awaits(1, wire.TypeSent)
	c.clientEndsLease(g)
}

// TestCarryStops: a daemon that is told to stop while a VM is halted gives the connections back, as ever.
func TestCarryStops(t *testing.T) {
	r, content := newRigWithMore(t)
	r.net.CheckNoResets(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	m := moving(t, r, g)
	g.send(1, 0, r.whole("more", ""))
	g.waitSends(r, 1)
	m.halt()
	m.must(r.daemon.Arrive("one", secondHost)) // the guest is reached from here
	r.stop()
	g.awaits(0, wire.TypeDrain)
	g.finishes(1, c, content)
}
