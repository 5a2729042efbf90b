package evaluation

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// Names of processes in a report. A lab has the arms' servers under the arms' names.
const (
	hostName   = "host"
	serverName = "server"
)

// usage tells what the host daemon and an arm's server take at this moment. The server must run on this machine and not in a VM.
func usage(ctx context.Context, l *lab.Lab, arm lab.Arm) (map[string]bench.Process, error) {
	host, err := l.HostMetrics(ctx)
	if err != nil {
		return nil, err
	}
	server, err := l.ServerMetrics(ctx, arm)
	if err != nil {
		return nil, err
	}
	all := map[string]bench.Process{}
	for _, p := range []struct {
		name, process string
		metrics       map[string]float64
	}{{hostName, "host", host}, {serverName, string(arm), server}} {
		u, err := processUsage(l.PIDs()[p.process], l.Files)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		u.HeapBytes, u.StackBytes = int64(p.metrics["go_memstats_heap_inuse_bytes"]), int64(p.metrics["go_memstats_stack_inuse_bytes"])
		u.Goroutines = int(p.metrics["go_goroutines"])
		all[p.name] = u
	}
	return all, nil
}

// processUsage reads what the kernel tells of a process. Media are the files below a directory.
func processUsage(pid int, media string) (u bench.Process, err error) {
	if u, err = threadsAndFiles(pid, media); err != nil {
		return u, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(text)) { // "Rss:   1234 kB", proc_pid_smaps(5)
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return u, fmt.Errorf("smaps_rollup: %w", err)
		}
		switch f[0] {
		case "Rss:":
			u.RSSBytes = kib << 10
		case "Pss:":
			u.PSSBytes = kib << 10
		}
	}
	return u, nil
}

// threadsAndFiles counts what a process has of them.
func threadsAndFiles(pid int, media string) (u bench.Process, err error) {
	proc := fmt.Sprintf("/proc/%d", pid)
	tasks, err := os.ReadDir(filepath.Join(proc, "task"))
	if err != nil {
		return u, err
	}
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return u, err
	}
	u.Threads, u.OpenFiles = len(tasks), len(files)
	for _, f := range files {
		// One that was closed meanwhile fails, and is none.
		if target, err := os.Readlink(filepath.Join(proc, "fd", f.Name())); err == nil && strings.HasPrefix(target, media+"/") {
			u.MediaFiles++
		}
	}
	return u, nil
}

// cpuTime is what all threads of a process have run on CPUs, in user and system mode, those that have ended included.
func cpuTime(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED, include/linux/posix-timers_types.h: to the nanosecond, where /proc/PID/stat has ticks of 10 ms
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, os.NewSyscallError("clock_gettime", err))
	}
	return time.Duration(ts.Nano()), nil
}

// machineTimes are what all CPUs of the machine have spent, by what for.
func machineTimes() (map[string]time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq …, proc_stat(5)
	const irq, softirq, userHz = 6, 7, 100
	if len(f) <= softirq || f[0] != "cpu" {
		return nil, fmt.Errorf("/proc/stat begins with %q", line)
	}
	times := map[string]time.Duration{}
	for name, column := range map[string]int{"user": 1, "system": 3, "irq": irq, "softirq": softirq} {
		ticks, err := strconv.ParseInt(f[column], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/stat: %w", err)
		}
		times[name] = time.Duration(ticks) * time.Second / userHz
	}
	return times, nil
}
