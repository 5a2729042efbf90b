package bench

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// TestMedianInterval against the table of Dixon and Massey for 95 %: of 10 values the 2nd and the 9th, of 20 the 6th and the 15th, of 50 the 18th and the 33rd.
func TestMedianInterval(t *testing.T) {
	for n, want := range map[int][2]float64{1: {1, 1}, 2: {1, 2}, 5: {1, 5}, 6: {1, 6}, 9: {2, 8}, 10: {2, 9}, 20: {6, 15}, 50: {18, 33}} {
		values := make([]float64, n)
		for i := range values {
			values[i] = float64(n - i) // in any order
		}
		got := MedianInterval(values)
		if got.Low != want[0] || got.High != want[1] || got.Median != float64(n+1)/2 {
			t.Errorf("of %d values: %+v, want %v", n, got, want)
		}
		if enough := n >= 6; enough != (got.Coverage >= 0.95) {
			t.Errorf("of %d values the coverage is %g", n, got.Coverage)
		}
	}
	if got := MedianInterval(nil); got != (Interval{}) {
		t.Errorf("of no values: %+v", got)
	}
}

// TestCoverage: the interval holds the median as often as it says, with values of a skewed distribution.
func TestCoverage(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const n, times = 12, 20_000
	hits := 0.0
	var coverage float64
	for range times {
		values := make([]float64, n)
		for i := range values {
			values[i] = 1000 * math.Exp(2*random.NormFloat64()) // its median is 1000
		}
		in := MedianInterval(values)
		coverage = in.Coverage
		if in.Low <= 1000 && 1000 <= in.High {
			hits++
		}
	}
	if math.Abs(hits/times-coverage) > 0.006 {
		t.Errorf("%.4f of the intervals hold the median, said is %.4f", hits/times, coverage)
	}
}

func TestSpreadOf(t *testing.T) {
	var r Recorder
	if r.SpreadOf(nil) != nil {
		t.Error("a spread of no passes")
	}
	for _, ms := range []int{3, 1, 2} {
		r.Add(Result{Bytes: 1, Elapsed: time.Duration(ms) * time.Millisecond})
	}
	s := r.SpreadOf([]Round{{Bytes: 10e6, Elapsed: time.Second}, {Bytes: 10e6, Elapsed: 2 * time.Second}, {Bytes: 10e6, Elapsed: 4 * time.Second}})
	if s.Rounds != 3 || s.MBPerS.Median != 5 || s.MBPerS.Low != 2.5 || s.MBPerS.High != 10 || s.ElapsedS.Median != 2 || s.RequestUs.Median != 2000 {
		t.Errorf("%+v", s)
	}
}

func TestBottleneck(t *testing.T) {
	for load, want := range map[Load]bool{
		{ClientCPU: 0.99, IdleCPUs: 0.9}:  true,
		{ClientCPU: 0.99, IdleCPUs: 0.05}: false, // the server's CPU is busy too
		{ClientCPU: 0.5, IdleCPUs: 1.5}:   false, // the client waits: for a slow server, or a link
		{}:                                false,
	} {
		if load.Bottleneck() != want {
			t.Errorf("%+v: %v", load, !want)
		}
	}
}
