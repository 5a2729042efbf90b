package evaluation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

func TestPathValidate(t *testing.T) {
	good := PathPlan{Sizes: []int64{2}, Arms: lab.Arms(), Rounds: 1, Following: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*PathPlan){
		"rounds: 0":    func(p *PathPlan) { p.Rounds = 0 },
		"sizes: 1":     func(p *PathPlan) { p.Sizes = []int64{4096, 1} },
		"following: 0": func(p *PathPlan) { p.Following = 0 },
		"bogus":        func(p *PathPlan) { p.Arms = []lab.Arm{"bogus"} },
	} {
		p := good
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestOffloadedAsPlanned: figures of a warm-up that went through the host, or of others that did not, are no figures.
func TestOffloadedAsPlanned(t *testing.T) {
	const rounds, each = 20, 3
	m := pathMeasurement{plan: PathPlan{Rounds: rounds, Following: each - 1}}
	for _, c := range []struct {
		arm              lab.Arm
		sends, handovers uint64
		want             string // in the error
	}{
		{lab.Lease, rounds * each, rounds, ""},
		{lab.Lease, rounds * each, rounds - 2, "only 18 of 20 connections"},
		{lab.Lease, rounds*each - 5, rounds, "only 55 of 60"},
		{lab.Lease, rounds * (each + 1), rounds, "more than the 60"},
		{lab.Offload, rounds * each, rounds * each, ""},
		{lab.Offload, rounds * each, rounds, "only 20 of 60"},
		{lab.VM, 0, 0, ""},
	} {
		var timed armRecorders
		for s, n := range map[stage]int{warmUp: rounds, first: rounds, following: rounds * (each - 1)} {
			for range n {
				timed[s].Add(bench.Result{Elapsed: time.Millisecond})
			}
		}
		err := m.offloadedAsPlanned(c.arm, &timed, guest.Snapshot{Counts: guest.Counts{Sends: c.sends, Handovers: c.handovers}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestRunPath measures a path with delay in a lab of namespaces.
func TestRunPath(t *testing.T) {
	binary := buildBinary(t)
	name := labName()
	const rounds, more = 2, 3
	rtt := 10 * time.Millisecond
	sizes := []int64{4096, 200_000}
	opts := lab.Options{
		Name: name, VM: lab.NetNS, Binary: binary, Files: filepath.Join(t.TempDir(), "path"),
		Link: lab.Link{RTT: rtt, BitsPerSecond: 1e9}, Congestion: "reno",
	}
	plan := PathPlan{Sizes: sizes, Arms: lab.Arms(), Rounds: rounds, Following: more}
	report, err := RunPath(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if report.Bench != "path" || report.Env.Link != "10ms,1gbit" || report.Env.Congestion != "reno" {
		t.Errorf("%s, %+v", report.Bench, report.Env)
	}
	arms := lab.Arms()
	if want := len(sizes) * int(stages) * len(arms); len(report.Rows) != want {
		t.Fatalf("%d rows, want %d", len(report.Rows), want)
	}
	for i, row := range report.Rows {
		arm, s, size := arms[i%len(arms)], stage(i/len(arms)%int(stages)), sizes[i/len(arms)/int(stages)]
		n, bytes := rounds, size
		switch s {
		case warmUp:
			bytes--
		case following:
			n *= more
		}
		wantCase := SizeName(size) + []string{" warm-up", " first", " following"}[s]
		if row.Arm != string(arm) || row.Case != wantCase || row.N != n || row.Bytes != int64(n)*bytes || row.Wrong != 0 {
			t.Errorf("row %d is %+v, want %s, %s, %d of %d bytes", i, row, arm, wantCase, n, bytes)
		}
		oneWay := float64(rtt.Microseconds())
		if row.FirstByteUs < oneWay || row.MedianUs < row.FirstByteUs || row.P99Us < row.MedianUs {
			t.Errorf("%s, %s: first byte after %v us, last after %v, p99 %v; the round trip is %v", arm, wantCase,
				row.FirstByteUs, row.MedianUs, row.P99Us, rtt)
		}
		var handovers, small int64
		if s == first && arm == lab.Lease {
			handovers, small = rounds, rounds
		} else if s == first && arm == lab.Offload {
			handovers, small = rounds*(1+more), rounds
		}
		if (row.Drops != nil) != (s == first) || row.Drops["refused"] != 0 {
			t.Errorf("%s, %s: the link has dropped %v", arm, wantCase, row.Drops)
		}
		if row.Handovers != handovers || row.Fallbacks["small"] != small {
			t.Errorf("%s, %s: %d handovers, want %d; fallbacks are %v, want %d small ones", arm, wantCase, row.Handovers, handovers,
				row.Fallbacks, small)
		}
	}
	if left, _ := filepath.Glob("/run/netns/spw-" + name + "-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	opts.Files = filepath.Join(binary, "below-a-file")
	if _, err := RunPath(t.Context(), opts, plan, bench.NewProgress(nil)); err == nil {
		t.Error("files that cannot be made")
	}
	opts.Files, opts.Congestion = t.TempDir(), "nosuch"
	if _, err := RunPath(t.Context(), opts, plan, bench.NewProgress(nil)); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a congestion control that there is not: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(lab.StateRoot, name)); err == nil {
		t.Error("the lab is still there")
	}
}
