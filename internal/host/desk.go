package host

import (
	"context"
	"errors"
	"io"
	"sync"

	"spillway/internal/wire"
)

// Bounds of what a guest may have waiting at the desk of a session.
const (
	deskWorkers    = 2    // so that one read from a slow disk does not hold up the other requests
	maxRequests    = 64   // STAT and READ; more are answered with the reason limit
	maxForgets     = 64   // FORGET; more are left out (docs/wire.md)
	maxDeskEntries = 1024 // everything; more is a flood, which ends the session
)

// entry is one thing to answer.
type entry struct {
	kind   wire.Type  // STAT, READ, HANDOVER (refused), DRAIN or FORGET
	flags  wire.Flags // of a DRAIN
	id     uint32
	reason wire.Reason // the answer if it is known already
	read   wire.Read   // of a STAT and a FORGET, only share and path
}

// desk answers for the handler, which must not wait: neither for a disk, nor for a guest that takes no answers.
type desk struct {
	handler *handler

	ctx  context.Context // ends with the session: of waits for an origin
	stop context.CancelFunc

	mu      sync.Mutex
	work    sync.Cond
	busy    int // how many answers are being made
	workers int // more than deskWorkers while some wait for an origin
	idle    int // of these, how many have nothing to do
	entries []entry
	waiting int // STATs and READs among them
	forgets int // FORGETs among them
	closed  bool
}

func newDesk(h *handler) *desk {
	d := &desk{handler: h, workers: deskWorkers}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.work.L = &d.mu
	for range deskWorkers {
		h.vm.daemon.running.Go(d.run)
	}
	return d
}

// request takes a STAT or READ.
func (d *desk) request(head wire.Header, payload []byte) error {
	e := entry{kind: head.Type, id: head.ID}
	var err error
	if head.Type == wire.TypeStat {
		var m wire.Stat
		m, err = wire.ParseStat(payload)
		e.read.File.Share, e.read.File.Path = m.Share, m.Path
	} else {
		e.read, err = wire.ParseRead(payload)
	}
	if err != nil {
		return err
	}
	return d.add(e)
}

// refuse answers a HANDOVER.
func (d *desk) refuse(id uint32, reason wire.Reason) error {
	return d.add(entry{kind: wire.TypeHandover, id: id, reason: reason})
}

// drain tells the guest that the daemon is stopping, or that the VM moves.
func (d *desk) drain(flags wire.Flags) { _ = d.add(entry{kind: wire.TypeDrain, flags: flags}) }

// forget tells the guest that a file was replaced, if not too much else is to be told.
func (d *desk) forget(share, path string) {
	e := entry{kind: wire.TypeForget}
	e.read.File.Share, e.read.File.Path = share, path
	_ = d.add(e)
}

func (d *desk) add(e entry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.entries) >= maxDeskEntries {
		return breach("%d requests wait for an answer", len(d.entries))
	}
	if e.kind == wire.TypeForget {
		if d.forgets >= maxForgets || d.closed {
			return nil
		}
		d.forgets++
	}
	if e.kind == wire.TypeStat || e.kind == wire.TypeRead {
		if d.waiting >= maxRequests {
			e.reason = wire.ReasonLimit
			e.read = wire.Read{} // its strings need not be kept
		} else {
			d.waiting++
		}
	}
	d.entries = append(d.entries, e)
	// A worker for each request that waits: an origin that is slow must not hold up what is here.
	if len(d.entries) > d.idle && d.workers < maxRequests && !d.closed {
		d.workers++
		d.handler.vm.daemon.running.Go(d.run)
	}
	d.work.Signal()
	return nil
}

func (d *desk) close() {
	d.mu.Lock()
	d.closed = true
	d.entries = nil
	d.mu.Unlock()
	d.stop()
	d.work.Broadcast()
}

// run answers until the session is over.
func (d *desk) run() {
	for {
		e, ok := d.next()
		if !ok {
			return
		}
		d.answer(e)
		d.mu.Lock()
		d.busy--
		switch {
		case e.kind == wire.TypeForget:
			d.forgets--
		case e.reason == wire.ReasonOK && e.kind != wire.TypeDrain:
			d.waiting--
		}
		d.mu.Unlock()
	}
}

func (d *desk) next() (entry, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.entries) == 0 {
		if d.closed || d.workers > deskWorkers {
			d.workers--
			return entry{}, false
		}
		d.idle++
		d.work.Wait()
		d.idle--
	}
	e := d.entries[0]
	d.entries = d.entries[1:]
	d.busy++
	return e, true
}

// settled tells that everything is answered.
func (d *desk) settled() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.entries) == 0 && d.busy == 0
}

// answer writes the answer to e. That the session is over meanwhile need not be known here.
func (d *desk) answer(e entry) {
	h := d.handler
	ctx, cancel := h.vm.patience(d.ctx, e.read.File.Share)
	defer cancel()
	switch e.kind {
	case wire.TypeDrain:
		_ = send(h, 0, e.flags, wire.Drain{})
	case wire.TypeForget:
		_ = send(h, 0, 0, wire.Forget{Share: e.read.File.Share, Path: e.read.File.Path})
	case wire.TypeHandover:
		_ = send(h, e.id, 0, wire.Refused{Reason: e.reason})
	case wire.TypeStat:
		m := wire.Attr{Reason: e.reason}
		if m.Reason == wire.ReasonOK {
			m.Size, m.MTime, m.Reason = h.vm.stat(ctx, e.read.File)
		}
		count(&h.vm.counters.failed, m.Reason)
		_ = send(h, e.id, 0, m)
	case wire.TypeRead:
		m := wire.Bytes{Reason: e.reason}
		buf := h.vm.daemon.buffers.Get().(*buffer)
		defer h.vm.daemon.buffers.Put(buf)
		if m.Reason == wire.ReasonOK {
			m.Data, m.Reason = h.vm.read(ctx, e.read, buf[:])
		}
		count(&h.vm.counters.failed, m.Reason)
		_ = send(h, e.id, 0, m)
	}
}

func (v *vm) stat(ctx context.Context, ref wire.FileRef) (size, mtimeNs int64, reason wire.Reason) {
	s, ok := v.shares[ref.Share]
	if !ok {
		return 0, 0, wire.ReasonShareUnknown
	}
	if !s.may(ref.Path) {
		return 0, 0, wire.ReasonLimit
	}
	size, mtimeNs, err := s.Stat(ctx, ref.Path)
	if err != nil {
		return 0, 0, v.fileReason(err)
	}
	return size, mtimeNs, wire.ReasonOK
}

// read returns the bytes of a READ, in buf.
func (v *vm) read(ctx context.Context, m wire.Read, buf []byte) ([]byte, wire.Reason) {
	f, reason := v.acquire(ctx, m.File, m.Offset)
	if reason != wire.ReasonOK {
		return nil, reason
	}
	defer v.release(f, m.File)
	n, err := v.shares[m.File.Share].ReadAt(ctx, f, buf[:m.Count], m.Offset) // m.Count is at most wire.MaxRead
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, v.fileReason(err)
	}
	return buf[:n], wire.ReasonOK
}

// reasonOf finds the reason in an error.
func reasonOf(err error) wire.Reason {
	switch r, ok := errors.AsType[wire.Reason](err); {
	case errors.Is(err, context.Canceled): // who has waited for an origin is wanted elsewhere
		return wire.ReasonDraining
	case ok:
		return r
	}
	return wire.ReasonKernel
}
