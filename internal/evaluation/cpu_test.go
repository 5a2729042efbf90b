package evaluation

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// TestCPUTime: the clock of a process counts what it does, and not what it sleeps.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const busy = 50 * time.Millisecond
	for now := before; now < before+busy; {
		if now, err = cpuTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cpuTime(1 << 22); err == nil {
		t.Error("a process that there is not")
	}
	times, err := machineTimes()
	if err != nil || len(times) != 4 || times["system"] <= 0 {
		t.Errorf("%v, %v", times, err)
	}
}

func TestCPURatio(t *testing.T) {
	row := func(arm lab.Arm, dataCase string, processes, user, system float64) bench.Row {
		return bench.Row{Arm: string(arm), Case: dataCase, Machine: map[string]float64{"user": user, "system": system},
			Processes: map[string]bench.Process{allProcesses: {CPUSecondsPerGB: processes}}}
	}
	r := &bench.Report{Rows: []bench.Row{row(lab.Baremetal, "a", 2, 1, 3), row(lab.Baremetal, "b", 1, 1, 1), row(lab.Lease, "b", 3, 3, 1), row(lab.VM, "c", 1, 1, 1)}}
	if p, m := CPURatio(r, r.Rows[2]); p != 3 || m != 2 {
		t.Errorf("%v, %v; want 3, 2", p, m)
	}
	if p, m := CPURatio(r, r.Rows[3]); p != 0 || m != 0 {
		t.Errorf("without bare metal: %v, %v", p, m)
	}
}

// TestRunCPU measures a small plan in a lab of namespaces.
func TestRunCPU(t *testing.T) {
	files := filepath.Join(t.TempDir(), "sizes")
	cases, err := SizeCases(files, []int64{1_000_000}, 10)
	if err != nil {
		t.Fatal(err)
	}
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: files}
	plan := Plan{Cases: cases, Arms: lab.Arms(), Rounds: 2, Connections: 1}
	report, err := RunCPU(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if report.Bench != "cpu" {
		t.Errorf("bench %s", report.Bench)
	}
	for _, row := range report.Rows {
		names := []string{serverName, allProcesses}
		if row.Arm == string(lab.Lease) || row.Arm == string(lab.Offload) {
			names = append(names, hostName)
		}
		if len(row.Processes) != len(names) || len(row.Machine) != 4 {
			t.Errorf("%s: %+v, %v", row.Arm, row.Processes, row.Machine)
		}
		sum := 0.0
		for _, name := range names {
			p := row.Processes[name].CPUSecondsPerGB
			if p <= 0 {
				t.Errorf("%s: %s took no CPU time", row.Arm, name)
			}
			if name != allProcesses {
				sum += p
			}
		}
		if all := row.Processes[allProcesses].CPUSecondsPerGB; all < sum-0.001 || all > sum+0.001 {
			t.Errorf("%s: all processes took %v, each by itself %v", row.Arm, all, sum)
		}
	}
}
