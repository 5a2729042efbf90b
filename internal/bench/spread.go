package bench

import (
	"math"
	"slices"
	"time"
)

// Spread says how far the timed passes of a row differ, and the requests of all of them.
type Spread struct {
	Rounds    int      `json:"rounds"`
	ElapsedS  Interval `json:"elapsed_s"`  // of a pass
	MBPerS    Interval `json:"mb_per_s"`   // of a pass
	RequestUs Interval `json:"request_us"` // of a request, of all passes
}

// Interval is a median and where it is with the confidence that Coverage says, if the values are independent, whatever their distribution is.
type Interval struct {
	Median   float64 `json:"median"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
	Coverage float64 `json:"coverage"` // 0.95 or more; less if there are too few values for it: then Low and High are the extremes
}

// confidence of the intervals.
const confidence = 0.95

// MedianInterval is the median of values with a confidence interval from order statistics: the median lies between the k-th smallest and the k-th
// largest value, unless fewer than k of n values are on one side of it, which has the probability of a binomial distribution (H. A. David and H. N. Nagaraja,
// Order Statistics, section 7.1). It takes the largest k whose coverage is at least 95 %.
func MedianInterval(values []float64) Interval {
	if len(values) == 0 {
		return Interval{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	in := Interval{Low: sorted[0], High: sorted[n-1], Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Coverage: coverage(n, 1)}
	for k := 2; k <= n/2; k++ {
		c := coverage(n, k)
		if c < confidence {
			break
		}
		in.Low, in.High, in.Coverage = sorted[k-1], sorted[n-k], c
	}
	in.Median, in.Low, in.High, in.Coverage = rounded(in.Median), rounded(in.Low), rounded(in.High), rounded(in.Coverage)
	return in
}

// coverage is the probability that the median lies between the k-th smallest and the k-th largest of n values: 1 - 2 P(X < k) with X binomial (n, 1/2).
func coverage(n, k int) float64 {
	below := 0.0
	for i := range k {
		below += math.Exp(logChoose(n, i) - float64(n)*math.Ln2)
	}
	return max(0, 1-2*below)
}

func logChoose(n, k int) float64 {
	gamma := func(x int) float64 {
		v, _ := math.Lgamma(float64(x) + 1)
		return v
	}
	return gamma(n) - gamma(k) - gamma(n-k)
}

// Round is what one timed pass took.
type Round struct {
	Bytes   int64
	Elapsed time.Duration
}

// SpreadOf describes the timed passes whose requests the recorder has.
func (r *Recorder) SpreadOf(rounds []Round) *Spread {
	if len(rounds) == 0 {
		return nil
	}
	var elapsed, rates, requests []float64
	for _, p := range rounds {
		elapsed = append(elapsed, p.Elapsed.Seconds())
		if p.Elapsed > 0 {
			rates = append(rates, float64(p.Bytes)/1e6/p.Elapsed.Seconds())
		}
	}
	for _, d := range r.durations {
		requests = append(requests, float64(d)/float64(time.Microsecond))
	}
	return &Spread{Rounds: len(rounds), ElapsedS: MedianInterval(elapsed), MBPerS: MedianInterval(rates), RequestUs: MedianInterval(requests)}
}

// Bytes of the right bodies.
func (r *Recorder) Bytes() int64 { return r.bytes }

// Load says how busy the load generator was, and what the machine had left.
type Load struct {
	// ClientCPU is the share of the CPUs it may use that the load generator used.
	ClientCPU float64 `json:"client_cpu"`
	// IdleCPUs is how many of the machine's CPUs had nothing to do, on average.
	IdleCPUs float64 `json:"idle_cpus"`
}

// Limits of Bottleneck.
const (
	BusyClient = 0.9 // of the CPUs that the load generator may use
	IdleCPUs   = 0.2 // of the machine, that a server could have used
)

// Bottleneck tells whether the load generator kept the servers from being faster: it used up its CPUs, while the machine had others to spare. Where all
// CPUs are busy, client and server on one machine share them, in each arm alike, and the ratios between the arms still mean something.
func (l Load) Bottleneck() bool { return l.ClientCPU >= BusyClient && l.IdleCPUs >= IdleCPUs }
