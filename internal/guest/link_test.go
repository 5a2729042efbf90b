package guest

import (
	"testing"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// TestChannels: connections are shared among the channels, a channel that stops takes its own with it and no others, and the one that is left has
// all that come.
func TestChannels(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	one, two := r.script(), r.script()
	r.eventually("two sessions", func() bool { return r.agent.Snapshot().Channels == 2 })
	scripts := []*script{one, two}
	var all []*handing
	for i := range 4 { // the fewest leases, the first of those
		s := scripts[i%2]
		h := r.leased(s)
		h.next() // on the same channel, whatever the others have
		h.sent()
		all = append(all, h)
	}
	if s := r.agent.Snapshot(); s.Leases != 4 || s.Host != hostUp {
		t.Errorf("snapshot is %+v", s)
	}
	two.say(0, 0, wire.Drain{})
	h := r.leased(one)
	all = append(all, h)
	if s := r.agent.Snapshot(); s.Host != hostUp {
		t.Errorf("the host is %s", s.Host)
	}
	two.stop()
	for i, h := range all {
		want := lease.Leased
		if i == 1 || i == 3 {
			want = lease.Gone
		}
		r.eventually("the phase of each connection", func() bool { return h.server.phase() == want })
	}
	r.eventually("one session", func() bool { s := r.agent.Snapshot(); return s.Channels == 1 && s.Leases == 3 && s.Counts.Lost == 2 })
	all = append(all, r.leased(one))
	for i, h := range all {
		if i != 1 && i != 3 {
			h.over(wire.ReasonClientGone)
		}
	}
	one.lives()
}
