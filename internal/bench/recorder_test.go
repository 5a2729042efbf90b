package bench

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSummarize(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i >= 1; i-- {
		hundred = append(hundred, time.Duration(i)*time.Millisecond)
	}
	const us, ms = time.Microsecond, time.Millisecond
	for _, test := range []struct {
		name string
		in   []time.Duration
		want Summary
	}{
		{"none", nil, Summary{}},
		{"one", []time.Duration{ms}, Summary{N: 1, Min: ms, Median: ms, P90: ms, P99: ms, Max: ms}},
		{"two", []time.Duration{3 * ms, ms}, Summary{N: 2, Min: ms, Median: 2 * ms, P90: 2800 * us, P99: 2980 * us, Max: 3 * ms, MAD: ms, IQR: ms}},
		{"hundred", hundred, Summary{
			N: 100, Min: ms, Median: 50_500 * us, P90: 90_100 * us, P99: 99_010 * us, Max: 100 * ms, MAD: 25 * ms, IQR: 49_500 * us,
		}},
		{"outlier", []time.Duration{ms, ms, ms, ms, time.Second}, Summary{
			N: 5, Min: ms, Median: ms, P90: 600_400 * us, P99: 960_040 * us, Max: time.Second,
		}},
	} {
		if diff := cmp.Diff(test.want, Summarize(test.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if hundred[0] != 100*ms {
		t.Error("the caller's slice was sorted")
	}
}

func TestRecorder(t *testing.T) {
	var a, b Recorder
	a.Add(Result{Elapsed: 2 * time.Millisecond, FirstByte: time.Millisecond, Bytes: 1_000_000, Stalls: 1})
	b.Add(Result{Elapsed: 4 * time.Millisecond, FirstByte: 1500 * time.Microsecond, Bytes: 3_000_000})
	for range 2 * maxKeptErrors {
		b.AddWrong(Result{Elapsed: time.Hour, Bytes: 1, Stalls: 1}, errors.New("wrong"))
		a.AddWrong(Result{}, errors.New("wrong"))
	}
	a.AddElapsed(2 * time.Second)
	b.AddElapsed(2 * time.Second)
	a.Merge(&b)
	want := Row{
		Arm: "lease", Case: "tablet", N: 2, Bytes: 4_000_000, ElapsedS: 2, MBPerS: 2, MedianUs: 3000, P99Us: 3980, IQRUs: 1000,
		FirstByteUs: 1250, FirstByteP99Us: 1495, FirstByteIQRUs: 250,
		Wrong: 4 * maxKeptErrors, Stalls: 1 + 2*maxKeptErrors,
	}
	if diff := cmp.Diff(want, a.Row("lease", "tablet")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := len(a.Errors()); got != maxKeptErrors {
		t.Errorf("%d errors are kept, want %d", got, maxKeptErrors)
	}
	if diff := cmp.Diff(Row{Arm: "vm", Case: "x"}, new(Recorder).Row("vm", "x")); diff != "" {
		t.Errorf("an empty recorder (-want +got):\n%s", diff)
	}
}
