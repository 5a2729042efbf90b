package status

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"spillway/internal/cache"
	"spillway/internal/host"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

var threeInTheMorning = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)

// busy is a daemon after some days, and what it was seconds before.
func busy() (now, before host.Status) {
	before = host.Status{
		UptimeSeconds: 3*86400 + 4*3600,
		VMs: []host.VMStatus{{
			Name: "vm0", Sessions: 1, Leases: 1200, MaxLeases: 4096,
			SessionsTotal: 14, Breaches: 2, Frames: 9_876_543, Dropped: 17,
			Handovers: 12_345, Handbacks: 1234, Keeps: 12, Sends: 1_234_567, SentBytes: 1_213_000_000_000, RelayedBytes: 3_400_000_000,
			Refused: map[string]uint64{"draining": 2, "limit": 10},
			Failed:  map[string]uint64{"not-found": 1, "changed": 2},
			Closed:  map[string]uint64{"closed": 11_000, "client-gone": 123, "client-stalled": 123},
		}, {
			Name: "a-vm-with-a-long-name", MaxLeases: 16, SessionsTotal: 1,
		}, {
			Name: "never-seen", MaxLeases: 16,
		}},
		Shares: []host.ShareStatus{
			{Name: "media", OpenFiles: 12, IdleFiles: 10, Opens: 345, Reuses: 1_234_567},
			{Name: "none"},
			{Name: "vod", OpenFiles: 3, Cache: &cache.Stats{
				Files: 20_123, Bytes: 180_000_000_000, MaxFiles: 1_000_000, MaxBytes: 200 << 30, Pins: 2, Filling: 3,
				Hits: 1_234_567, Misses: 12_345, Lookups: 30_000, Stale: 7, Replaced: 12, FillBytes: 300_000_000_000, ReadAhead: 77, FillFailures: 1, OriginErrors: 9,
				Evictions: 4321, EvictedBytes: 120_000_000_000,
			}},
			{Name: "cold", Cache: &cache.Stats{MaxFiles: 10, MaxBytes: 123_456_789}},
		},
	}
	now = before
	now.UptimeSeconds += 2
	now.VMs = append([]host.VMStatus(nil), before.VMs...)
	vm := &now.VMs[0]
	vm.SentBytes += 224_000_000
	vm.RelayedBytes += 900
	vm.Sends += 690
	vm.Handovers += 24
	vm.Frames += 2481
	vm.Refused = map[string]uint64{"draining": 2, "limit": 11}
	kept := *now.Shares[2].Cache
	kept.Hits += 500
	kept.Misses += 20
	kept.FillBytes += 84_000_000
	now.Shares = slices.Clone(before.Shares)
	now.Shares[2].Cache = &kept
	vm.Closed = map[string]uint64{"closed": 11_017, "client-gone": 123, "client-stalled": 123}
	return now, before
}

func TestStatusTable(t *testing.T) {
	now, before := busy()
	golden(t, "status.txt", statusTable(&now, nil, threeInTheMorning))
	golden(t, "status-rates.txt", statusTable(&now, &before, threeInTheMorning))

	// A daemon that was restarted has counted from 0 again: it has no rates yet.
	restarted := now
	restarted.UptimeSeconds, restarted.Draining = 0.4, true
	golden(t, "status-restarted.txt", statusTable(&restarted, &before, threeInTheMorning))

	// A VM that was not there has none either, and an older daemon does not tell the limit.
	added := before
	added.VMs = append(added.VMs[:1:1], host.VMStatus{Name: "new", Sessions: 2, SessionsTotal: 3, Leases: 1})
	added.UptimeSeconds++
	added.Shares = nil
	golden(t, "status-added.txt", statusTable(&added, &before, threeInTheMorning))
}

func TestLeasesTable(t *testing.T) {
	client := netip.MustParseAddrPort
	before := host.Leases{VMs: []host.VMLeases{
		{Name: "vm0", LeftOut: 1, Leases: []host.LeaseStatus{
			{ID: 17, Client: client("198.51.100.7:51234"), SentBytes: 1_200_000_000},
			{ID: 18, Client: client("[2001:db8:1234:5678:9abc:def0:1234:5678]:51234"), SentBytes: 700},
		}},
		{Name: "idle"},
	}}
	now := host.Leases{VMs: []host.VMLeases{
		{Name: "vm0", LeftOut: 1023, Leases: []host.LeaseStatus{
			{ID: 17, Client: client("198.51.100.7:51234"), AgeSeconds: 192, SentBytes: 1_310_000_000, UnackedBytes: 512_000, Doing: "sending"},
			{ID: 18, Client: client("[2001:db8:1234:5678:9abc:def0:1234:5678]:51234"), AgeSeconds: 0.3, SentBytes: 700, Doing: "idle"},
			{ID: 19, Client: client("198.51.100.8:80"), AgeSeconds: 3 * 86400, Doing: "returning"},
		}},
		{Name: "idle", Leases: []host.LeaseStatus{}},
	}}
	golden(t, "leases.txt", leasesTable(&now, nil, 0, threeInTheMorning))
	golden(t, "leases-rates.txt", leasesTable(&now, &before, 2*time.Second, threeInTheMorning))
}

func TestFormat(t *testing.T) {
	for got, want := range map[string]string{
		age(0.9): "0s", age(-1): "0s", age(59.9): "59s", age(60): "1m 0s", age(3599): "59m 59s", age(3600): "1h 0m",
		age(86399): "23h 59m", age(86400): "1d 0h", age(1e7): "115d 17h",
		perSecond(0): "0/s", perSecond(0.04): "0.1/s", perSecond(9.94): "9.9/s", perSecond(10): "10/s", perSecond(12345.6): "12,345/s",
		count(0): "0", count(999): "999", count(1000): "1,000", count(1<<63 + 1): "9,223,372,036,854,775,807",
		byteCount(999): "999 B", byteCount(1000): "1.0 kB", byteCount(82_854_982): "83 MB", bytesPerSecond(1.25e8): "125 MB/s",
		plural(1, "lease"): "1 lease", plural(0, "lease"): "0 leases", plural(1234, "lease"): "1,234 leases",
		reasons(nil): "", reasons(map[string]uint64{"b": 1, "a": 1, "c": 2000}): "c 2,000, a 1, b 1",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
