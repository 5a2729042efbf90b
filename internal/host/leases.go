package host

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// maxListed is how many leases of a VM Leases tells of: what a person can look through. For all of them there are metrics.
const maxListed = 100

// Leases are the live leases of all VMs. Its JSON form is an interface for scripts: fields are added, never renamed.
type Leases struct {
	VMs []VMLeases `json:"vms"`
}

// VMLeases are the live leases of one VM: the maxListed that have sent most, those first.
type VMLeases struct {
	Name    string        `json:"name"`
	Leases  []LeaseStatus `json:"leases"`
	LeftOut int           `json:"left_out"` // how many there are besides
}

// LeaseStatus is the state of one lease.
type LeaseStatus struct {
	ID           uint32         `json:"id"` // as in the log; the guest's choice
	Client       netip.AddrPort `json:"client"`
	AgeSeconds   float64        `json:"age_s"`         // since GRANTED
	SentBytes    int64          `json:"sent_bytes"`    // that the kernel has taken for the client, headers included
	UnackedBytes int            `json:"unacked_bytes"` // of these, what the client has not acknowledged
	Doing        string         `json:"doing"`         // starting, idle, sending, draining, returning or closing
}

// activity is what a lease's sender does.
type activity uint8

const (
	starts  activity = iota // answers HANDOVER
	idles                   // waits for the guest
	sends                   // does what the guest has told it, or waits for the client to take it
	drains                  // waits for the client's acknowledgements, to give the connection back
	returns                 // gives it back
	closes                  // ends the connection, and stays until the client knows
)

var activityNames = [...]string{"starting", "idle", "sending", "draining", "returning", "closing"}

// Leases returns the leases that there are now.
func (d *Daemon) Leases() Leases {
	all := Leases{VMs: make([]VMLeases, 0, len(d.vms))}
	now := time.Now()
	for _, v := range d.vms {
		all.VMs = append(all.VMs, v.listLeases(now))
	}
	return all
}

// listLeases asks the kernel about those only that it lists.
func (v *vm) listLeases(now time.Time) VMLeases {
	type written struct {
		lease *leaseConn
		bytes int64 // once for all comparisons: it grows meanwhile
	}
	var leases []written
	v.eachLease(func(l *leaseConn) { leases = append(leases, written{l, l.socket.written.Load()}) })
	slices.SortFunc(leases, func(a, b written) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.lease.id, b.lease.id))
	})
	listed := min(len(leases), maxListed)
	out := VMLeases{Name: v.name, Leases: make([]LeaseStatus, 0, listed), LeftOut: len(leases) - listed}
	for _, w := range leases[:listed] {
		out.Leases = append(out.Leases, w.lease.status(now, w.bytes))
	}
	return out
}

func (l *leaseConn) status(now time.Time, written int64) LeaseStatus {
	s := LeaseStatus{ID: l.id, Client: l.state.Remote, SentBytes: written}
	l.mu.Lock()
	live, doing := l.live, l.doing
	if !l.granted.IsZero() {
		s.AgeSeconds = max(now.Sub(l.granted).Seconds(), 0)
	}
	l.mu.Unlock()
	if live {
		s.UnackedBytes, _ = l.socket.outstanding() // closed meanwhile: 0
	}
	if doing == idles && s.UnackedBytes > 0 {
		doing = sends // the kernel does
	}
	s.Doing = activityNames[doing]
	return s
}
