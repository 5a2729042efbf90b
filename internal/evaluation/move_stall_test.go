package evaluation

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/migrate"
)

// TestClientsOf: a stall is split where phases begin, and a client is told from the others by its address.
func TestClientsOf(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	one, two := netip.MustParseAddrPort("10.88.0.2:1001"), netip.MustParseAddrPort("10.88.0.2:1002")
	moved := &migrate.Report{
		Began:   map[migrate.Phase]time.Time{migrate.Check: at(0), migrate.Start: at(10), migrate.Precopy: at(20), migrate.Hold: at(1000), migrate.Switch: at(1100), migrate.Answer: at(1120), migrate.Done: at(1250)},
		Returns: []migrate.Returned{{Client: one, Asked: at(1005), TookMs: 40, GuestMs: 10}},
	}
	stalls := map[int]stall{
		2: {two, at(-30), 25 * time.Millisecond},
		1: {one, at(990), 400 * time.Millisecond},
	}
	got := clientsOf(moved, stalls, map[netip.AddrPort]time.Time{one: at(1300), two: at(-5000)})
	want := []MoveClient{
		{Client: 1, Address: "10.88.0.2:1001", StallMs: 400, FromMs: -10, ReturnedMs: 45, TookMs: 40, GuestMs: 10, AgainMs: 300,
			PhasesMs: map[migrate.Phase]float64{migrate.Precopy: 10, migrate.Hold: 100, migrate.Switch: 20, migrate.Answer: 130, AfterMove: 140}},
		{Client: 2, Address: "10.88.0.2:1002", StallMs: 25, FromMs: -1030, PhasesMs: map[migrate.Phase]float64{BeforeMove: 25}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
