package evaluation

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
	"spillway/internal/migrate"
)

// TestMovesValidate: what cannot be carried out is refused.
func TestMovesValidate(t *testing.T) {
	for _, p := range []MovesPlan{{Between: time.Second}, {Moves: 1}} {
		if p.Validate() == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

// TestMeter: the bytes of an interval, and the longest wait, which begins anew.
func TestMeter(t *testing.T) {
	m, client := newMeter(), netip.MustParseAddrPort("192.0.2.2:5000")
	m.began = m.began.Add(-time.Second)
	m.received(1, client, 2_000_000, 30*time.Millisecond)
	m.received(2, client, 1_000_000, 70*time.Millisecond)
	m.received(1, client, 1_000_000, 10*time.Millisecond)
	stalls := m.resetStalls()
	if s := longest(stalls); s != 70*time.Millisecond || stalls[1].length != 30*time.Millisecond || stalls[1].client != client {
		t.Errorf("the longest wait is %v, of %+v", s, stalls)
	}
	if s := longest(m.resetStalls()); s != 0 {
		t.Errorf("and then %v", s)
	}
	if r := m.rate(m.began, m.began.Add(20*time.Second)); r <= 0 || m.bytes.Load() != 4_000_000 {
		t.Errorf("%v MB/s of %d bytes", r, m.bytes.Load())
	}
	if r := m.rate(m.began, m.began.Add(500*time.Millisecond)); r != 0 {
		t.Errorf("%v MB/s while nothing came", r)
	}
}

// TestMoves: a VM moves there and back while clients stream. Every byte is right, or RunMoves says so.
func TestMoves(t *testing.T) {
	dir, binary := t.TempDir(), buildBinary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	files, err := lab.DemoFiles(ctx, dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	opts := lab.Options{Name: labName(), Binary: binary, Cache: "../../build/cache", Files: files.Dir, Link: lab.Link{BitsPerSecond: 1e9}}
	plan := MovesPlan{Moves: 2, Between: 200 * time.Millisecond, Clients: []MoveClients{{"smarttv", 1, 0}, {"tablet", 2, 0}, {"tablet", 1, 200_000}}}
	report, err := RunMoves(ctx, opts, files, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Moves) != 2 || report.Requests == 0 || len(report.Samples) == 0 {
		t.Errorf("%+v", report)
	}
	for i, m := range report.Moves {
		if m.Closed != 0 || m.Carried+m.Recalled == 0 || m.StallMs == 0 || m.BeforeMBps == 0 || m.Bytes == 0 {
			t.Errorf("move %d: %+v", i+1, m)
		}
		// What a plot needs: when each phase began, within the time that there are samples of.
		sampled := report.Began.Add(time.Duration(float64(len(report.Samples)) * report.IntervalMs * float64(time.Millisecond)))
		last := report.Began
		for _, p := range []migrate.Phase{migrate.Check, migrate.Start, migrate.Precopy, migrate.Hold, migrate.Switch, migrate.Answer, migrate.Done} {
			if at := m.Began[p]; at.Before(last) || at.After(sampled) {
				t.Errorf("move %d: phase %s began at %v, after %v; samples are from %v to %v", i+1, p, at, last, report.Began, sampled)
			}
			last = m.Began[p]
		}
		if len(m.Clients) != 4 || m.Recalled > 0 && len(m.Returns) == 0 {
			t.Errorf("move %d: %+v, %+v", i+1, m.Clients, m.Returns)
		}
	}
}
