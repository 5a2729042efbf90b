package bench

import (
	"math"
	"slices"
	"time"
)

// Recorder collects what the requests of one arm and one case saw. Every duration is kept: quantiles are exact. The zero value is
// ready; it is not safe for concurrent use: give each client its own and Merge them.
type Recorder struct {
	durations []time.Duration
	firsts    []time.Duration // to the first byte, of the same requests
	bytes     int64
	elapsed   time.Duration
	stalls    int64
	wrong     int64
	errs      []error
}

// maxKeptErrors bounds what Errors returns; all are counted.
const maxKeptErrors = 10

// Add counts a request that brought the right body.
func (r *Recorder) Add(res Result) {
	r.durations = append(r.durations, res.Elapsed)
	r.firsts = append(r.firsts, res.FirstByte)
	r.bytes += res.Bytes
	r.stalls += int64(res.Stalls)
}

// AddWrong counts a request that brought a wrong body, or failed. Its time and bytes are not part of any figure; its stalls are.
func (r *Recorder) AddWrong(res Result, err error) {
	r.wrong++
	r.stalls += int64(res.Stalls)
	if len(r.errs) < maxKeptErrors {
		r.errs = append(r.errs, err)
	}
}

// AddElapsed adds to the time on the wall that the requests took. Clients that run side by side share one such time.
func (r *Recorder) AddElapsed(d time.Duration) { r.elapsed += d }

// Elapsed is the sum of what AddElapsed was told.
func (r *Recorder) Elapsed() time.Duration { return r.elapsed }

// Merge adds what other has, except its elapsed time.
func (r *Recorder) Merge(other *Recorder) {
	r.durations = append(r.durations, other.durations...)
	r.firsts = append(r.firsts, other.firsts...)
	r.bytes += other.bytes
	r.stalls += other.stalls
	r.wrong += other.wrong
	r.errs = append(r.errs, other.errs[:min(len(other.errs), maxKeptErrors-len(r.errs))]...)
}

// Wrong is how many requests brought a wrong body or failed.
func (r *Recorder) Wrong() int64 { return r.wrong }

// Stalls is how many waits were longer than the client's StallAfter.
func (r *Recorder) Stalls() int64 { return r.stalls }

// Errors returns the first few reasons of wrong requests.
func (r *Recorder) Errors() []error { return slices.Clone(r.errs) }

// Summary describes durations.
type Summary struct {
	N                     int
	Min, Median, P90, P99 time.Duration
	Max                   time.Duration
	MAD                   time.Duration // median of the absolute deviations from the median
	IQR                   time.Duration // between the first and the third quartile
}

// Summary describes the durations of the requests with the right body.
func (r *Recorder) Summary() Summary { return Summarize(r.durations) }

// Summarize describes durations; it leaves the slice as it is. All is zero when there are none.
func Summarize(durations []time.Duration) Summary {
	if len(durations) == 0 {
		return Summary{}
	}
	sorted := slices.Sorted(slices.Values(durations))
	s := Summary{
		N: len(sorted), Min: sorted[0], Max: sorted[len(sorted)-1],
		Median: quantile(sorted, 0.5), P90: quantile(sorted, 0.9), P99: quantile(sorted, 0.99),
		IQR: quantile(sorted, 0.75) - quantile(sorted, 0.25),
	}
	for i, d := range sorted {
		sorted[i] = (d - s.Median).Abs()
	}
	slices.Sort(sorted)
	s.MAD = quantile(sorted, 0.5)
	return s
}

// quantile interpolates between the two nearest ranks (Hyndman and Fan's type 7, which R and NumPy use).
func quantile(sorted []time.Duration, q float64) time.Duration {
	rank := q * float64(len(sorted)-1)
	low := int(rank)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + time.Duration(math.Round((rank-float64(low))*float64(sorted[high]-sorted[low])))
}

// Row gives the figures the form of the report. The caller adds what only the daemons know: handovers, handbacks, fallbacks.
func (r *Recorder) Row(arm, dataCase string) Row {
	s, first := r.Summary(), Summarize(r.firsts)
	row := Row{
		Arm: arm, Case: dataCase, N: s.N, Bytes: r.bytes, ElapsedS: rounded(r.elapsed.Seconds()),
		MedianUs: microseconds(s.Median), P99Us: microseconds(s.P99), IQRUs: microseconds(s.IQR),
		FirstByteUs: microseconds(first.Median), FirstByteP99Us: microseconds(first.P99), FirstByteIQRUs: microseconds(first.IQR),
		Wrong: r.wrong, Stalls: r.stalls,
	}
	if r.elapsed > 0 {
		row.MBPerS = rounded(float64(r.bytes) / 1e6 / r.elapsed.Seconds())
	}
	return row
}

// Step gives the durations of a step the form of the report.
func (s Summary) Step() Step {
	return Step{MedianUs: microseconds(s.Median), P99Us: microseconds(s.P99)}
}

func microseconds(d time.Duration) float64 { return rounded(float64(d) / float64(time.Microsecond)) }

// rounded keeps three decimals: no figure of a bench has more.
func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }
