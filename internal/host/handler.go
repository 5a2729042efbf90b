package host

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"spillway/internal/session"
	"spillway/internal/wire"
)

// handler is one session with a guest (session.Handler).
type handler struct {
	vm      *vm
	channel int // which of the VM's
	session *session.Session
	desk    *desk

	handovers atomic.Uint64 // that have come

	mu     sync.Mutex
	leases map[uint32]*leaseConn
}

func newHandler(v *vm, s *session.Session, channel int) *handler {
	h := &handler{vm: v, channel: channel, session: s, leases: make(map[uint32]*leaseConn)}
	h.desk = newDesk(h)
	v.counters.sessions.Add(1)
	v.mu.Lock()
	v.handlers[h] = struct{}{}
	v.mu.Unlock()
	// After it is listed: whichever of this and Daemon.drain, or Hold, comes second tells the guest.
	if v.daemon.draining.Load() {
		h.desk.drain(0)
	}
	if v.isHeld() {
		h.desk.drain(wire.FlagMove)
	}
	return h
}

// breach is an error that ends the session: the guest has broken the protocol.
func breach(format string, args ...any) error {
	return fmt.Errorf("%w: %s", wire.ErrFormat, fmt.Sprintf(format, args...))
}

// Frame implements session.Handler. It waits for nothing but short locks.
func (h *handler) Frame(head wire.Header, payload []byte) error {
	h.vm.counters.frames.Add(1)
	switch head.Type {
	case wire.TypeStat, wire.TypeRead:
		return h.desk.request(head, payload)
	case wire.TypeHandover:
		return h.handover(head.ID, payload)
	case wire.TypeData, wire.TypeCredit, wire.TypeSend, wire.TypeEnd, wire.TypeClose, wire.TypeTaken, wire.TypeKeep:
	default:
		return breach("%v is not for a host", head.Type)
	}
	h.mu.Lock()
	l := h.leases[head.ID]
	h.mu.Unlock()
	if l == nil {
		h.vm.counters.dropped.Add(1)
		return nil
	}
	if err := l.frame(head, payload); err != nil {
		return fmt.Errorf("lease %d: %w", head.ID, err)
	}
	return nil
}

// handover begins a lease, or refuses it.
func (h *handler) handover(id uint32, payload []byte) error {
	m, err := wire.ParseHandover(payload)
	if err != nil {
		return err
	}
	h.handovers.Add(1)
	l := newLeaseConn(h, id, &m.State)
	h.mu.Lock()
	_, twice := h.leases[id]
	h.mu.Unlock()
	switch {
	case twice:
		return breach("HANDOVER of lease %d, which lives", id)
	case h.vm.daemon.draining.Load() || h.vm.isHeld() || h.vm.isCarried():
		return h.refuse(id, wire.ReasonDraining)
	case !h.vm.addresses[m.State.Local.Addr()]:
		if skipped, ok := h.vm.complain.Allow(); ok {
			h.vm.log.Warn("handover refused: the local address is not one of the VM's; add it to the VM's addresses if it is",
				"local", m.State.Local, "not_logged", skipped)
		}
		return h.refuse(id, wire.ReasonAddress)
	case h.vm.blind.is(time.Now()):
		return h.refuse(id, wire.ReasonPath)
	}
	if err := h.vm.daemon.sees(m.State.Local.Addr(), m.State.Remote.Addr()); err != nil {
		if skipped, ok := h.vm.complain.Allow(); ok {
			h.vm.log.Warn("handover refused", "error", err, "not_logged", skipped)
		}
		return h.refuse(id, wire.ReasonPath)
	}
	if !h.vm.enlist(l) {
		return h.refuse(id, wire.ReasonLimit)
	}
	h.mu.Lock()
	h.leases[id] = l
	h.mu.Unlock()
	if h.vm.daemon.draining.Load() || h.vm.isHeld() { // since the check above; Daemon.drain or Hold may have missed it
		l.callBack()
	}
	h.vm.daemon.active.Add(1)
	h.vm.daemon.running.Go(func() {
		defer h.vm.daemon.active.Add(-1)
		l.run()
	})
	return nil
}

// refuse answers a HANDOVER that begins no lease.
func (h *handler) refuse(id uint32, reason wire.Reason) error {
	count(&h.vm.counters.refused, reason)
	return h.desk.refuse(id, reason)
}

// End implements session.Handler.
func (h *handler) End(err error) {
	if errors.Is(err, wire.ErrFormat) {
		h.vm.counters.breaches.Add(1)
	}
	h.vm.mu.Lock()
	delete(h.vm.handlers, h)
	h.vm.mu.Unlock()
	h.desk.close()
	h.mu.Lock()
	leases := h.leases
	h.leases = nil
	h.mu.Unlock()
	for _, l := range leases {
		l.sessionEnded()
	}
}

// forget makes the id of a lease and its place in the VM's limit free; frames of it are dropped from now on.
func (h *handler) forget(l *leaseConn) {
	h.vm.delist(l)
	h.mu.Lock()
	delete(h.leases, l.id)
	h.mu.Unlock()
}

// send writes one frame. An error means that nothing was sent because the session is over.
func send[M wire.Message](h *handler, id uint32, flags wire.Flags, m M) error {
	return h.session.Write(wire.Append(nil, h.session.ID, id, flags, m))
}
