package evaluation

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// Case is what one pass requests, in order, over each of its connections.
type Case struct {
	Name    string
	Targets []bench.Target
}

// Plan says what to measure.
type Plan struct {
	Cases       []Case
	Arms        []lab.Arm
	Rounds      int // timed passes of each arm
	Connections int // that run at the same time, each with all targets
}

// Measure runs a plan in a lab and returns a row for each case and arm, cases first.
func Measure(ctx context.Context, l *lab.Lab, plan Plan, progress *bench.Progress) ([]bench.Row, error) {
	if plan.Connections <= 1 {
		// One connection needs one CPU; idle Go threads of the client would take the other one from the servers.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	var rows []bench.Row
	for _, c := range plan.Cases {
		m := measurement{lab: l, plan: plan, of: c, progress: progress, recorders: map[lab.Arm]*bench.Recorder{}}
		got, err := m.run(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		rows = append(rows, got...)
	}
	return rows, nil
}

// measurement is one case in progress.
type measurement struct {
	lab       *lab.Lab
	plan      Plan
	of        Case
	progress  *bench.Progress
	recorders map[lab.Arm]*bench.Recorder // of the timed passes
}

func (m *measurement) run(ctx context.Context) ([]bench.Row, error) {
	verified := map[lab.Arm]*bench.Recorder{}
	for _, arm := range m.plan.Arms {
		m.recorders[arm] = &bench.Recorder{}
		verified[arm] = &bench.Recorder{}
		m.progress.Step("%s, %s: checking every body", m.of.Name, arm)
		if err := m.pass(ctx, arm, m.distinct(), true, verified[arm]); err != nil {
			return nil, err
		}
		if err := m.lab.ResetServerStats(ctx, arm); err != nil {
			return nil, err
		}
	}
	arms := make([]string, len(m.plan.Arms))
	for i, a := range m.plan.Arms {
		arms[i] = string(a)
	}
	err := bench.Interleave(ctx, arms, m.plan.Rounds, func(ctx context.Context, arm string, round int) error {
		m.progress.Step("%s, %s: round %d of %d", m.of.Name, arm, round+1, m.plan.Rounds)
		return m.pass(ctx, lab.Arm(arm), m.of.Targets, false, m.recorders[lab.Arm(arm)])
	})
	if err != nil {
		return nil, err
	}
	m.progress.Done("")
	var rows []bench.Row
	for _, arm := range m.plan.Arms {
		row, err := m.row(ctx, arm, verified[arm])
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// distinct are the targets without repetitions.
func (m *measurement) distinct() []bench.Target {
	seen := map[string]bool{}
	var out []bench.Target
	for _, t := range m.of.Targets {
		if !seen[t.Path] {
			seen[t.Path] = true
			out = append(out, t)
		}
	}
	return out
}

// pass requests the targets through an arm, over new connections.
func (m *measurement) pass(ctx context.Context, arm lab.Arm, targets []bench.Target, verify bool, into *bench.Recorder) error {
	connections := max(m.plan.Connections, 1)
	recorders := make([]bench.Recorder, connections)
	errs := make([]error, connections)
	clients := make([]*bench.Client, connections)
	for i := range clients {
		clients[i] = bench.NewClient(m.lab.Addr(arm), bench.ClientOptions{Dial: m.lab.DialContext})
		defer clients[i].Close()
	}
	var wait sync.WaitGroup
	start := time.Now()
	for i, c := range clients {
		wait.Go(func() {
			done := 0
			errs[i] = bench.Pass(ctx, c, targets, verify, &recorders[i], func(bench.Result) {
				if done++; i == 0 {
					m.progress.Update("%d of %d", done, len(targets))
				}
			})
		})
	}
	wait.Wait()
	into.AddElapsed(time.Since(start))
	for i := range recorders {
		into.Merge(&recorders[i])
	}
	return errors.Join(errs...)
}

// row joins what the clients saw with what the server counted.
func (m *measurement) row(ctx context.Context, arm lab.Arm, verified *bench.Recorder) (bench.Row, error) {
	rec := m.recorders[arm]
	row := rec.Row(string(arm), m.of.Name)
	row.Wrong += verified.Wrong()
	stats, err := m.lab.ServerStats(ctx, arm)
	if err != nil {
		return row, err
	}
	row.Handovers, row.Handbacks = int64(stats.Counts.Handovers), int64(stats.Counts.Handbacks)
	row.Fallbacks = bench.Counts{}
	for reason, n := range stats.Fallbacks {
		row.Fallbacks[reason] = int64(n)
	}
	for step, q := range stats.Steps {
		if row.Steps == nil {
			row.Steps = map[string]bench.Step{}
		}
		row.Steps[string(step)] = bench.Step{MedianUs: q.Median, P99Us: q.P99}
	}
	return row, errors.Join(append(rec.Errors(), append(verified.Errors(), offloaded(arm, row, stats))...)...)
}

// minOffloaded is the part of the responses that an offloading arm must have sent through the host for its figures to be its own.
const minOffloaded = 0.95

func offloaded(arm lab.Arm, row bench.Row, stats guest.Snapshot) error {
	if arm != lab.Offload && arm != lab.Lease {
		return nil
	}
	if float64(stats.Counts.Sends) >= minOffloaded*float64(row.N) {
		return nil
	}
	return fmt.Errorf("arm %s sent only %d of %d responses through the host; the others were served by the guest: %v",
		arm, stats.Counts.Sends, row.N, stats.Fallbacks)
}
