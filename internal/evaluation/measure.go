package evaluation

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
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

// oneSize is the size of all bodies, or 0 if they differ.
func (c Case) oneSize() int64 {
	if len(c.Targets) == 0 || slices.ContainsFunc(c.Targets, func(t bench.Target) bool { return t.Bytes != c.Targets[0].Bytes }) {
		return 0
	}
	return c.Targets[0].Bytes
}

// Plan says what to measure.
type Plan struct {
	Cases       []Case
	Arms        []lab.Arm
	Rounds      int  // timed passes of each arm
	Connections int  // that run at the same time, each with all targets
	NoStalls    bool // a stall in an arm that offloads is an error
	Refuse      bool // rows whose load generator was the bottleneck

	cpu      bool // measure CPU time, see RunCPU
	timeline bool // of the first timed pass of each arm

	prepare func() error // what is to be done behind the checks and before the timed passes; nil: nothing
}

// Validate tells whether the plan can be measured.
func (p Plan) Validate() error {
	if p.Rounds < 1 {
		return fmt.Errorf("rounds: %d; at least 1 is needed", p.Rounds)
	}
	if p.Connections < 1 {
		return fmt.Errorf("connections: %d; at least 1 is needed", p.Connections)
	}
	for i, arm := range p.Arms {
		if !slices.Contains(lab.AllArms(), arm) {
			return fmt.Errorf("arms: there is no arm %q; use some of %v", arm, lab.AllArms())
		}
		if arm == lab.VMCold && p.Connections > 1 {
			return fmt.Errorf("arms: %s drops the caches before each request, and cannot while %d connections ask", arm, p.Connections)
		}
		if slices.Contains(p.Arms[:i], arm) {
			return fmt.Errorf("arms: %s is there twice", arm)
		}
	}
	return nil
}

// Measure runs a plan in a lab and returns a row for each case and arm, cases first. Rows whose figures are not to be trusted, as bodies were
// wrong or went another way, come together with an error; the first case that cannot be measured at all ends it.
func Measure(ctx context.Context, l *lab.Lab, plan Plan, progress *bench.Progress) ([]bench.Row, error) {
	return measure(ctx, l, plan, progress)
}

// measure is Measure, in a lab or on the user's machines.
func measure(ctx context.Context, s site, plan Plan, progress *bench.Progress) ([]bench.Row, error) {
	if plan.Connections == 1 {
		// One connection needs one CPU; idle Go threads of the client would take the other one from the servers.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	var rows []bench.Row
	var errs []error
	for _, c := range plan.Cases {
		m := measurement{site: s, plan: plan, of: c, progress: progress, recorders: map[lab.Arm]*bench.Recorder{},
			timeouts: map[lab.Arm]bench.Counts{}, meters: map[lab.Arm]*cpuMeter{}, paces: map[lab.Arm]*pace{}, timelines: map[lab.Arm]*tracker{}}
		got, err := m.run(ctx)
		rows = append(rows, got...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Name, err))
		}
		if len(got) < len(plan.Arms) {
			break
		}
	}
	return rows, errors.Join(errs...)
}

// measurement is one case in progress.
type measurement struct {
	site      site
	plan      Plan
	of        Case
	progress  *bench.Progress
	recorders map[lab.Arm]*bench.Recorder // of the timed passes
	timeouts  map[lab.Arm]bench.Counts    // of TCP, in these passes
	meters    map[lab.Arm]*cpuMeter       // likewise, if CPU time is measured
	paces     map[lab.Arm]*pace           // of the timed passes
	timelines map[lab.Arm]*tracker        // of the first timed pass, if that is wanted
	tracking  *tracker                    // of the pass under way, or nil
}

// run measures the case. Without an error, or with doubts about the figures only, it returns a row for each arm.
func (m *measurement) run(ctx context.Context) ([]bench.Row, error) {
	verified := map[lab.Arm]*bench.Recorder{}
	for _, arm := range m.plan.Arms {
		m.recorders[arm], m.meters[arm], m.paces[arm] = &bench.Recorder{}, &cpuMeter{}, &pace{}
		verified[arm] = &bench.Recorder{}
		m.progress.Step("%s, %s: checking every body", m.of.Name, arm)
		if err := m.pass(ctx, arm, m.distinct(), true, verified[arm]); err != nil {
			return nil, err
		}
		if _, err := settled(ctx, m.site, arm); err != nil { // else the timed passes would count handovers of this one
			return nil, err
		}
		if err := m.site.ResetServerStats(ctx, arm); err != nil {
			return nil, err
		}
	}
	if m.plan.prepare != nil {
		if err := m.plan.prepare(); err != nil {
			return nil, err
		}
	}
	arms := make([]string, len(m.plan.Arms))
	for i, a := range m.plan.Arms {
		arms[i] = string(a)
	}
	err := bench.Interleave(ctx, arms, m.plan.Rounds, func(ctx context.Context, arm string, round int) error {
		m.progress.Step("%s, %s: round %d of %d", m.of.Name, arm, round+1, m.plan.Rounds)
		return m.countTimeouts(ctx, lab.Arm(arm), func() error { return m.timedPass(ctx, lab.Arm(arm)) })
	})
	if err != nil {
		return nil, err
	}
	m.progress.Done("")
	var rows []bench.Row
	var doubts []error
	for _, arm := range m.plan.Arms {
		stats, err := settled(ctx, m.site, arm)
		if err != nil {
			return rows, errors.Join(append(doubts, err)...)
		}
		row, err := newRow(arm, m.of.Name, m.recorders[arm], verified[arm], stats)
		row.TCPTimeouts = m.timeouts[arm]
		m.paces[arm].report(&row, m.recorders[arm])
		row.CaseBytes, row.Timeline = m.of.oneSize(), m.timelines[arm].report()
		if m.plan.Refuse {
			doubts = append(doubts, refuse(&row))
		}
		if m.plan.cpu {
			m.meters[arm].report(&row)
		}
		rows, doubts = append(rows, row), append(doubts, err, offloaded(arm, row.N, stats))
		if m.plan.NoStalls {
			doubts = append(doubts, stalled(arm, row))
		}
	}
	m.compare(rows)
	return rows, errors.Join(doubts...)
}

// compare puts what an arm got of lease's bandwidth, round by round, into the row of lease-cache, which is about that.
func (m *measurement) compare(rows []bench.Row) {
	base := m.paces[lab.Lease]
	for i := range rows {
		if rows[i].Arm != string(lab.LeaseCache) || base == nil {
			continue
		}
		var ratios []float64
		for round, r := range m.paces[lab.LeaseCache].rounds {
			b := base.rounds[round]
			if r.Bytes > 0 && b.Bytes > 0 && r.Elapsed > 0 {
				ratios = append(ratios, float64(r.Bytes)/float64(b.Bytes)*float64(b.Elapsed)/float64(r.Elapsed))
			}
		}
		in := bench.MedianInterval(ratios)
		rows[i].ToLease = &in
	}
}

// timedPass is a pass whose figures count.
func (m *measurement) timedPass(ctx context.Context, arm lab.Arm) error {
	if m.plan.timeline && m.timelines[arm] == nil {
		m.tracking = &tracker{start: time.Now()}
		m.timelines[arm] = m.tracking
		defer func() { m.tracking = nil }()
	}
	pass := func() error {
		return m.paces[arm].measure(m.recorders[arm], func() error { return m.pass(ctx, arm, m.of.Targets, false, m.recorders[arm]) })
	}
	if !m.plan.cpu {
		return pass()
	}
	// Asking a server in a VM whether it has settled costs as much as a few requests, and is done before the meter runs.
	if _, err := settled(ctx, m.site, arm); err != nil {
		return err
	}
	return m.meters[arm].measure(m.site, arm, pass)
}

// settleTimeout bounds the wait for a server that still learns that its clients have gone.
const settleTimeout = 5 * time.Second

// settled waits until no connection of an arm is with the host and returns what the server counted up to then.
func settled(ctx context.Context, s site, arm lab.Arm) (guest.Snapshot, error) {
	for deadline := time.Now().Add(settleTimeout); ; {
		stats, err := s.ServerStats(ctx, arm)
		if err != nil || stats.Leases == 0 {
			return stats, err
		}
		if time.Now().After(deadline) {
			return stats, fmt.Errorf("arm %s: the host still has %d connections %v after their clients closed them", arm, stats.Leases, settleTimeout)
		}
		select {
		case <-ctx.Done():
			return stats, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
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
	targets = there(m.site, arm, targets)
	recorders := make([]bench.Recorder, m.plan.Connections)
	errs := make([]error, m.plan.Connections)
	clients := make([]*bench.Client, m.plan.Connections)
	for i := range clients {
		clients[i] = newClient(m.site, arm)
		defer clients[i].Close()
	}
	if arm == lab.VMCold {
		if err := m.coldPass(ctx, clients[0], targets, verify, &recorders[0]); err != nil {
			return err
		}
		into.AddElapsed(recorders[0].Elapsed())
		into.Merge(&recorders[0])
		return nil
	}
	var wait sync.WaitGroup
	start := time.Now()
	for i, c := range clients {
		wait.Go(func() {
			done := 0
			errs[i] = bench.Pass(ctx, c, targets, verify, &recorders[i], func(res bench.Result) {
				if done++; i == 0 {
					if m.tracking != nil {
						m.tracking.add(time.Now(), res)
					}
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

// coldPass drops the caches before each request. The time for that is no part of any figure.
func (m *measurement) coldPass(ctx context.Context, c *bench.Client, targets []bench.Target, verify bool, into *bench.Recorder) error {
	for i, target := range targets {
		if err := m.site.DropCaches(ctx, lab.SharedFile(target.Path)); err != nil {
			return err
		}
		if err := bench.Pass(ctx, c, []bench.Target{target}, verify, into, nil); err != nil {
			return err
		}
		m.progress.Update("%d of %d", i+1, len(targets))
	}
	// What follows, of other arms, shall find the caches as they were.
	return bench.Pass(ctx, c, m.distinct(), false, &bench.Recorder{}, nil)
}

// countTimeouts adds the TCP retransmission timeouts that the kernels count while fn runs.
func (m *measurement) countTimeouts(ctx context.Context, arm lab.Arm, fn func() error) error {
	before, err := m.site.TCPTimeouts(ctx)
	if err == nil {
		err = fn()
	}
	if err != nil {
		return err
	}
	after, err := m.site.TCPTimeouts(ctx)
	if err != nil {
		return err
	}
	for side, n := range after {
		if n -= before[side]; n == 0 {
			continue
		}
		if m.timeouts[arm] == nil {
			m.timeouts[arm] = bench.Counts{}
		}
		m.timeouts[arm][side] += n
	}
	return nil
}

// newRow joins what the clients saw in the timed passes and in the check pass with what the server counted. The row is whole even when there is
// an error, which says why its figures are not to be trusted.
func newRow(arm lab.Arm, dataCase string, timed, verified *bench.Recorder, stats guest.Snapshot) (bench.Row, error) {
	row := timed.Row(string(arm), dataCase)
	row.Wrong += verified.Wrong()
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
	doubts := slices.Concat(verified.Errors(), timed.Errors())
	if row.Wrong > 0 {
		doubts = slices.Insert(doubts, 0, fmt.Errorf("arm %s: %d wrong bodies, the first of them follow", arm, row.Wrong))
	}
	return row, errors.Join(doubts...)
}

// minOffloaded is the part of the responses that an offloading arm must have sent through the host, and arm offload must have handed the
// connection over for, for its figures to be its own.
const minOffloaded = 0.95

func offloaded(arm lab.Arm, responses int, stats guest.Snapshot) error {
	if !offloads(arm) {
		return nil
	}
	enough := minOffloaded * float64(responses)
	if float64(stats.Counts.Sends) < enough {
		return fmt.Errorf("arm %s sent only %d of %d responses through the host; the others were served by the guest: %v",
			arm, stats.Counts.Sends, responses, stats.Fallbacks)
	}
	// Not the handbacks: a client that closes its connection after a response is not waited for.
	if arm == lab.Offload && float64(stats.Counts.Handovers) < enough {
		return fmt.Errorf("arm %s handed the connection over for only %d of %d responses", arm, stats.Counts.Handovers, responses)
	}
	return nil
}

// stalled doubts an arm that offloads and stalls.
func stalled(arm lab.Arm, row bench.Row) error {
	if row.Stalls == 0 || !offloads(arm) {
		return nil
	}
	return fmt.Errorf("arm %s: %d waits of more than %v within a request; TCP retransmission timeouts meanwhile: %v",
		arm, row.Stalls, bench.DefaultStallAfter, row.TCPTimeouts)
}
