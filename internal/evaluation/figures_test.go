package evaluation

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// onlyBottlenecks fails the test at any other doubt: whether the load generator is one depends on the machine.
func onlyBottlenecks(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			onlyBottlenecks(t, e)
		}
		return
	}
	if inner := errors.Unwrap(err); inner != nil {
		onlyBottlenecks(t, inner)
		return
	}
	var bottleneck *BottleneckError
	if !errors.As(err, &bottleneck) {
		t.Error(err)
	}
}

// TestMicroCases: all sizes from 4 KB to 200 MB, the more requests the smaller they are.
func TestMicroCases(t *testing.T) {
	sizes := MicroSizes()
	if sizes[0] != 4096 || sizes[len(sizes)-1] != 200_000_000 || !slices.IsSorted(sizes) {
		t.Errorf("sizes are %v", sizes)
	}
	for i := range sizes[1:] {
		if ratio := float64(sizes[i+1]) / float64(sizes[i]); ratio > 5 {
			t.Errorf("between %d and %d is a gap", sizes[i], sizes[i+1])
		}
	}
	cases, err := MicroCases(t.TempDir(), []int64{4096, 3_000_000}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if len(cases[0].Targets) != 50 || len(cases[1].Targets) != 13 || cases[1].oneSize() != 3_000_000 {
		t.Errorf("%d and %d requests", len(cases[0].Targets), len(cases[1].Targets))
	}
	if _, err := MicroCases(t.TempDir(), []int64{0}, 1); err == nil {
		t.Error("a file of no bytes")
	}
}

func TestRefuse(t *testing.T) {
	row := bench.Row{Arm: "lease", Case: "3 MB", Load: &bench.Load{ClientCPU: 0.97, IdleCPUs: 0.8}}
	var bottleneck *BottleneckError
	if err := refuse(&row); !errors.As(err, &bottleneck) || row.Refused == "" {
		t.Errorf("%v, %+v", err, row)
	}
	for _, want := range []string{"lease", "3 MB", "97 %", "0.8", "--target"} {
		if !strings.Contains(bottleneck.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, bottleneck)
		}
	}
	for _, load := range []*bench.Load{nil, {ClientCPU: 0.97, IdleCPUs: 0.1}} {
		row := bench.Row{Load: load}
		if err := refuse(&row); err != nil || row.Refused != "" {
			t.Errorf("%+v: %v", load, err)
		}
	}
}

// TestPace: a pass that burns a CPU is seen to, one that sleeps is not.
func TestPace(t *testing.T) {
	var rec bench.Recorder
	var burning, sleeping pace
	burn := func() error {
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
		}
		rec.Add(bench.Result{Bytes: 7})
		rec.AddElapsed(time.Second)
		return nil
	}
	for range 2 {
		if err := errors.Join(burning.measure(&rec, burn), sleeping.measure(&rec, func() error { time.Sleep(50 * time.Millisecond); return nil })); err != nil {
			t.Fatal(err)
		}
	}
	if burning.client < 5*sleeping.client || burning.client == 0 {
		t.Errorf("burning took %v, sleeping %v", burning.client, sleeping.client)
	}
	want := []bench.Round{{Bytes: 7, Elapsed: time.Second}, {Bytes: 7, Elapsed: time.Second}}
	if d := cmp.Diff(want, burning.rounds); d != "" {
		t.Error(d)
	}
	var judged, short bench.Row
	burning.report(&judged, &rec)
	sleeping.report(&short, &rec)
	if judged.Load == nil || judged.Load.ClientCPU <= 0 || short.Load != nil || short.Spread == nil {
		t.Errorf("the load of 400 ms is %+v, that of 100 ms, which are too short to tell, %+v", judged.Load, short.Load)
	}
	failed := errors.New("failed")
	if err := burning.measure(&rec, func() error { return failed }); !errors.Is(err, failed) || len(burning.rounds) != 2 {
		t.Errorf("a pass that fails: %v, %d rounds", err, len(burning.rounds))
	}
}

func TestTracker(t *testing.T) {
	start := time.Now()
	tr := &tracker{start: start}
	tr.add(start.Add(100*time.Millisecond), bench.Result{Bytes: 100, Elapsed: 100 * time.Millisecond})
	tr.add(start.Add(350*time.Millisecond), bench.Result{Bytes: 1000, Elapsed: 200 * time.Millisecond}) // from 150 ms on
	got := tr.report()
	if want := (&bench.Timeline{IntervalMs: 100, Bytes: []int64{100, 250, 500, 250}}); !cmp.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	tr.add(start.Add(time.Hour), bench.Result{Bytes: 5, Elapsed: time.Second})
	sum := int64(0)
	for _, b := range tr.report().Bytes {
		sum += b
	}
	if got := tr.report(); len(got.Bytes) > maxIntervals || sum != 1105 {
		t.Errorf("an hour in %d intervals, with %d bytes", len(got.Bytes), sum)
	}
	if (*tracker)(nil).report() != nil {
		t.Error("a timeline of nothing")
	}
}

// TestPlayer follows one player through a film, by its own clock.
func TestPlayer(t *testing.T) {
	ladder := []rung{{400e3, 6 * time.Second, nil}, {1.2e6, 10 * time.Second, nil}, {6e6, 15 * time.Second, nil}}
	p := &player{ladder: ladder, plan: PlayersPlan{Media: time.Hour}}
	if p.choose() != 0 {
		t.Error("a player that knows nothing begins at the lowest bit rate")
	}
	if pause := p.arrived(0, 300_000, 2*time.Second); pause != 0 || p.at != 6*time.Second || p.buffer != 6*time.Second || p.throughput != 1.2e6 {
		t.Errorf("after the first segment: pause %v, %+v", pause, p)
	}
	if p.throughput = 1.3e6; p.choose() != 0 { // 1.2 Mbit/s would leave nothing to spare
		t.Errorf("%g bit/s carry rung %d", p.throughput, p.choose())
	}
	if p.throughput = 1.4e6; p.choose() != 1 {
		t.Errorf("%g bit/s carry rung %d", p.throughput, p.choose())
	}
	// The segment of 10 s that has second 6 in it takes 10 s: the picture stands still for 4 s of them.
	if pause := p.arrived(1, 1_500_000, 10*time.Second); pause != 0 || p.at != 10*time.Second || p.buffer != 4*time.Second ||
		p.seen.stalls != 1 || p.seen.stalled != 4*time.Second || p.seen.switches != 1 {
		t.Errorf("after a slow segment: pause %v, %+v", pause, p)
	}
	for range 3 {
		p.arrived(2, 11_250_000, time.Second)
	}
	if pause := p.arrived(2, 11_250_000, time.Second); pause != 14*time.Second || p.buffer != fullBuffer {
		t.Errorf("with a full buffer: pause %v, %+v", pause, p)
	}
	if r := p.seen.report(1); r.Stalls != 1 || r.StalledS != 4 || r.Switches != 2 || r.StartupMs != 2000 || r.MeanKbit <= 1200 || r.MeanKbit >= 6000 {
		t.Errorf("%+v", r)
	}
}

func TestPlayersPlan(t *testing.T) {
	good := PlayersPlan{Sets: []lab.Set{{Name: "mobile"}}, Arms: lab.Arms(), Rounds: 1, Players: 1, Speed: 1, Media: time.Second}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*PlayersPlan){
		"players": func(p *PlayersPlan) { p.Players = 0 },
		"speed":   func(p *PlayersPlan) { p.Speed = 0 },
		"media":   func(p *PlayersPlan) { p.Media = 0 },
		"no data": func(p *PlayersPlan) { p.Sets = nil },
		"rounds":  func(p *PlayersPlan) { p.Rounds = 0 },
	} {
		p := good
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestRunDash plays small sets through every arm of a namespace lab and through nginx, one after the other and by players.
func TestRunDash(t *testing.T) {
	files, err := TableFiles(t.Context(), t.TempDir(), 0.005, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	arms := append(lab.Arms(), lab.Peers()...)
	plan := Plan{Cases: SetCases(files), Arms: arms, Rounds: 2, Connections: 1, Refuse: true}
	players := PlayersPlan{Sets: files.Sets, Arms: arms, Rounds: 1, Players: 3, Speed: 200, Media: 60 * time.Second, Seed: 1}
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: files.Dir, Cache: "../../build/cache"}
	report, err := RunDash(t.Context(), opts, plan, players, bench.NewProgress(nil))
	onlyBottlenecks(t, err)
	if report == nil || len(report.Rows) != 4*len(arms) {
		t.Fatalf("the report is %+v, %v", report, err)
	}
	for i, row := range report.Rows {
		c := "3 players"
		if i/len(arms) < 3 {
			c = files.Sets[i/len(arms)].Name
			if row.N != 2*len(files.Sets[i/len(arms)].Segments) || row.Spread.Rounds != 2 || row.Timeline == nil {
				t.Errorf("row %d is %+v", i, row)
			}
		} else if p := row.Playback; p == nil || p.Players != 3 || p.MeanKbit < 400 || p.MeanKbit > 6000 || row.N < 3*4 {
			t.Errorf("row %d is %+v, %+v", i, row, p)
		}
		if row.Arm != string(arms[i%len(arms)]) || row.Case != c || row.Wrong != 0 {
			t.Errorf("row %d is %+v", i, row)
		}
	}
}

// TestRunConcurrency: as many connections as were asked for, and no fewer requests.
func TestRunConcurrency(t *testing.T) {
	dir := t.TempDir()
	cases, err := SizeCases(dir, []int64{65536}, 1)
	if err != nil {
		t.Fatal(err)
	}
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: dir}
	plan := Plan{Cases: cases, Arms: []lab.Arm{lab.VM, lab.Lease}, Rounds: 1, Refuse: true}
	report, err := RunConcurrency(t.Context(), opts, plan, []int{1, 20}, 60, bench.NewProgress(nil))
	onlyBottlenecks(t, err)
	if report == nil || len(report.Rows) != 4 {
		t.Fatalf("the report is %+v, %v", report, err)
	}
	for i, row := range report.Rows {
		if row.N != 60 || row.Connections != []int{1, 20}[i/2] || row.Arm == "lease" && row.Handovers != int64(row.Connections) {
			t.Errorf("row %d is %+v", i, row)
		}
	}
	for _, numbers := range [][]int{{0}, {1, 1}} {
		if _, err := RunConcurrency(t.Context(), opts, plan, numbers, 1, bench.NewProgress(nil)); err == nil {
			t.Errorf("%v connections", numbers)
		}
	}
}
