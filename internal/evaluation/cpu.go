package evaluation

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// RunCPU measures what the programs of each arm run on CPUs for each GB that they send. Its rows have the figures of [Run], and those of the processes:
// the host daemon, the arm's server where it runs on this machine, and QEMU, which runs the guest. The client is in the machine's figures only.
func RunCPU(ctx context.Context, opts lab.Options, plan Plan, progress *bench.Progress) (*bench.Report, error) {
	plan.cpu = true
	return Run(ctx, "cpu", opts, plan, progress)
}

// MaxCPURatio is what an arm that offloads may take of CPU time, compared with bare metal.
const MaxCPURatio = 1.05

// allProcesses is the sum of an arm's processes in a report.
const allProcesses = "all"

// cpuMeter adds up what the passes of one arm take.
type cpuMeter struct {
	processes map[string]time.Duration
	machine   map[string]time.Duration
}

// armProcesses are the processes that work for an arm, by their names in a report. The others of the lab are idle meanwhile.
func armProcesses(s site, arm lab.Arm) map[string]int {
	pids := s.PIDs()
	found := map[string]int{}
	if pid, ok := pids[string(arm)]; ok {
		found[serverName] = pid
	}
	if pid, ok := pids[lab.QEMUProcess]; ok && arm != lab.Baremetal && arm != lab.NginxHost {
		found[lab.QEMUProcess] = pid
	}
	if pid, ok := pids["host"]; ok && offloads(arm) {
		found[hostName] = pid
	}
	return found
}

// measure adds what the processes of an arm, and all CPUs, take while fn runs.
func (c *cpuMeter) measure(s site, arm lab.Arm, fn func() error) error {
	pids := armProcesses(s, arm)
	machine, err := machineTimes()
	if err != nil {
		return err
	}
	before := map[string]time.Duration{}
	for name, pid := range pids {
		if before[name], err = treeTime(pid); err != nil {
			return err
		}
	}
	if err := fn(); err != nil {
		return err
	}
	if c.processes == nil {
		c.processes, c.machine = map[string]time.Duration{}, map[string]time.Duration{}
	}
	for name, pid := range pids {
		now, err := treeTime(pid)
		if err != nil {
			return fmt.Errorf("%s has ended: %w", name, err)
		}
		c.processes[name] += now - before[name]
		c.processes[allProcesses] += now - before[name]
	}
	after, err := machineTimes()
	for name := range after {
		c.machine[name] += after[name] - machine[name]
	}
	return err
}

// treeTime is the CPU time of a process and of its children: nginx works in these.
func treeTime(pid int) (time.Duration, error) {
	sum, err := cpuTime(pid)
	if err != nil {
		return 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for f := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		d, err := cpuTime(child)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// report puts the meter's sums, divided by what was sent, into a row.
func (c *cpuMeter) report(row *bench.Row) {
	if row.Bytes == 0 {
		return
	}
	perGB := func(d time.Duration) float64 { return rounded(d.Seconds() / (float64(row.Bytes) / 1e9)) }
	row.Processes, row.Machine = map[string]bench.Process{}, map[string]float64{}
	for name, d := range c.processes {
		row.Processes[name] = bench.Process{CPUSecondsPerGB: perGB(d)}
	}
	for name, d := range c.machine {
		row.Machine[name] = perGB(d)
	}
}

// rounded keeps four digits behind the point: a request of 4 KB takes some of the last.
func rounded(v float64) float64 { return math.Round(v*1e4) / 1e4 }

// CPURatio compares an arm's CPU time for each GB with bare metal's, in the same case: that of its processes, and that of the whole machine, with the
// client and whatever else ran. A ratio that is not known is 0.
func CPURatio(report *bench.Report, row bench.Row) (processes, machine float64) {
	i := slices.IndexFunc(report.Rows, func(r bench.Row) bool { return r.Case == row.Case && r.Arm == string(lab.Baremetal) })
	if i < 0 {
		return 0, 0
	}
	ratio := func(of func(bench.Row) float64) float64 {
		if base := of(report.Rows[i]); base > 0 {
			return of(row) / base
		}
		return 0
	}
	processes = ratio(func(r bench.Row) float64 { return r.Processes[allProcesses].CPUSecondsPerGB })
	machine = ratio(func(r bench.Row) (sum float64) {
		for _, v := range r.Machine {
			sum += v
		}
		return sum
	})
	return processes, machine
}
