package evaluation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// Target is a server that is already there, and the arm of its rows. It serves the files of the cases below its path.
type Target struct {
	Arm  string
	Addr string // host:port
	Path string // begins and ends with a slash
}

// ParseTarget reads NAME=URL, or a URL alone, whose arm is "target".
func ParseTarget(s string) (Target, error) {
	name, address, found := strings.Cut(s, "=")
	if !found || strings.Contains(name, "/") {
		name, address = "target", s
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || name == "" || u.RawQuery != "" {
		return Target{}, fmt.Errorf("target %q: write http://HOST[:PORT]/PATH/, or NAME=http://…", s)
	}
	t := Target{Arm: name, Addr: u.Host, Path: u.EscapedPath()}
	if u.Port() == "" {
		t.Addr = net.JoinHostPort(u.Hostname(), "80")
	}
	if !strings.HasSuffix(t.Path, "/") {
		t.Path += "/"
	}
	return t, nil
}

// RunTargets measures a plan against servers that are already there, in place of its arms. Nothing is known of them but what the client sees.
func RunTargets(ctx context.Context, name string, targets []Target, plan Plan, progress *bench.Progress) (*bench.Report, error) {
	plan.Arms = nil
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	var arms []string
	for _, t := range targets {
		if slices.Contains(arms, t.Arm) {
			return nil, fmt.Errorf("target: %s is there twice; name them as in a=http://… b=http://…", t.Arm)
		}
		arms = append(arms, t.Arm)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	report := bench.NewReport(name, bench.Env{Accelerator: "unknown", Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Link: "unknown"})
	var errs []error
	for _, c := range plan.Cases {
		rows, err := measureTargets(ctx, targets, arms, plan, c, progress)
		report.Rows = append(report.Rows, rows...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Name, err))
		}
		if len(rows) < len(targets) {
			break
		}
	}
	return report, errors.Join(errs...)
}

// measureTargets is one case.
func measureTargets(ctx context.Context, targets []Target, arms []string, plan Plan, c Case, progress *bench.Progress) ([]bench.Row, error) {
	recorders, verified, paces := make([]bench.Recorder, len(targets)), make([]bench.Recorder, len(targets)), make([]pace, len(targets))
	for i, t := range targets {
		progress.Step("%s, %s: checking every body", c.Name, t.Arm)
		if err := t.pass(ctx, (&measurement{of: c}).distinct(), plan.Connections, true, &verified[i]); err != nil {
			return nil, err
		}
	}
	err := bench.Interleave(ctx, arms, plan.Rounds, func(ctx context.Context, arm string, round int) error {
		progress.Step("%s, %s: round %d of %d", c.Name, arm, round+1, plan.Rounds)
		i := slices.Index(arms, arm)
		return paces[i].measure(&recorders[i], func() error { return targets[i].pass(ctx, c.Targets, plan.Connections, false, &recorders[i]) })
	})
	if err != nil {
		return nil, err
	}
	progress.Done("")
	var rows []bench.Row
	var doubts []error
	for i, t := range targets {
		row, doubt := newRow(lab.Arm(t.Arm), c.Name, &recorders[i], &verified[i], guest.Snapshot{})
		paces[i].report(&row, &recorders[i])
		row.CaseBytes = c.oneSize()
		if plan.Connections > 1 {
			row.Connections = plan.Connections
		}
		doubts = append(doubts, doubt)
		if plan.Refuse {
			doubts = append(doubts, refuse(&row))
		}
		rows = append(rows, row)
	}
	return rows, errors.Join(doubts...)
}

// pass requests the files over new connections.
func (t Target) pass(ctx context.Context, files []bench.Target, connections int, verify bool, into *bench.Recorder) error {
	there := slices.Clone(files)
	for i := range there {
		there[i].Path = t.Path + lab.SharedFile(there[i].Path)
	}
	recorders, errs := make([]bench.Recorder, connections), make([]error, connections)
	var wait sync.WaitGroup
	start := time.Now()
	for i := range connections {
		wait.Go(func() {
			c := bench.NewClient(t.Addr, bench.ClientOptions{})
			defer c.Close()
			errs[i] = bench.Pass(ctx, c, there, verify, &recorders[i], nil)
		})
	}
	wait.Wait()
	into.AddElapsed(time.Since(start))
	for i := range recorders {
		into.Merge(&recorders[i])
	}
	return errors.Join(errs...)
}
