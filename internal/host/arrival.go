package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"spillway/internal/lease"
	"spillway/internal/neighbor"
	"spillway/internal/wire"
)

// expectLimit is how long a VM is expected: its memory may take that long.
const expectLimit = 15 * time.Minute

// adoptLimit is how long a session that was committed may wait for the VM's channel, which is there.
const adoptLimit = 2 * time.Second

// arrival is a VM that is on its way to this host. Its fields are guarded by vm.mu.
type arrival struct {
	timer    *time.Timer
	changed  chan struct{} // closed when what follows has changed, and then another one
	waiting  map[int]int   // connections that wait for a session, by channel
	coming   map[int]*coming
	imported bool
	over     bool
}

// coming is a session that goes on here from Commit on, by its channel.
type coming struct {
	session   CarriedSession
	leases    []*leaseConn
	committed bool
	adopted   chan struct{} // closed when it does
}

func (a *arrival) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Expect makes this daemon offer no session to a VM that comes with one, until Commit, Arrive, Resume, or expectLimit. With peers, the other host's addresses, what comes for the
// VM is not sent there any more.
func (d *Daemon) Expect(name string, peers []netip.Addr) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	v.mu.Lock()
	if v.arrival != nil {
		v.arrival.timer.Reset(expectLimit)
	} else {
		a := &arrival{changed: make(chan struct{}), waiting: map[int]int{}}
		a.timer = time.AfterFunc(expectLimit, func() { v.endArrival(a) })
		v.arrival = a
	}
	v.mu.Unlock()
	if len(peers) == 0 {
		return nil
	}
	return d.env.do(func() error { return neighbor.Accept(v.addressList(), peers) })
}

// endArrival ends what was expected, a or whatever there is: connections that were imported are closed, silently, as they are another host's.
func (v *vm) endArrival(a *arrival) {
	v.mu.Lock()
	if v.arrival == nil || a != nil && v.arrival != a {
		v.mu.Unlock()
		return
	}
	a = v.arrival
	v.arrival = nil
	a.timer.Stop()
	a.over = true
	left := a.coming
	a.coming = nil
	a.tell()
	v.mu.Unlock()
	for _, c := range left {
		c.discard()
	}
}

// discard closes the leases of a session that does not come.
func (c *coming) discard() {
	for _, l := range c.leases {
		l.vm.delist(l)
		if c.committed { // they were this host's
			_ = l.end.Finish(true)
		}
		_ = l.socket.Close()
	}
	c.leases = nil
}

// Import prepares what another host hands over of a VM that is expected. Nothing of it can be seen or heard before Commit.
func (d *Daemon) Import(ctx context.Context, name string, in *Carried) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	if in.Version != carryVersion {
		return fmt.Errorf("the other daemon hands over in version %d, this one takes %d: update the older one", in.Version, carryVersion)
	}
	for f := range in.files() {
		size, mtime, reason := v.stat(ctx, f)
		if reason == wire.ReasonOK && (size != f.Size || mtime != f.MTime) {
			reason = wire.ReasonChanged
		}
		if reason != wire.ReasonOK {
			return fmt.Errorf("share %s: %s, which is being sent to a client: %w", f.Share, f.Path, reason)
		}
	}
	all := map[int]*coming{}
	discard := func() {
		for _, c := range all {
			c.discard()
		}
	}
	for _, s := range in.Sessions {
		c := &coming{session: s, adopted: make(chan struct{})}
		err := s.check(len(v.channels))
		if all[s.Channel] != nil {
			err = breach("two sessions on channel %d", s.Channel)
		}
		if err == nil {
			all[s.Channel] = c
			err = c.prepare(v)
		}
		if err != nil {
			discard()
			return err
		}
	}
	v.mu.Lock()
	a := v.arrival
	err = nil
	switch {
	case a == nil || a.imported:
		err = errors.New("the VM is not expected")
	default:
		for i := range all {
			if a.waiting[i] == 0 {
				err = fmt.Errorf("the VM's QEMU has not connected to channel %d", i)
			}
		}
	}
	if err == nil {
		a.coming, a.imported = all, true
		a.timer.Reset(holdLimit)
	}
	v.mu.Unlock()
	if err != nil {
		discard()
	}
	return err
}

// prepare makes the leases of a session.
func (c *coming) prepare(v *vm) error {
	ids := map[uint32]bool{}
	for i := range c.session.Leases {
		in := &c.session.Leases[i]
		if ids[in.ID] {
			return breach("lease %d twice", in.ID)
		}
		ids[in.ID] = true
		l, err := in.lease(v)
		if err != nil {
			return fmt.Errorf("lease %d: %w", in.ID, err)
		}
		if !v.enlist(l) {
			return wire.ReasonLimit
		}
		c.leases = append(c.leases, l)
		if err := l.end.Accept(&l.state, func(wire.Message) error { return nil }); err != nil {
			return fmt.Errorf("lease %d of client %v: %w", in.ID, l.state.Remote, err)
		}
		in.Late, in.Todo, l.socket.from.late = nil, nil, nil
	}
	return nil
}

// Commit makes a VM that was imported, and runs here now, this host's: its leases go on, and its addresses are here (Arrive).
func (d *Daemon) Commit(name string, peers []netip.Addr) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	v.mu.Lock()
	a := v.arrival
	if a == nil || !a.imported {
		v.mu.Unlock()
		return errors.New("nothing was imported")
	}
	var all []*coming
	for _, c := range a.coming {
		c.committed = true
		all = append(all, c)
	}
	a.tell()
	v.mu.Unlock()
	err = d.env.do(func() error { return neighbor.Take(v.addressList(), peers) })
	limit := time.NewTimer(adoptLimit)
	defer limit.Stop()
	for _, c := range all {
		select {
		case <-c.adopted:
		case <-limit.C:
			return errors.Join(err, errors.New("the VM's channel is gone"))
		}
	}
	v.endArrival(a)
	return err
}

// mayOffer waits until a session may be offered, or until one goes on here (session.Options.Offer).
func (v *vm) mayOffer(ctx context.Context, channel int) (*coming, error) {
	for {
		v.mu.Lock()
		held, a := v.held, v.arrival
		var changed chan struct{}
		if a != nil {
			if c := a.coming[channel]; c != nil && c.committed {
				delete(a.coming, channel)
				v.mu.Unlock()
				return c, nil
			}
			changed = a.changed
			a.waiting[channel]++
		}
		v.mu.Unlock()
		if held == nil && a == nil {
			return nil, nil
		}
		var err error
		select {
		case <-held:
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if a != nil {
			v.mu.Lock()
			a.waiting[channel]--
			v.mu.Unlock()
		}
		if err != nil {
			return nil, err
		}
	}
}

// adopt makes the leases of a session that goes on here the handler's.
func (h *handler) adopt(c *coming) {
	h.mu.Lock()
	for _, l := range c.leases {
		l.handler = h
		h.leases[l.id] = l
	}
	h.mu.Unlock()
	for _, l := range c.leases {
		h.vm.daemon.active.Add(1)
		h.vm.daemon.running.Go(func() {
			defer h.vm.daemon.active.Add(-1)
			l.goOn()
		})
	}
	close(c.adopted)
}

// goOn is run for a lease that another host had.
func (l *leaseConn) goOn() {
	if err := l.socket.Thaw(); err != nil {
		l.complainOnce("a connection that has come from another host does not live", err)
		l.finish(wire.ReasonKernel)
		return
	}
	l.mu.Lock()
	l.since = time.Now()
	l.live, l.granted, l.doing = true, l.since, idles
	returns := l.recall == recallSoon
	l.mu.Unlock()
	if returns {
		l.callBackSoon()
	}
	l.socket.boundQueue(l.vm.leaseCount())
	if l.end.Phase() == lease.Leased {
		l.carryOut()
	}
}
