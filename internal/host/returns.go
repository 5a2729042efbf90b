package host

import (
	"net/netip"
	"time"
)

// Returned is a lease that a Hold has given back. Its JSON form is an interface: fields are added, never renamed.
type Returned struct {
	Client  netip.AddrPort `json:"client"`
	Asked   time.Time      `json:"asked"`    // when it was called back
	TookMs  float64        `json:"took_ms"`  // until the guest had it
	GuestMs float64        `json:"guest_ms"` // of that, the guest's: from HANDBACK to TAKEN. The rest is the client's, which had to acknowledge what was on its way
}

// comebacks are the leases that have come back since a Hold began.
type comebacks struct {
	since time.Time
	all   []Returned
}

// noteReturns begins to note which leases come back, until takeReturns.
func (v *vm) noteReturns() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.returns = &comebacks{since: time.Now()}
}

// takeReturns returns those that have come back, in this order.
func (v *vm) takeReturns() []Returned {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := v.returns
	v.returns = nil
	if out == nil {
		return nil
	}
	return out.all
}

// returned notes that the guest has l.
func (v *vm) returned(l *leaseConn) {
	l.mu.Lock()
	r := Returned{Client: l.state.Remote, Asked: l.recalledAt, GuestMs: milliseconds(l.takenAt.Sub(l.asked))}
	l.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.returns == nil {
		return
	}
	if r.Asked.Before(v.returns.since) { // in mode offload it comes back by itself, and a recall may have been tried before
		r.Asked = v.returns.since
	}
	r.TookMs = milliseconds(time.Since(r.Asked))
	v.returns.all = append(v.returns.all, r)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
