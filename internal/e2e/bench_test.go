package e2e

import (
	"path/filepath"
	"testing"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
	"spillway/internal/testkit"
)

// TestVMBench measures in a real VM what only a VM has: caches and memory of its own, and QEMU's CPU time.
func TestVMBench(t *testing.T) {
	testkit.CheckFDs(t)
	files := filepath.Join(t.TempDir(), "sizes")
	const n, rounds = 3, 2
	cases, err := evaluation.SizeCases(files, []int64{4096, 2_000_000}, n)
	must(t, err)
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: program, Files: files, Cache: cache}
	arms := lab.AllArms()
	plan := evaluation.Plan{Cases: cases, Arms: arms, Rounds: rounds, Connections: 1}
	report, err := evaluation.RunCPU(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatalf("%v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", err)
	}
	checkGone(t, opts.Name, files)
	if len(report.Rows) != len(arms)*len(cases) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		arm := arms[i%len(arms)]
		onHost := arm == lab.Baremetal || arm == lab.NginxHost
		if row.Arm != string(arm) || row.N != n*rounds || row.Wrong != 0 {
			t.Errorf("row %d is %+v, want %s", i, row, arm)
		}
		for name, want := range map[string]bool{
			"server": onHost, "qemu": !onHost, "host": arm == lab.Lease || arm == lab.Offload, "all": true,
		} {
			if p, ok := row.Processes[name]; ok != want || ok && p.CPUSecondsPerGB <= 0 {
				t.Errorf("%s, %s: CPU time of %s is %+v", arm, row.Case, name, p)
			}
		}
	}
}

// TestVMSoak disturbs a real VM's lab for a moment.
func TestVMSoak(t *testing.T) {
	testkit.CheckFDs(t)
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: program, Files: filepath.Join(t.TempDir(), "sizes"), Cache: cache}
	plan := evaluation.SoakPlan{Duration: patience / 3, Seed: 1, Clients: 4, Sizes: []int64{4096, 288_600, 3_000_000}}
	counts, err := evaluation.RunSoak(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil || counts["responses whole"] == 0 {
		t.Fatalf("%v: %v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", counts, err)
	}
	checkGone(t, opts.Name, opts.Files)
}
