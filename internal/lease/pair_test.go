package lease

import (
	"flag"
	"os"
	"testing"

	"pgregory.net/rapid"

	"spillway/internal/wire"
)

// TestMain gives rapid enough rounds to find what takes three things to go wrong at once; -rapid.checks on the command line counts more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "3000"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// newWorld is a connection that the guest's kernel has accepted.
func newWorld(t *rapid.T) *world {
	w := &world{t: t}
	w.guestKernel = &kernelSocket{w: w, name: "guest's socket", model: model{condition: live}}
	w.guest = &guestProcess{w: w}
	w.guest.end.Socket = guestKernelSocket{w.guestKernel}
	w.agree()
	return w
}

// agree begins a session.
func (w *world) agree() {
	w.channel = &channelModel{}
	if w.guest.end.Phase() == Local {
		w.guest.channel = w.channel
	}
}

// action is something that can happen next.
type action struct {
	name string
	can  bool
	do   func()
}

// rare actions end most of what could still go wrong; they are tried once for every rareness others.
const rareness = 12

func (a action) rare() bool {
	switch a.name {
	case "the client is found gone", "the server closes", "the session breaks", "the guest dies", "the host dies":
		return true
	}
	return false
}

// choose picks what happens next, or returns false when nothing can.
func (w *world) choose() (action, bool) {
	var common, rare []action
	for _, a := range w.actions() {
		switch {
		case a.can && a.rare():
			rare = append(rare, a)
		case a.can:
			common = append(common, a)
		}
	}
	from := common
	if len(common) == 0 || len(rare) > 0 && rapid.IntRange(0, rareness).Draw(w.t, "rare") == rareness {
		from = rare
	}
	if len(from) == 0 {
		return action{}, false
	}
	return from[rapid.IntRange(0, len(from)-1).Draw(w.t, "action")], true
}

// actions lists what can happen now, in an order that shrinks well.
func (w *world) actions() []action {
	g, h, c := w.guest, w.host, w.channel
	local := !g.dead && !g.closed && g.end.Phase() == Local
	leased := h != nil && !h.dead && h.end.Phase() == Leased
	session := g.channel == c && !c.guestEnd
	list := []action{
		{"the client's segment arrives", w.over == "" && w.acked < w.asked, w.deliver},
		{"the client speaks", w.over == "", func() { w.asked++ }},
		{"the server reads", local, func() { _ = g.read() }},
		{"the server writes", !g.dead && !g.closed, g.write},
		{"the guest hears", session && !g.dead && len(c.toGuest) > 0, func() {
			f := c.toGuest[0]
			c.toGuest = c.toGuest[1:]
			g.hear(f)
		}},
		{"the host hears", !c.hostLost && len(c.toHost) > 0 && (h == nil || !h.dead), w.hostHears},
		{"handover", local && session, g.handover},
		{"the host works", leased && !h.orphan, func() { h.work() }},
		{"the host relays", leased && !h.orphan, func() { _ = h.relay() }},
		{"recall", leased && !h.orphan && !h.closing, h.giveBackOrNil()},
		{"the host closes", leased && h.closing && !h.orphan, func() { h.finish(false) }},
		{"the client is found gone", h != nil && h.holds() && !h.orphan, func() { h.finish(true) }},
		{"the server closes", !g.dead && !g.closed && g.end.Phase() != Gone, g.close},
		{"the session breaks", !c.broken, w.breakSession},
		{"the guest learns of it", c.broken && !c.guestEnd, func() { c.guestEnd = true; w.tellGuest() }},
		{"the host learns of it", c.broken && !c.hostLost, w.tellHost},
		{"an orphan ends", w.orphan() != nil, func() { w.orphan().finish(false) }},
		{"a new session", c.guestEnd && c.hostLost && !g.dead && (h == nil || !h.dead), w.agree},
		{"the guest dies", !g.dead && w.faults, g.die},
		{"the host dies", h != nil && !h.dead && !h.orphan && w.faults, h.dieOrNil()},
	}
	// The guest's Confirm, or its Thaw, is still to come, and finds what slips in between, which is what it is for. A segment is held up for
	// microseconds at most, far less than the host needs to restore.
	s := w.guestKernel
	slips := w.faults && !s.closed && s.model == model{condition: held} && s.recvNext == w.acked &&
		w.acked < w.asked && w.over == "" && g.end.Phase() == Handing && w.hostKernel == nil
	return append(list, action{"a segment slips in", slips, func() { w.slip(s) }})
}

// giveBackOrNil and dieOrNil are method values of a host that may not exist yet; such an action cannot happen.
func (h *hostProcess) giveBackOrNil() func() {
	if h == nil {
		return nil
	}
	return h.giveBack
}

func (h *hostProcess) dieOrNil() func() {
	if h == nil {
		return nil
	}
	return h.die
}

// hostHears lets the host take the next frame.
func (w *world) hostHears() {
	f := w.channel.toHost[0]
	w.channel.toHost = w.channel.toHost[1:]
	if w.host == nil || w.host.end.Phase() == Gone || w.host.channel != w.channel {
		if f.kind != wire.TypeHandover { // a lease that the host does not know any more
			return
		}
		w.host = &hostProcess{w: w, channel: w.channel, socket: &kernelSocket{w: w, name: "host's socket"}}
		w.host.end.Socket = w.host.socket
		w.hosts = append(w.hosts, w.host)
	}
	w.host.hear(f)
}

// breakSession loses what has not been read yet, or a part of it.
func (w *world) breakSession() {
	c := w.channel
	c.broken = true
	c.toHost = c.toHost[:rapid.IntRange(0, len(c.toHost)).Draw(w.t, "frames that reach the host")]
	c.toGuest = c.toGuest[:rapid.IntRange(0, len(c.toGuest)).Draw(w.t, "frames that reach the guest")]
}

func (w *world) tellGuest() {
	if !w.guest.dead && w.guest.channel == w.channel {
		w.guest.lost()
	}
}

func (w *world) tellHost() {
	w.channel.hostLost = true
	if h := w.host; h != nil && h.channel == w.channel && !h.dead {
		h.lost()
	}
}

// orphan is a lease whose session is over and that is to be ended.
func (w *world) orphan() *hostProcess {
	for _, h := range w.hosts {
		if h.orphan && h.end.Phase() == Leased && !h.dead {
			return h
		}
	}
	return nil
}

// check holds what must be true at any time.
func (w *world) check() {
	owners := 0
	if w.guest.maySend() {
		owners++
	}
	for _, h := range w.hosts {
		if h.maySend() {
			owners++
		}
	}
	if owners > 1 {
		w.fatalf("both ends may send")
	}
}

// rest lets everything come to an end that the two processes do by themselves, without faults.
func (w *world) rest() {
	w.faults = false
	for progress := true; progress; {
		progress = false
		for _, a := range w.actions() {
			switch a.name {
			case "the client's segment arrives":
				before := w.acked
				if a.can {
					a.do()
					progress = progress || w.acked != before
				}
			case "the server reads":
				if a.can && w.guestKernel.unread > 0 && !w.guestKernel.closed {
					a.do()
					progress = true
				}
			case "the host relays":
				if a.can && w.host.socket.unread > 0 {
					a.do()
					progress = true
				}
			case "the guest hears", "the host hears", "the host closes", "the guest learns of it", "the host learns of it", "an orphan ends":
				if a.can {
					w.logf("rest: %s", a.name)
					a.do()
					w.check()
					progress = true
				}
			}
		}
		if w.host != nil && w.host.end.Phase() == Leased && !w.host.dead && !w.host.orphan && len(w.host.inbox) > 0 {
			w.host.work()
			progress = true
		}
	}
}

// checkRest holds what must be true when nothing more happens by itself.
func (w *world) checkRest() {
	if w.over != "" || w.excused != "" {
		return // ended for the client, or nobody is left who could
	}
	var alive []*kernelSocket
	for _, s := range []*kernelSocket{w.guestKernel, w.hostKernel} {
		if s != nil && !s.closed && s.model == (model{condition: live}) {
			alive = append(alive, s)
		}
	}
	switch {
	case len(alive) == 0:
		w.fatalf("the client waits for ever: guest %v with a socket %v, host %v", w.guest.end.Phase(), w.guestKernel.model, w.hostPhase())
	case len(alive) == 2:
		w.fatalf("two sockets live")
	case alive[0].recvNext != w.acked:
		w.fatalf("%s waits for the client's byte %d, the client has it acknowledged up to %d", alive[0].name, alive[0].recvNext, w.acked)
	case alive[0].sendNext != w.received:
		w.fatalf("%s is at byte %d, the client at %d", alive[0].name, alive[0].sendNext, w.received)
	case w.guest.got != w.acked:
		w.fatalf("the server has %d of the client's %d bytes", w.guest.got, w.acked)
	}
	if w.guest.produced != w.received {
		w.fatalf("the client has %d of the server's %d bytes", w.received, w.guest.produced)
	}
}

func (w *world) hostPhase() Phase {
	if w.host == nil {
		return Local
	}
	return w.host.end.Phase()
}

// TestPair plays both ends against each other over a channel that may break at any time, with a client that counts bytes.
//
// At any time at most one end may send. When everything has come to rest, either one socket lives, with every byte in its place, or the
// client has been told that the connection is over.
func TestPair(t *testing.T) {
	for _, faults := range []bool{false, true} {
		name := "without faults"
		if faults {
			name = "with faults"
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				w := newWorld(t)
				w.faults = faults
				for range rapid.IntRange(1, 100).Draw(t, "steps") {
					a, ok := w.choose()
					if !ok {
						break
					}
					w.logf("- %s", a.name)
					a.do()
					w.check()
				}
				w.logf("- rest")
				w.rest()
				w.checkRest()
			})
		})
	}
}
