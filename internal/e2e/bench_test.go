package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
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
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: vmProgram, Files: files, Cache: cache}
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
			"server": onHost, "qemu": !onHost, "host": arm == lab.Lease || arm == lab.LeaseCache || arm == lab.Offload, "all": true,
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
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: vmProgram, Files: filepath.Join(t.TempDir(), "sizes"), Cache: cache}
	plan := evaluation.SoakPlan{Duration: patience / 3, Seed: 1, Clients: 4, Sizes: []int64{4096, 288_600, 3_000_000}}
	counts, err := evaluation.RunSoak(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil || counts["responses whole"] == 0 {
		t.Fatalf("%v: %v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", counts, err)
	}
	checkGone(t, opts.Name, opts.Files)
}

// TestBenchMachines takes a lab for the user's own machines: the benches find its servers from the client's place by their addresses, and leave the lab alone.
func TestBenchMachines(t *testing.T) {
	dir := t.TempDir()
	files := filepath.Join(dir, "sizes")
	const size, n, rounds = 65536, 20, 2
	_, err := evaluation.SizeCases(files, []int64{size}, 1)
	must(t, err)
	const scale = 0.005
	_, err = evaluation.TableFiles(t.Context(), files, scale, bench.NewProgress(nil))
	must(t, err)
	l := newLab(t, &media{dir: files}, func(o *lab.Options) { o.Threshold = 0 })
	pids := l.PIDs()
	machines := []string{
		"--host", l.URL(lab.Baremetal, ""), "--guest", l.URL(lab.VM, ""), // arms baremetal and vm, when nothing else is said
		"--pid", fmt.Sprintf("host=%d,baremetal=%d", pids["host"], pids[string(lab.Baremetal)]), "--env", "accelerator=none,link=unshaped",
	}
	for _, arm := range []lab.Arm{lab.Offload, lab.Lease} {
		machines = append(machines, "--guest", fmt.Sprintf("%s=%s,admin=%s", arm, l.URL(arm, ""), l.AdminURL(arm)))
	}
	for _, c := range []struct {
		bench    string
		args     []string
		requests int // in the timed passes of a case; 0: not the same in each
		rows     int
	}{
		{"micro", []string{"--sizes", fmt.Sprint(size), "--scale", "0.04", "--cache", dir}, rounds * n, 4},
		{"request", []string{"--sizes", fmt.Sprint(size), "-n", fmt.Sprint(rounds * n), "--cache", dir}, rounds * n, 4},
		{"dash", []string{"--scale", fmt.Sprint(scale), "--players", "2", "--media", "30s", "--speed", "200", "--cache", dir}, 0, 4 * 4},
		{"concurrency", []string{"--size", fmt.Sprint(size), "-n", fmt.Sprint(n), "--connections", "1,4", "--cache", dir}, rounds * n, 8},
	} {
		report := filepath.Join(dir, c.bench+".json")
		args := append(append([]string{"bench", c.bench, "--rounds", fmt.Sprint(rounds), "--json", report}, c.args...), machines...)
		var out []byte
		must(t, l.Client.Do(func() error {
			cmd := exec.CommandContext(t.Context(), program, args...)
			out, err = cmd.CombinedOutput()
			return nil
		}))
		// Whether the load generator is a bottleneck depends on the machine.
		if err != nil && !strings.Contains(string(out), "bottleneck") {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		r, err := bench.ReadFile(report)
		must(t, err)
		if len(r.Rows) != c.rows || r.Env.Accelerator != "none" || r.Env.Kernel == "" {
			t.Errorf("%s: %d rows, %+v", c.bench, len(r.Rows), r.Env)
		}
		for i, row := range r.Rows {
			arm, connections := string(lab.Arms()[i%4]), int64(max(1, row.Connections))
			handovers := map[string]int64{"lease": rounds * connections, "offload": int64(c.requests)}[arm]
			if c.requests == 0 {
				if row.Arm != arm || row.N == 0 || row.Wrong != 0 || (row.Handovers > 0) != (handovers > 0 || arm == "offload") {
					t.Errorf("%s, row %d: %+v", c.bench, i, row)
				}
				continue
			}
			if row.Arm != arm || row.N != c.requests || row.Wrong != 0 || row.Handovers != handovers {
				t.Errorf("%s, row %d: %+v; want %d handovers", c.bench, i, row, handovers)
			}
			if _, ok := row.Processes["host"]; ok != (arm == "lease" || arm == "offload") {
				t.Errorf("%s, %s: processes are %v", c.bench, arm, row.Processes)
			}
		}
	}
}
