package evaluation

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"spillway/internal/bench"
	"spillway/internal/host"
	"spillway/internal/lab"
	"spillway/internal/migrate"
)

// MovesPlan says how a VM moves there and back while clients stream from it, each over one connection from the beginning to the end.
type MovesPlan struct {
	Moves   int
	Between time.Duration // of undisturbed streaming, before each move and after the last
	Clients []MoveClients
	// BytesPerSecond of pre-copy; 0: as fast as it goes.
	BytesPerSecond int64
	Recall         bool // leases go back to the guest for a move, although they could go along
}

// MoveClients are some clients that ask for the files of a data set, one after the other, again and again.
type MoveClients struct {
	Set            string
	Count          int
	BytesPerSecond int64 // that each reads; 0: as fast as it comes
}

// DefaultMoveClients are one that downloads large segments, eight that download small ones, and one that reads slowly.
func DefaultMoveClients() []MoveClients {
	return []MoveClients{{"smarttv", 1, 0}, {"tablet", 8, 0}, {"smarttv", 1, 200_000}}
}

// MovesReport is what came of it. Its JSON form is an interface: fields are added, never renamed.
type MovesReport struct {
	Environment bench.Env    `json:"environment"`
	Requests    int64        `json:"requests"` // all of them answered, every byte compared
	Bytes       int64        `json:"bytes"`
	Moves       []MoveReport `json:"moves"`
	// Samples are for a plot: the bytes that all clients have received in each interval since Began.
	Began      time.Time `json:"began"`
	IntervalMs float64   `json:"interval_ms"`
	Samples    []int64   `json:"samples_bytes"`
}

// MoveReport is one move, as its clients saw it.
type MoveReport struct {
	migrate.Report
	StallMs       float64 `json:"stall_ms"`        // the longest time that a client waited for a byte it had asked for
	StallBeforeMs float64 `json:"stall_before_ms"` // the same, in as much time before the move
	BeforeMBps    float64 `json:"before_mb_per_s"`
	DuringMBps    float64 `json:"during_mb_per_s"` // from the first step to the guest's answer
	// Clients are sorted by their number; TCPTimeouts are retransmission timeouts from before the move to after it, by whose kernel has counted them.
	Clients     []MoveClient     `json:"clients"`
	TCPTimeouts map[string]int64 `json:"tcp_timeouts"`
}

// Validate tells whether the plan can be carried out.
func (p MovesPlan) Validate() error {
	if p.Moves < 1 || p.Between <= 0 {
		return fmt.Errorf("%d moves with %v in between: at least one is needed, and some time before it to compare with", p.Moves, p.Between)
	}
	return nil
}

// RunMoves carries out a plan in a lab of its own.
func RunMoves(ctx context.Context, opts lab.Options, files *lab.Files, plan MovesPlan, progress *bench.Progress) (report *MovesReport, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as in Measure
	opts.Progress = func(step string) { progress.Step("lab: %s", step) }
	s, err := lab.UpSegment(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, s.LogTails())
		}
		progress.Step("lab: down")
		err = errors.Join(err, s.Down())
		progress.Done("")
	}()
	m := &moves{lab: s, plan: plan, progress: progress, meter: newMeter()}
	if err := m.load(files); err != nil {
		return nil, err
	}
	return m.run(ctx)
}

// moves is a MovesPlan in progress.
type moves struct {
	lab      *lab.Segment
	plan     MovesPlan
	progress *bench.Progress
	meter    *meter
	content  map[string][]moveFile // by data set
}

// moveFile is a file that clients ask for.
type moveFile struct {
	url  string
	body []byte
}

// load reads what the clients are to receive.
func (m *moves) load(files *lab.Files) error {
	m.content = map[string][]moveFile{}
	for _, set := range files.Sets {
		for _, path := range set.Paths() {
			body, err := os.ReadFile(filepath.Join(files.Dir, path))
			if err != nil {
				return err
			}
			m.content[set.Name] = append(m.content[set.Name], moveFile{lab.URLPath(path), body})
		}
	}
	return nil
}

// run lets the clients stream and the VM move.
func (m *moves) run(ctx context.Context) (*MovesReport, error) {
	env, err := environment(m.lab.Lab)
	if err != nil {
		return nil, err
	}
	env.Accelerator, env.QEMU = string(m.lab.VMAccel()), m.lab.VMVersion()
	report := &MovesReport{Environment: env, Began: m.meter.began, IntervalMs: float64(meterInterval) / float64(time.Millisecond)}
	streaming, stop := context.WithCancel(ctx)
	failures := make(chan error, 1)
	var clients sync.WaitGroup
	number := 0
	for _, kind := range m.plan.Clients {
		for range kind.Count {
			number++
			c := &moveClient{number: number, files: m.content[kind.Set], first: number, pace: kind.BytesPerSecond, meter: m.meter, dial: m.lab.DialContext, address: m.lab.Addr(lab.Lease)}
			clients.Go(func() {
				if err := c.stream(streaming); err != nil && streaming.Err() == nil {
					select {
					case failures <- err:
					default:
					}
				}
			})
		}
	}
	err = m.moveAll(ctx, failures, report)
	stop()
	clients.Wait()
	report.Requests, report.Bytes, report.Samples = m.meter.requests.Load(), m.meter.bytes.Load(), m.meter.counted()
	return report, err
}

// moveAll carries out the moves, until a client fails.
func (m *moves) moveAll(ctx context.Context, failures <-chan error, report *MovesReport) error {
	undisturbed := func() error {
		select {
		case err := <-failures:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.plan.Between):
			return nil
		}
	}
	m.progress.Step("streaming")
	if err := undisturbed(); err != nil { // to begin with
		return err
	}
	for i := range m.plan.Moves {
		m.progress.Step("move %d of %d", i+1, m.plan.Moves)
		r, err := m.moveOnce(ctx, undisturbed)
		if err != nil {
			return err
		}
		report.Moves = append(report.Moves, *r)
		m.progress.Step("move %d: %.0f ms, pause %.0f ms, longest stall %.0f ms, %.0f %% of the bandwidth before", i+1, r.TotalMs, r.PausedMs, r.StallMs, 100*r.DuringMBps/r.BeforeMBps)
	}
	return nil
}

// moveOnce carries out one move, with undisturbed streaming before it and behind it.
func (m *moves) moveOnce(ctx context.Context, undisturbed func() error) (*MoveReport, error) {
	timeouts, err := m.lab.TCPTimeouts(ctx)
	if err != nil {
		return nil, err
	}
	before := time.Now()
	m.meter.resetStalls()
	if err := undisturbed(); err != nil {
		return nil, err
	}
	stallsBefore := m.meter.resetStalls()
	began := time.Now()
	plan := m.lab.MovePlan()
	plan.BytesPerSecond, plan.Recall = m.plan.BytesPerSecond, m.plan.Recall
	moved, err := m.lab.Move(ctx, plan)
	if err != nil {
		return nil, err
	}
	ended := time.Now()
	if err := undisturbed(); err != nil { // a stall is over when its client has a byte
		return nil, err
	}
	stalls := m.meter.resetStalls()
	r := &MoveReport{Report: *moved, StallMs: milliseconds(longest(stalls)), StallBeforeMs: milliseconds(longest(stallsBefore))}
	r.BeforeMBps, r.DuringMBps = m.meter.rate(before, began), m.meter.rate(began, ended)
	granted, err := m.granted(ctx)
	if err != nil {
		return nil, err
	}
	r.Clients = clientsOf(moved, stalls, granted)
	if r.TCPTimeouts, err = m.lab.TCPTimeouts(ctx); err != nil {
		return nil, err
	}
	for side, n := range timeouts {
		r.TCPTimeouts[side] -= n
	}
	return r, nil
}

// granted asks the host that the VM is at for when it was given its leases.
func (m *moves) granted(ctx context.Context) (map[netip.AddrPort]time.Time, error) {
	var leases host.Leases
	if err := m.lab.HostLeases(ctx, m.lab.At, &leases); err != nil {
		return nil, err
	}
	granted := map[netip.AddrPort]time.Time{}
	for _, v := range leases.VMs {
		for _, l := range v.Leases {
			granted[l.Client] = time.Now().Add(-time.Duration(l.AgeSeconds * float64(time.Second)))
		}
	}
	return granted, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
