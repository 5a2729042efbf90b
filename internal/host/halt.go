package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"spillway/internal/neighbor"
	"spillway/internal/session"
	"spillway/internal/wire"
)

// A VM whose leases go along with it goes through Halt, Export, Silent and Leave at the host that has it, and Expect, Import and Commit at the other one. Resume
// undoes both sides.

// Halted is what came of a Halt. Its JSON form is an interface: fields are added, never renamed.
type Halted struct {
	Leases  int     `json:"leases"`
	Closed  int     `json:"closed"`     // whose clients acknowledged nothing in time and were reset
	Longest float64 `json:"longest_ms"` // until the last one was halted
}

// carriage is a VM on its way to another host.
type carriage struct {
	timer    *time.Timer
	exported bool
}

// Limits of a Halt.
const (
	passingLimit = 50 * time.Millisecond  // how long leases wait for another one that is about to end
	talkLimit    = 250 * time.Millisecond // for the guest to take what was written for it
	deskLimit    = 250 * time.Millisecond // for its questions about files to be answered
	haltPoll     = 100 * time.Microsecond
)

var errNotAside = errors.New("a connection can neither stop nor end")

// ErrNoCarry is why leases cannot go along: they have to be recalled.
var ErrNoCarry = errors.New("leases cannot go to another host")

// Halt readies a VM, and all its leases, for the moment in which it is paused: nothing is on its way to a client any more, and this side of the channel
// says nothing. A client that acknowledges nothing within timeout is reset. What comes for the VM's own sockets is sent on to peers, the other host's addresses,
// from then on. After an error, which may be ErrNoCarry, all goes on. Without a verdict the VM goes on after holdLimit, if it was not exported.
func (d *Daemon) Halt(ctx context.Context, name string, peers []netip.Addr, timeout time.Duration) (out Halted, err error) {
	v, err := d.vm(name)
	if err != nil {
		return out, err
	}
	if d.draining.Load() || d.kernel.halter == nil || v.sessionCount() == 0 {
		return out, fmt.Errorf("%w: no session, or this daemon is stopping, or its kernel cannot stop a transfer in the middle", ErrNoCarry)
	}
	if err := v.beginCarriage(); err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			v.endCarriage(stays)
		}
	}()
	began := time.Now()
	until := began.Add(timeout)
	for !v.haltLeases(ctx, until) {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if time.Now().After(until) {
			if out.Closed = v.resetOthers(); v.notAside() > 0 {
				return out, errNotAside
			}
			d.log.Warn("closed connections that could not go along with a VM", "vm", v.name, "leases", out.Closed)
			break
		}
	}
	var errs []error
	out.Leases = v.leaseCount()
	v.eachHandler(func(h *handler) { errs = append(errs, h.settle(), h.session.Freeze(talkLimit)) })
	if err := errors.Join(errs...); err != nil {
		if errors.Is(err, session.ErrNoCarry) {
			err = fmt.Errorf("%w: %w", ErrNoCarry, err)
		}
		return out, err
	}
	if v.notAside() > 0 { // one that had begun to come before all this
		return out, errNotAside
	}
	if err := d.env.do(func() error { return neighbor.Forward(v.addressList(), peers) }); err != nil {
		return out, err
	}
	out.Longest = milliseconds(time.Since(began))
	return out, nil
}

// haltLeases asks all leases to step aside, and tells whether they have. If one of them is about to end, the others go on meanwhile.
func (v *vm) haltLeases(ctx context.Context, until time.Time) bool {
	passing := func() (n int) {
		v.eachLease(func(l *leaseConn) {
			if _, p := l.isAside(); p {
				n++
			}
		})
		return n
	}
	for passing() > 0 && time.Now().Before(until) && ctx.Err() == nil {
		time.Sleep(holdPoll)
	}
	v.eachLease(func(l *leaseConn) { l.askAside(until) })
	for since := time.Now(); ; time.Sleep(haltPoll) {
		switch now := time.Now(); {
		case v.notAside() == 0:
			return true
		case now.After(until):
			return false
		case ctx.Err() != nil || passing() > 0 && now.Sub(since) > passingLimit:
			v.eachLease(func(l *leaseConn) { l.judge(stays) })
			return false
		}
		v.eachLease(func(l *leaseConn) { l.askAside(until) }) // those that could not, and those that came
	}
}

// resetOthers ends the leases that have not stepped aside, waits until they are gone, and returns how many there were.
func (v *vm) resetOthers() (n int) {
	v.eachLease(func(l *leaseConn) {
		if is, _ := l.isAside(); !is {
			n++
			l.reset(wire.ReasonDraining)
		}
	})
	for until := time.Now().Add(lingerLimit); v.notAside() > 0 && time.Now().Before(until); {
		time.Sleep(holdPoll)
	}
	return n
}

// notAside counts the leases that have not stepped aside.
func (v *vm) notAside() (n int) {
	v.eachLease(func(l *leaseConn) {
		if is, _ := l.isAside(); !is {
			n++
		}
	})
	return n
}

// settle waits until the guest's questions are answered.
func (h *handler) settle() error {
	for until := time.Now().Add(deskLimit); !h.desk.settled(); time.Sleep(haltPoll) {
		if time.Now().After(until) {
			return errors.New("a question about a file is not answered yet")
		}
	}
	return nil
}

func (v *vm) beginCarriage() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.carriage != nil || v.held != nil {
		return errors.New("the VM is on its way already")
	}
	c := &carriage{}
	c.timer = time.AfterFunc(holdLimit, func() { v.expireCarriage(c) })
	v.carriage = c
	return nil
}

// expireCarriage ends what nobody has ended. A host that cannot know whether another one has the connections ends its own part of them, silently.
func (v *vm) expireCarriage(c *carriage) {
	v.mu.Lock()
	current := v.carriage == c
	v.mu.Unlock()
	if current {
		v.log.Error("nobody has said what became of a VM that moves")
		v.giveUpCarriage()
	}
}

// giveUpCarriage ends a Halt as well as one can who does not know what has become of the VM.
func (v *vm) giveUpCarriage() {
	v.mu.Lock()
	exported := v.carriage != nil && v.carriage.exported
	v.mu.Unlock()
	if exported {
		v.endCarriage(leaves)
	} else {
		v.endCarriage(stays)
	}
}

// endCarriage passes the verdict.
func (v *vm) endCarriage(verdict carryState) {
	v.mu.Lock()
	c := v.carriage
	v.carriage = nil
	v.mu.Unlock()
	if c == nil {
		return
	}
	c.timer.Stop()
	v.eachLease(func(l *leaseConn) { l.judge(verdict) })
	v.eachHandler(func(h *handler) {
		switch verdict {
		case stays:
			h.session.Thaw()
		case leaves:
			h.session.Close(session.ErrMove)
		default:
			h.session.Close(errMoveFailed)
		}
	})
}

// isCarried tells whether Halt is in force.
func (v *vm) isCarried() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.carriage != nil
}

// Export takes in what the guest of a VM that was halted, and is paused now, has said last, and tells all that another host needs to go on with its sessions and leases.
// From then on nothing is acknowledged here.
func (d *Daemon) Export(name string) (*Carried, error) {
	v, err := d.vm(name)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	c := v.carriage
	again := c != nil && c.exported
	v.mu.Unlock()
	if c == nil || again {
		return nil, errNotHalted
	}
	out := &Carried{Version: carryVersion, Sessions: []CarriedSession{}}
	var errs []error
	v.eachHandler(func(h *handler) {
		s, err := h.export()
		out.Sessions, errs = append(out.Sessions, s), append(errs, err)
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	v.mu.Lock()
	c.exported = true
	v.mu.Unlock()
	return out, nil
}

var errNotHalted = errors.New("the VM was not halted, or not in time, or was exported before")

// export tells all of a session.
func (h *handler) export() (out CarriedSession, err error) {
	if err := h.session.Collect(); err != nil {
		return out, err
	}
	if err := h.settle(); err != nil {
		return out, err
	}
	h.mu.Lock()
	var leases []*leaseConn
	for _, l := range h.leases {
		leases = append(leases, l)
	}
	h.mu.Unlock()
	for _, l := range leases {
		c, err := l.export()
		if err != nil { // its client has reset it
			_ = send(h, l.id, 0, wire.Closed{Reason: wire.ReasonClientGone})
			l.complainOnce("a connection does not go along", err)
			continue
		}
		out.Leases = append(out.Leases, c)
	}
	s := h.session.State()
	out.Channel, out.ID, out.Window, out.MaxLeases = h.channel, s.ID, s.Hello.Window, s.Hello.MaxLeases
	out.Input, out.Output = s.Input, s.Output
	return out, nil
}

// Silent tells whether the paused guest has said nothing since Export.
func (d *Daemon) Silent(name string) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	if !v.isCarried() {
		return errNotHalted
	}
	var errs []error
	v.eachHandler(func(h *handler) { errs = append(errs, h.session.Silent()) })
	return errors.Join(errs...)
}

// Leave lets go of a VM that runs at another host: its connections are closed silently, and what comes for them goes there, what has come since Export too.
func (d *Daemon) Leave(name string, peers []netip.Addr) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	err = d.env.do(func() error { return neighbor.Leave(v.addressList(), peers) })
	v.endCarriage(leaves)
	return err
}
