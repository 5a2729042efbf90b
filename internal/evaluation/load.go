package evaluation

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
)

// BottleneckError says that an arm was not measured, but the load generator.
type BottleneckError struct {
	Arm, Case string
	Load      bench.Load
}

func (e *BottleneckError) Error() string {
	return fmt.Sprintf("arm %s, %s: the load generator was the bottleneck: it used %.0f %% of its CPUs while %.1f of the machine's had nothing to do; "+
		"its figures are refused; use more connections, or a client on a machine of its own (--target)", e.Arm, e.Case, 100*e.Load.ClientCPU, e.Load.IdleCPUs)
}

// pace is how fast an arm's timed passes were, one by one, and how busy that kept this process, which is the load generator.
type pace struct {
	rounds              []bench.Round
	wall, client, idle  time.Duration
	allowedCPUs, passes float64
}

// measure adds a pass, which adds to the recorder.
func (p *pace) measure(rec *bench.Recorder, pass func() error) error {
	bytes, elapsed := rec.Bytes(), rec.Elapsed()
	client, err := ownTime()
	if err != nil {
		return err
	}
	idle, err := idleTime()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := pass(); err != nil {
		return err
	}
	p.wall += time.Since(start)
	clientAfter, err := ownTime()
	if err != nil {
		return err
	}
	idleAfter, err := idleTime()
	p.client, p.idle = p.client+clientAfter-client, p.idle+idleAfter-idle
	p.allowedCPUs, p.passes = p.allowedCPUs+float64(runtime.GOMAXPROCS(0)), p.passes+1
	p.rounds = append(p.rounds, bench.Round{Bytes: rec.Bytes() - bytes, Elapsed: rec.Elapsed() - elapsed})
	return err
}

// minJudged is the shortest time of all passes together that tells how busy the machine was: /proc/stat counts in 10 ms, which 6 passes make about 15 ms of
// doubt, and the limits of a bottleneck need 0.2 CPUs to be told from none.
const minJudged = 200 * time.Millisecond

// report puts the spread and the load into a row.
func (p *pace) report(row *bench.Row, rec *bench.Recorder) {
	row.Spread = rec.SpreadOf(p.rounds)
	if p.wall >= minJudged {
		cpus := p.allowedCPUs / p.passes
		row.Load = &bench.Load{ClientCPU: rounded(p.client.Seconds() / p.wall.Seconds() / cpus), IdleCPUs: rounded(p.idle.Seconds() / p.wall.Seconds())}
	}
}

// refuse marks a row whose figures are the load generator's, and says so.
func refuse(row *bench.Row) error {
	if row.Load == nil || !row.Load.Bottleneck() {
		return nil
	}
	row.Refused = bench.RefusedBottleneck
	return &BottleneckError{Arm: row.Arm, Case: row.Case, Load: *row.Load}
}

// ownTime is what all threads of this process have run on CPUs.
func ownTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, os.NewSyscallError("getrusage", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// idleTime is what all CPUs of the machine together have had nothing to do, waiting for disks included.
func idleTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line) // cpu user nice system idle iowait …, proc_stat(5)
	const idle, iowait, userHz = 4, 5, 100
	if len(f) <= iowait || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var sum int64
	for _, column := range []int{idle, iowait} {
		ticks, err := strconv.ParseInt(f[column], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		sum += ticks
	}
	return time.Duration(sum) * time.Second / userHz, nil
}
