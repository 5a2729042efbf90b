package lease

import (
	"errors"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// guestProcess does with Guest what package guest does.
type guestProcess struct {
	w        *world
	end      Guest
	channel  *channelModel // of the lease
	produced uint32        // bytes that the server has written
	sent     uint32        // of them, DATA on this lease
	got      uint32        // bytes of the client's that the server has
	closed   bool          // the server has closed it
	dead     bool
}

// maySend tells whether this end sends on the connection.
func (g *guestProcess) maySend() bool {
	return !g.dead && g.end.Phase() == Local && !g.w.guestKernel.closed
}

func (g *guestProcess) say(f frame) error {
	c := g.channel
	if c.guestEnd {
		return wire.ReasonHostAway
	}
	if !c.broken { // else it is lost, and nobody knows yet
		c.toHost = append(c.toHost, f)
	}
	return nil
}

// read takes what is in the receive queue.
func (g *guestProcess) read() error {
	s := g.w.guestKernel
	g.take(s.recvNext-s.unread, s.unread)
	s.unread = 0
	return nil
}

// take checks that the server gets the client's bytes in order, each once.
func (g *guestProcess) take(at, n uint32) {
	if n > 0 && at != g.got {
		g.w.fatalf("the server gets the client's byte %d, it expects %d", at, g.got)
	}
	g.got += n
}

func (g *guestProcess) handover() {
	g.sent = 0
	var st tcpstate.State
	err := g.end.Handover(&st, g.read, func() error {
		return g.say(frame{kind: wire.TypeHandover, state: st})
	})
	g.after(err)
}

// after does what is to be done when a call has changed the phase.
func (g *guestProcess) after(err error) {
	if errors.Is(err, ErrPhase) {
		g.w.fatalf("guest: %v", err)
	}
	switch g.end.Phase() {
	case Gone:
		g.w.guestKernel.close()
	case Local:
		g.home()
	}
}

// home makes the connection the server's own again.
func (g *guestProcess) home() {
	if g.closed {
		g.w.guestKernel.close()
	}
}

// write is the server writing one byte.
func (g *guestProcess) write() {
	switch g.end.Phase() {
	case Local:
		g.produced++
		g.w.guestKernel.send(1)
	case Leased:
		if g.say(frame{kind: wire.TypeData, at: g.produced, n: 1}) == nil {
			g.produced++
			g.sent++
		}
	}
}

// close is the server closing the connection.
func (g *guestProcess) close() {
	g.closed = true
	switch g.end.Phase() {
	case Local:
		_ = g.read() // unread bytes would make it a RST: an end as well
		g.w.guestKernel.close()
	case Leased:
		_ = g.say(frame{kind: wire.TypeClose})
	}
}

// hear takes one frame of the host.
func (g *guestProcess) hear(f frame) {
	g.w.logf("guest: hears %v", f.kind)
	if g.end.Phase() == Gone {
		return // it crossed with our end
	}
	var err error
	switch f.kind {
	case wire.TypeGranted:
		if err = g.end.Granted(); err != nil && !errors.Is(err, ErrPhase) {
			err = g.say(frame{kind: wire.TypeClose, abort: true})
		} else if g.closed {
			err = g.say(frame{kind: wire.TypeClose})
		}
	case wire.TypeRefused:
		err = g.end.Refused()
	case wire.TypeData:
		if g.end.Phase() == Returning {
			err = g.end.Late(make([]byte, f.n))
		}
		if err == nil {
			g.take(f.at, f.n)
		}
	case wire.TypeClosed:
		err = g.end.Closed()
	case wire.TypeReleased:
		err = g.end.Released(tcpstate.PeerWindow{})
	case wire.TypeHandback:
		settled := f.n == g.sent && !g.closed
		err = g.end.Handback(&f.state, settled, func(m wire.Message) error { return g.say(frame{kind: m.Type()}) })
		if errors.Is(err, ErrPhase) {
			break
		}
		err = nil
	}
	if err != nil && !errors.Is(err, ErrPhase) {
		err = nil // a reply that nobody hears any more, or a socket that the phase tells of
	}
	g.after(err)
}

// lost is the news that the session is over.
func (g *guestProcess) lost() {
	g.w.logf("guest: session lost while %v", g.end.Phase())
	g.channel.guestEnd = true
	leased := g.end.Phase() == Leased
	g.end.Lost()
	if leased && g.w.guestKernel.model.closeSends() != "nothing" {
		g.w.fatalf("the guest ends a connection that the host owns")
	}
	g.after(nil)
}

// die is kill -9.
func (g *guestProcess) die() {
	g.w.logf("guest: dies while %v", g.end.Phase())
	g.dead = true
	g.w.excused = "the guest's process has died"
	g.w.guestKernel.close()
	g.channel.broken, g.channel.guestEnd = true, true
}

// hostProcess does with Host what package host does.
type hostProcess struct {
	w       *world
	end     Host
	socket  *kernelSocket
	channel *channelModel
	inbox   []frame
	taken   uint32 // bytes of DATA that have come
	closing bool
	orphan  bool // the session has ended
	dead    bool
}

func (h *hostProcess) maySend() bool { return !h.dead && h.end.Phase() == Leased }

func (h *hostProcess) say(f frame) error {
	c := h.channel
	if c.hostLost {
		return wire.ReasonSession
	}
	if !c.broken {
		c.toGuest = append(c.toGuest, f)
	}
	return nil
}

// relay passes on what is in the receive queue.
func (h *hostProcess) relay() error {
	s := h.socket
	if s.unread > 0 {
		_ = h.say(frame{kind: wire.TypeData, at: s.recvNext - s.unread, n: s.unread})
		s.unread = 0
	}
	return nil
}

// work sends what the guest has asked for.
func (h *hostProcess) work() {
	for len(h.inbox) > 0 {
		f := h.inbox[0]
		h.inbox = h.inbox[1:]
		if f.at != h.socket.sendNext {
			h.w.fatalf("the host sends the server's byte %d as the connection's byte %d", f.at, h.socket.sendNext)
		}
		h.socket.send(f.n)
	}
}

// giveBack tries to return the connection.
func (h *hostProcess) giveBack() {
	h.work()
	var st tcpstate.State
	err := h.end.Return(&st, nil, func() error { return h.say(frame{kind: wire.TypeHandback, state: st, n: h.taken}) })
	if errors.Is(err, ErrPhase) {
		h.w.fatalf("host: %v", err)
	}
	if h.end.Phase() == Gone {
		h.gone()
	}
}

// finish ends the connection.
func (h *hostProcess) finish(abort bool) {
	if h.end.Phase() == Leased && !abort {
		h.work()
	}
	if err := h.end.Finish(abort); errors.Is(err, ErrPhase) {
		h.w.fatalf("host: %v", err)
	}
	h.gone()
}

func (h *hostProcess) gone() {
	h.socket.close()
	_ = h.say(frame{kind: wire.TypeClosed})
}

// hear takes one frame of the guest.
func (h *hostProcess) hear(f frame) {
	h.w.logf("host: hears %v", f.kind)
	if h.end.Phase() == Gone {
		return // it crossed with our end
	}
	switch f.kind {
	case wire.TypeHandover:
		refused := false
		err := h.end.Accept(&f.state, func(m wire.Message) error {
			refused = m.Type() == wire.TypeRefused
			return h.say(frame{kind: m.Type()})
		})
		switch {
		case errors.Is(err, ErrPhase):
			h.w.fatalf("host: %v", err)
		case refused:
			h.socket.close()
		}
	case wire.TypeData:
		h.inbox = append(h.inbox, f)
		h.taken += f.n
	case wire.TypeClose:
		if f.abort {
			h.finish(true)
		} else {
			h.closing = true
		}
	case wire.TypeTaken:
		late, _, err := h.end.Taken()
		if err != nil {
			h.gone()
			return
		}
		if len(late) > 0 {
			_ = h.say(frame{kind: wire.TypeData, at: h.socket.extracted, n: uint32(len(late))})
		}
		h.socket.close()
		_ = h.say(frame{kind: wire.TypeReleased})
	case wire.TypeKeep:
		if err := h.end.Kept(); err != nil {
			h.gone()
		}
	}
}

// lost is the news that the session is over.
func (h *hostProcess) lost() {
	h.w.logf("host: session lost while %v", h.end.Phase())
	h.channel.hostLost, h.orphan = true, true
	if err := h.end.Lost(); err != nil {
		h.gone()
	}
}

// die is kill -9.
func (h *hostProcess) die() {
	h.w.logf("host: dies while %v", h.end.Phase())
	h.dead = true
	h.w.excused = "the host's process has died"
	h.socket.close()
	h.channel.broken, h.channel.hostLost = true, true
}
