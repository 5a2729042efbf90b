package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"spillway/internal/neighbor"
	"spillway/internal/session"
	"spillway/internal/wire"
)

// A VM that moves to another host goes through Hold and Depart here, and Admit and Arrive there. Resume undoes Hold.

// holdLimit is how long a VM is held when nobody says otherwise: whoever moves it may have died, and the VM has no host meanwhile.
const holdLimit = 30 * time.Second

// maxHoldTimeout bounds each of the two waits of Hold: its answer must come before adminTimeout.
const maxHoldTimeout = 4 * time.Second

// Description is what a host says of a VM for another host that is to take it. Its JSON form is an interface: fields are added, never renamed.
type Description struct {
	Name      string       `json:"name"`
	Protocol  int          `json:"protocol"`
	Addresses []netip.Addr `json:"addresses"`
	Shares    []string     `json:"shares"`
	Channels  int          `json:"channels"`
	MaxLeases int          `json:"max_leases"`
	Sessions  int          `json:"sessions"` // live now
	Leases    int          `json:"leases"`   // live now
	Held      bool         `json:"held"`     // Hold is in force
	Files     []FileInUse  `json:"files"`    // that are being sent now
	Carries   int          `json:"carries"`  // the version in which this host hands leases over, or takes them; 0: it does not
	Gateways  []string     `json:"gateways"` // the hardware addresses that the VM sends to, for each of its addresses; empty: no link to it
}

// FileInUse is one version of a file.
type FileInUse struct {
	Share   string `json:"share"`
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	MTimeNs int64  `json:"mtime_ns"`
}

func (d *Daemon) vm(name string) (*vm, error) {
	for _, v := range d.vms {
		if v.name == name {
			return v, nil
		}
	}
	return nil, errUnknownVM
}

// Describe tells what another host must know to take a VM.
func (d *Daemon) Describe(name string) (Description, error) {
	v, err := d.vm(name)
	if err != nil {
		return Description{}, err
	}
	out := Description{Name: v.name, Protocol: wire.Version, Channels: len(v.channels), MaxLeases: v.maxLeases, Files: []FileInUse{}}
	if d.kernel.halter != nil {
		out.Carries = carryVersion
	}
	for a := range v.addresses {
		out.Addresses = append(out.Addresses, a)
	}
	slices.SortFunc(out.Addresses, netip.Addr.Compare)
	for s := range v.shares {
		out.Shares = append(out.Shares, s)
	}
	slices.Sort(out.Shares)
	_ = d.env.do(func() error {
		for _, a := range out.Addresses {
			mac := ""
			if _, hw, err := neighbor.Gateway(a); err == nil {
				mac = hw.String()
			}
			out.Gateways = append(out.Gateways, mac)
		}
		return nil
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	out.Sessions, out.Leases, out.Held = len(v.handlers), len(v.leases), v.held != nil
	for f := range v.files {
		out.Files = append(out.Files, FileInUse{f.Share, f.Path, f.Size, f.MTime})
	}
	return out, nil
}

// Admit tells what keeps this host from taking a VM that another one describes; nothing does if it is empty.
func (d *Daemon) Admit(ctx context.Context, other Description) (problems []string, err error) {
	own, err := d.Describe(other.Name)
	if err != nil {
		return nil, err
	}
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if d.draining.Load() {
		complain("this daemon is stopping")
	}
	if own.Protocol != other.Protocol {
		complain("this daemon speaks version %d of the protocol and the VM's server version %d: update the older one", own.Protocol, other.Protocol)
	}
	if !slices.Equal(own.Addresses, other.Addresses) {
		complain("the VM's addresses are %v in this daemon's configuration, and %v at the host that has it", own.Addresses, other.Addresses)
	}
	for _, s := range other.Shares {
		if !slices.Contains(own.Shares, s) {
			complain("the VM has no share %q in this daemon's configuration", s)
		}
	}
	if own.Channels != other.Channels {
		complain("the VM has %d channels in this daemon's configuration, and %d at the host that has it", own.Channels, other.Channels)
	}
	if own.Sessions > 0 {
		complain("a VM of this name runs here already: it has %d sessions", own.Sessions)
	}
	if own.MaxLeases < other.Leases {
		complain("no room: max_leases is %d here, and the VM has %d leases", own.MaxLeases, other.Leases)
	}
	for i, mac := range own.Gateways {
		switch {
		case mac == "":
			complain("this host has no link to %v: make the VM's tap and its route first", own.Addresses[i])
		case i < len(other.Gateways) && mac != other.Gateways[i]:
			complain("the VM's gateway has the hardware address %s here and %s at the host that has it: set the tap's to the latter", mac, other.Gateways[i])
		}
	}
	v, err := d.vm(other.Name)
	if err != nil {
		return nil, err
	}
	for _, f := range other.Files {
		size, mtime, reason := v.stat(ctx, wire.FileRef{Share: f.Share, Path: f.Path})
		if reason == wire.ReasonOK && (size != f.Size || mtime != f.MTimeNs) {
			reason = wire.ReasonChanged
		}
		if reason != wire.ReasonOK {
			complain("share %s: %s, which is being sent to a client: %v", f.Share, f.Path, reason)
		}
	}
	return problems, nil
}

// Held is what came of a Hold. Its JSON form is an interface: fields are added, never renamed.
type Held struct {
	Leases  int        `json:"leases"` // that were called back
	Closed  int        `json:"closed"` // that did not come back in time; their clients were reset
	Longest float64    `json:"longest_ms"`
	Returns []Returned `json:"returns"` // in the order in which they came back
}

// Hold readies a VM for the moment in which it is paused: it takes no more leases, and gives all back. It returns when none is left and the VM's server has ended its
// sessions. From then on no session is offered to the VM, until Resume or Arrive, or until holdLimit has passed.
//
// A client that acknowledges nothing within timeout is reset: it would be, too, if it kept its connection here. After an error nothing is held.
func (d *Daemon) Hold(ctx context.Context, name string, timeout time.Duration) (out Held, err error) {
	v, err := d.vm(name)
	if err != nil {
		return out, err
	}
	before := v.counters.handbacks.Load()
	v.noteReturns()
	defer func() { out.Returns = v.takeReturns() }()
	back := v.recallStuck(ctx, timeout)
	began := time.Now()
	v.hold()
	defer func() {
		if err != nil {
			v.letGo()
		}
	}()
	v.eachHandler(func(h *handler) { h.desk.drain(wire.FlagMove) })
	out.Leases = back + v.eachLease((*leaseConn).callBack)
	if !v.awaitIdle(ctx, timeout, v.leaseCount) {
		if err := ctx.Err(); err != nil { // whoever asked has changed his mind
			return out, err
		}
		out.Closed = v.eachLease(func(l *leaseConn) { l.reset(wire.ReasonDraining) })
		d.log.Warn("closed connections that did not come back before the VM moves", "vm", v.name, "leases", out.Closed)
	}
	if !v.awaitIdle(ctx, lingerLimit, func() int { return v.leaseCount() + v.sessionCount() }) {
		return out, errNotIdle
	}
	out.Longest = milliseconds(time.Since(began))
	d.log.Info("VM is held", "vm", v.name, "handbacks", v.counters.handbacks.Load()-before, "closed", out.Closed, "took", time.Since(began))
	return out, nil
}

var errNotIdle = errors.New("the VM's server does not end its session: is it of this version, and does it run?")

// recallStuck calls back the leases whose clients have no room, and waits for them: a header that has not left cannot be given back, and it may take a slow
// client seconds to make room for it. So nobody else waits for that. It returns how many have come back.
func (v *vm) recallStuck(ctx context.Context, timeout time.Duration) (back int) {
	var stuck []*leaseConn
	v.eachLease(func(l *leaseConn) {
		if l.stuck() {
			stuck = append(stuck, l)
			l.callBack()
		}
	})
	all := len(stuck)
	for limit := time.Now().Add(timeout); len(stuck) > 0 && time.Now().Before(limit) && ctx.Err() == nil; time.Sleep(holdPoll) {
		v.mu.Lock()
		stuck = slices.DeleteFunc(stuck, func(l *leaseConn) bool {
			_, live := v.leases[l]
			return !live
		})
		v.mu.Unlock()
	}
	return all - len(stuck)
}

// slowFlight is how much may be on its way to a client that has no room, bytes: it makes room by a segment or two at a time.
const slowFlight = 4 << 10

// stuck tells whether there is something for the client and next to nothing of it is on its way.
func (l *leaseConn) stuck() bool {
	l.mu.Lock()
	live := l.live
	l.mu.Unlock()
	if !live {
		return false
	}
	outstanding, err := l.socket.outstanding()
	if err != nil {
		return false // closed meanwhile
	}
	unsent, err := l.socket.unsent()
	return err == nil && unsent > 0 && outstanding-unsent < slowFlight
}

// awaitIdle waits until busy returns 0. Leases that did not come back at once are asked again.
func (v *vm) awaitIdle(ctx context.Context, timeout time.Duration, busy func() int) bool {
	limit := time.Now().Add(timeout)
	for again := time.Now().Add(recallAgainAfter); busy() > 0; time.Sleep(holdPoll) {
		now := time.Now()
		if now.After(limit) || ctx.Err() != nil {
			return false
		}
		if now.After(again) {
			again = now.Add(recallAgainAfter)
			v.eachLease((*leaseConn).callBack)
		}
	}
	return true
}

const (
	holdPoll         = time.Millisecond
	recallAgainAfter = 100 * time.Millisecond
)

// hold begins to hold the VM, or does so for longer.
func (v *vm) hold() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held != nil {
		v.holdTimer.Reset(holdLimit)
		return
	}
	v.held = make(chan struct{})
	v.holdTimer = time.AfterFunc(holdLimit, v.letGo)
}

// letGo ends a hold: sessions are offered again. A session that has outlived it begins anew, since its guest takes no leases.
func (v *vm) letGo() {
	v.mu.Lock()
	held := v.held
	if held != nil {
		v.holdTimer.Stop()
		v.held = nil
		close(held)
	}
	v.mu.Unlock()
	if held != nil {
		v.eachHandler(func(h *handler) { h.session.Close(errMoveFailed) })
	}
}

var errMoveFailed = fmt.Errorf("%w: it does not, after all", session.ErrMove)

// isHeld tells whether Hold is in force.
func (v *vm) isHeld() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.held != nil
}

func (v *vm) sessionCount() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.handlers)
}

// Resume undoes Hold and Halt: the VM stays. At the host that it was to move to, it undoes Expect and Import. With moved another host's clients have been sent something since
// Export: the connections are reset.
func (d *Daemon) Resume(name string, moved bool) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	v.letGo()
	v.endArrival(nil)
	if moved {
		v.endCarriage(cutOff)
	} else {
		v.endCarriage(stays)
	}
	return nil
}

// Arrive makes this host the one that has the VM's addresses; see neighbor.Take. It may be called before the VM runs, and again.
func (d *Daemon) Arrive(name string, peers []netip.Addr) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	v.letGo()
	v.endArrival(nil)
	return d.env.do(func() error { return neighbor.Take(v.addressList(), peers) })
}

// Depart makes this host send what comes for the VM's addresses to another one; see neighbor.Leave.
func (d *Daemon) Depart(name string, peers []netip.Addr) error {
	v, err := d.vm(name)
	if err != nil {
		return err
	}
	return d.env.do(func() error { return neighbor.Leave(v.addressList(), peers) })
}

func (v *vm) addressList() (all []netip.Addr) {
	for a := range v.addresses {
		all = append(all, a)
	}
	return all
}
