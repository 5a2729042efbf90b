package e2e

import (
	"path/filepath"
	"testing"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

// TestVMCopies: of what two VMs serve by leases there is one copy in memory, the host's; without, there is one in each VM besides.
func TestVMCopies(t *testing.T) {
	const set, requests, rounds = 12 << 20, 6, 2
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	cases, err := evaluation.SizeCases(files, []int64{300_000}, 2)
	must(t, err)
	plan := evaluation.CachePlan{Hits: evaluation.Plan{Cases: cases, Connections: 1}, Sets: []int64{set}, Requests: requests, Rounds: rounds}
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: vmProgram, Files: files, Cache: cache}
	report, err := evaluation.RunCache(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatalf("%v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", err)
	}
	checkGone(t, opts.Name, files)
	if len(report.Rows) != 4 {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for _, row := range report.Rows[2:] {
		m := row.Memory
		if row.N != 2*requests || row.Wrong != 0 || m == nil {
			t.Fatalf("%+v", row)
		}
		media := float64(m.MediaBytes)
		if media < 0.8*set || float64(m.HostCacheBytes) < 0.9*media || m.QEMUBytes <= 0 || m.GuestsBytes < 500<<20 {
			t.Errorf("%s: %+v", row.Arm, m)
		}
		// A guest's other files are some MB at most.
		if copies := float64(m.GuestCacheBytes) / media; row.Arm == string(lab.VM) && copies < 1.5 || row.Arm == string(lab.Lease) && copies > 0.5 {
			t.Errorf("%s: the guests have %.2f copies", row.Arm, copies)
		}
	}
}
