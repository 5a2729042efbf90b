package evaluation

import (
	"net/netip"
	"slices"
	"time"

	"spillway/internal/migrate"
)

// MoveClient is one client during a move: what its longest stall was made of, and when its connection changed hands. Times count from the beginning of phase hold, which is
// when the first connection is called back.
type MoveClient struct {
	Client  int     `json:"client"` // its number
	Address string  `json:"address"`
	StallMs float64 `json:"stall_ms"` // the longest time it waited for a byte
	FromMs  float64 `json:"from_ms"`  // when that began; negative: before phase hold

	// PhasesMs is how much of the stall fell into each phase, "before" the move and "after" it.
	PhasesMs map[migrate.Phase]float64 `json:"phases_ms"`

	ReturnedMs float64 `json:"returned_ms"`    // when the guest had its connection; 0: it was not leased
	TookMs     float64 `json:"return_took_ms"` // from its recall on
	GuestMs    float64 `json:"return_guest_ms"`
	AgainMs    float64 `json:"leased_again_ms"` // when the destination had it; 0: not yet
}

// Phases of a client's stall outside the move.
const (
	BeforeMove migrate.Phase = "before"
	AfterMove  migrate.Phase = "after"
)

// clientsOf tells what each client met. granted is when the destination has been given the connections that it has.
func clientsOf(moved *migrate.Report, stalls map[int]stall, granted map[netip.AddrPort]time.Time) (out []MoveClient) {
	hold := moved.Began[migrate.Hold]
	since := func(t time.Time) float64 { return milliseconds(t.Sub(hold)) }
	returns := map[netip.AddrPort]migrate.Returned{}
	for _, r := range moved.Returns {
		returns[r.Client] = r
	}
	for number, s := range stalls {
		c := MoveClient{Client: number, Address: s.client.String(), StallMs: milliseconds(s.length), FromMs: since(s.from), PhasesMs: stallPhases(moved, s)}
		if r, ok := returns[s.client]; ok {
			c.TookMs, c.GuestMs, c.ReturnedMs = r.TookMs, r.GuestMs, since(r.Asked)+r.TookMs
		}
		if at, ok := granted[s.client]; ok && at.After(hold) {
			c.AgainMs = since(at)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b MoveClient) int { return a.Client - b.Client })
	return out
}

// stallPhases splits a stall at the beginnings of the phases.
func stallPhases(moved *migrate.Report, s stall) map[migrate.Phase]float64 {
	type part struct {
		phase migrate.Phase
		from  time.Time
	}
	parts := []part{{BeforeMove, time.Time{}}}
	for _, p := range []migrate.Phase{migrate.Check, migrate.Start, migrate.Precopy, migrate.Hold, migrate.Switch, migrate.Answer} {
		parts = append(parts, part{p, moved.Began[p]})
	}
	parts = append(parts, part{AfterMove, moved.Began[migrate.Done]})
	out, end := map[migrate.Phase]float64{}, s.from.Add(s.length)
	for i, p := range parts {
		from, to := p.from, end
		if from.Before(s.from) {
			from = s.from
		}
		if i+1 < len(parts) && parts[i+1].from.Before(to) {
			to = parts[i+1].from
		}
		if to.After(from) {
			out[p.phase] = milliseconds(to.Sub(from))
		}
	}
	return out
}
