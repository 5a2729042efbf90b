package evaluation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"spillway/internal/bench"
	"spillway/internal/config"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// PathPlan says what to measure of a path with delay: what a change of hands costs a client whose connection has been in use before.
//
// Each round and arm is a connection of its own. Its first response is served by the server's own kernel in every arm, and lets the congestion window grow.
// The next is the first that an offloading arm hands over, and then there are some more.
type PathPlan struct {
	Sizes     []int64 // bytes of a response; each is measured in a lab of its own
	Arms      []lab.Arm
	Rounds    int // connections of each arm
	Following int // responses of a connection behind the first that is handed over
}

// Validate tells whether the plan can be measured.
func (p PathPlan) Validate() error {
	for _, size := range p.Sizes {
		if size < 2 {
			return fmt.Errorf("sizes: %d; at least 2 bytes are needed", size)
		}
	}
	if p.Following < 1 {
		return fmt.Errorf("following: %d; at least 1 is needed", p.Following)
	}
	return p.plan().Validate()
}

func (p PathPlan) plan() Plan { return Plan{Arms: p.Arms, Rounds: p.Rounds, Connections: 1} }

// stage is the place of a response in its connection.
type stage int

const (
	warmUp    stage = iota // served by the server's own kernel
	first                  // the first that is handed over
	following              // the others
	stages
)

var stageNames = [stages]string{"warm-up", "first", "following"}

// RunPath measures a plan and returns a row for each size, stage and arm, in this order. The files are made below dir, which is opts.Files.
//
// The threshold of the offloading arms is the size; the warm-up's file is a byte smaller, so that the guest serves it by itself. What servers and link count
// is of whole connections: it stands in the rows of the first response.
func RunPath(ctx context.Context, opts lab.Options, plan PathPlan, progress *bench.Progress) (report *bench.Report, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as in Measure
	if err := os.MkdirAll(opts.Files, 0o755); err != nil {
		return nil, err
	}
	var errs []error
	for _, size := range plan.Sizes {
		m := pathMeasurement{plan: plan, size: size, progress: progress}
		if err := m.makeFiles(opts.Files); err != nil {
			return report, err
		}
		opts.Threshold = config.Threshold(size)
		err := inLab(ctx, opts, progress, func(l *lab.Lab) error {
			if report == nil {
				env, err := environment(l)
				if err != nil {
					return err
				}
				report = bench.NewReport("path", env)
			}
			rows, err := m.run(ctx, l)
			report.Rows = append(report.Rows, rows...)
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", SizeName(size), err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return report, errors.Join(errs...)
}

// pathMeasurement is one size in progress.
type pathMeasurement struct {
	lab      *lab.Lab
	plan     PathPlan
	size     int64
	progress *bench.Progress
	targets  [stages][]bench.Target
	drops    map[lab.Arm]bench.Counts // of the timed connections, by the link
}

// makeFiles makes the segment and the warm-up's, which is a byte smaller.
func (m *pathMeasurement) makeFiles(dir string) error {
	for s := range stages {
		size, n := m.size, 1
		switch s {
		case warmUp:
			size--
		case following:
			n = m.plan.Following
		}
		name := fmt.Sprintf("%d.bin", size)
		sum, err := writeFile(filepath.Join(dir, name), size)
		if err != nil {
			return err
		}
		m.targets[s] = nil
		for range n {
			m.targets[s] = append(m.targets[s], bench.Target{Path: lab.URLPath(name), Bytes: size, SHA256: sum})
		}
	}
	return nil
}

// armRecorders are what an arm's clients saw, by stage.
type armRecorders [stages]bench.Recorder

// run measures the size in a lab.
func (m *pathMeasurement) run(ctx context.Context, l *lab.Lab) ([]bench.Row, error) {
	m.lab = l
	timed, verified := map[lab.Arm]*armRecorders{}, map[lab.Arm]*armRecorders{}
	names := make([]string, len(m.plan.Arms))
	for i, arm := range m.plan.Arms {
		names[i] = string(arm)
		timed[arm], verified[arm] = &armRecorders{}, &armRecorders{}
		m.progress.Step("%s, %s: checking every body", SizeName(m.size), arm)
		err := m.connection(ctx, arm, true, verified[arm])
		if err == nil {
			_, err = settled(ctx, l, arm)
		}
		if err == nil {
			err = l.ResetServerStats(ctx, arm)
		}
		if err != nil {
			return nil, err
		}
	}
	m.drops = map[lab.Arm]bench.Counts{}
	err := bench.Interleave(ctx, names, m.plan.Rounds, func(ctx context.Context, arm string, round int) error {
		m.progress.Step("%s, %s: round %d of %d", SizeName(m.size), arm, round+1, m.plan.Rounds)
		return m.countDrops(ctx, lab.Arm(arm), func() error { return m.connection(ctx, lab.Arm(arm), false, timed[lab.Arm(arm)]) })
	})
	if err != nil {
		return nil, err
	}
	m.progress.Done("")
	stats := map[lab.Arm]guest.Snapshot{}
	for _, arm := range m.plan.Arms {
		if stats[arm], err = settled(ctx, l, arm); err != nil {
			return nil, err
		}
	}
	return m.rows(timed, verified, stats)
}

// connection requests the targets of all stages over a new connection.
func (m *pathMeasurement) connection(ctx context.Context, arm lab.Arm, verify bool, into *armRecorders) error {
	c := newClient(m.lab, arm)
	defer c.Close()
	for s := range stages {
		if err := bench.Pass(ctx, c, m.targets[s], verify, &into[s], nil); err != nil {
			return err
		}
	}
	return nil
}

// countDrops adds what the link drops while fn runs; a link without a delay line tells nothing.
func (m *pathMeasurement) countDrops(ctx context.Context, arm lab.Arm, fn func() error) error {
	if _, ok := m.lab.Link.DelayLine(); !ok {
		return fn()
	}
	before, err := m.lab.LinkStats(ctx)
	if err == nil {
		err = fn()
	}
	if err != nil {
		return err
	}
	after, err := m.lab.LinkStats(ctx)
	if err != nil {
		return err
	}
	if m.drops[arm] == nil {
		m.drops[arm] = bench.Counts{}
	}
	for cause, n := range after.Drops() {
		m.drops[arm][cause] += n - before.Drops()[cause]
	}
	return nil
}

// rows joins what clients and servers have seen.
func (m *pathMeasurement) rows(timed, verified map[lab.Arm]*armRecorders, stats map[lab.Arm]guest.Snapshot) ([]bench.Row, error) {
	var rows []bench.Row
	var doubts []error
	for s := range stages {
		for _, arm := range m.plan.Arms {
			counted := guest.Snapshot{}
			if s == first {
				counted = stats[arm]
			}
			row, wrong := newRow(arm, SizeName(m.size)+" "+stageNames[s], &timed[arm][s], &verified[arm][s], counted)
			if s == first {
				row.Drops = m.drops[arm]
			}
			rows, doubts = append(rows, row), append(doubts, wrong)
		}
	}
	for _, arm := range m.plan.Arms {
		doubts = append(doubts, m.offloadedAsPlanned(arm, timed[arm], stats[arm]))
	}
	return rows, errors.Join(doubts...)
}

// offloadedAsPlanned doubts the figures of an arm whose warm-up was not the guest's, or whose other responses were.
func (m *pathMeasurement) offloadedAsPlanned(arm lab.Arm, timed *armRecorders, stats guest.Snapshot) error {
	n := timed[first].Summary().N + timed[following].Summary().N
	err := offloaded(arm, n, stats)
	if sends := int(stats.Counts.Sends); err == nil && sends > n {
		err = fmt.Errorf("arm %s sent %d responses through the host, more than the %d behind the warm-ups", arm, sends, n)
	}
	if over := int(stats.Counts.Handovers); err == nil && arm == lab.Lease && float64(over) < minOffloaded*float64(m.plan.Rounds) {
		err = fmt.Errorf("arm %s handed only %d of %d connections over: %v", arm, over, m.plan.Rounds, stats.Fallbacks)
	}
	return err
}
