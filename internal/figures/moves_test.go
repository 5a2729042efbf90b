package figures

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// movesSample is four seconds of two moves.
func movesSample() Moves {
	m := Moves{Condition: "VM under TCG", Interval: 20 * time.Millisecond, Typical: 1}
	for i := range 200 {
		m.Bytes = append(m.Bytes, int64(2_000_000-i%7*1000))
	}
	for _, at := range []time.Duration{time.Second / 2, 5 * time.Second / 2} {
		m.Moves = append(m.Moves, []Phase{
			{"precopy", at, at + 600*time.Millisecond}, {"hold", at + 600*time.Millisecond, at + 700*time.Millisecond}, {"answer", at + 700*time.Millisecond, at + time.Second},
		})
	}
	return m
}

// TestWriteMoves: both plots are there in both forms, and name what they show.
func TestWriteMoves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "figures")
	names, err := WriteMoves(dir, movesSample())
	if err != nil || len(names) != 4 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil || len(content) == 0 {
			t.Errorf("%s: %v", name, err)
		}
		if strings.HasSuffix(name, ".svg") {
			for _, text := range []string{"VM under TCG", "precopy", "hold", "answer", "bandwidth of all clients, MB/s", "time since the start, s"} {
				if !strings.Contains(string(content), text) {
					t.Errorf("%s does not say %q", name, text)
				}
			}
		}
	}
}

// TestMovesBandwidth: bins hold what came in them.
func TestMovesBandwidth(t *testing.T) {
	m := Moves{Interval: 10 * time.Millisecond, Bytes: []int64{1e6, 3e6, 0, 0, 5e6, 5e6, 7e6}}
	got := m.bandwidth(0, time.Second, 20*time.Millisecond)
	if len(got) != 3 || got[0].Y != 200 || got[1].Y != 0 || got[2].Y != 500 || got[0].X != 0.01 {
		t.Errorf("%v", got)
	}
	if got := m.bandwidth(20*time.Millisecond, 40*time.Millisecond, 20*time.Millisecond); len(got) != 1 || got[0].Y != 0 {
		t.Errorf("a part: %v", got)
	}
}

// TestNoMoves: nothing to plot is an error, and no empty figure.
func TestNoMoves(t *testing.T) {
	for _, m := range []Moves{{}, {Interval: 1, Bytes: []int64{1}}, {Interval: 1, Bytes: []int64{1}, Moves: [][]Phase{{}}}, {Interval: 1, Bytes: []int64{1}, Moves: [][]Phase{{{}}}, Typical: 1}} {
		if _, err := WriteMoves(t.TempDir(), m); err == nil {
			t.Errorf("%+v was plotted", m)
		}
	}
}
