package metrics

import (
	"math"
	"sort"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Buckets of a Histogram. They are those of a native histogram of Prometheus, whose bounds are powers of 2^(1/8): a quantile is off by 9 % at most.
// The classic buckets, which every Prometheus understands, are every eighth of them.
const (
	schema      = 3           // log2 of perOctave
	perOctave   = 1 << schema // buckets from one power of two to the next
	minExponent = -20         // 2^-20 s, 1 µs: what took less counts as nothing
	maxExponent = 17          // 2^17 s, 36 h: what took more is in the last bucket

	firstClassic = -17 // 2^-17 s, 7.6 µs: freezing a connection takes as long
	lastClassic  = 6   // 2^6 s, 64 s: above the time-outs
)

// fractions are the bounds between 2^-1 and 2^0, the first of them included.
var fractions = func() (f [perOctave]float64) {
	for i := range f {
		f[i] = math.Exp2(float64(i)/perOctave - 1)
	}
	return f
}()

// Histogram of durations. The zero value is ready. Its methods are safe for concurrent use.
type Histogram struct {
	sumNs   atomic.Int64
	buckets [1 + (maxExponent-minExponent)*perOctave]atomic.Uint64 // the first one ends at 2^minExponent s
}

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) {
	h.buckets[bucketOf(d)].Add(1)
	h.sumNs.Add(int64(max(d, 0)))
}

// bucketOf returns the bucket of a duration. Bucket i ends at 2^(minExponent + i/8) s, which is in it.
func bucketOf(d time.Duration) int {
	if d <= 0 {
		return 0
	}
	fraction, exponent := math.Frexp(d.Seconds())
	i := (exponent-1-minExponent)*perOctave + sort.SearchFloat64s(fractions[:], fraction)
	return min(max(i, 0), len(Histogram{}.buckets)-1)
}

// Reset forgets everything. What is observed meanwhile may be counted in part.
func (h *Histogram) Reset() {
	h.sumNs.Store(0)
	for i := range h.buckets {
		h.buckets[i].Store(0)
	}
}

// Count returns how many durations there are.
func (h *Histogram) Count() (n uint64) {
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// Metric returns what was observed until now. Its sum may lack, or have ahead, what is observed at this moment.
func (h *Histogram) Metric(desc *prometheus.Desc, labelValues ...string) prometheus.Metric {
	o := &observed{desc: desc, labels: prometheus.MakeLabelPairs(desc, labelValues), sum: time.Duration(h.sumNs.Load()).Seconds()}
	for i := range o.buckets {
		o.buckets[i] = h.buckets[i].Load()
	}
	return o
}

// observed is the state of a Histogram at one moment (prometheus.Metric). The library's own constant histograms are either classic or native;
// this one is both.
type observed struct {
	desc    *prometheus.Desc
	labels  []*dto.LabelPair
	sum     float64 // s
	buckets [len(Histogram{}.buckets)]uint64
}

// Desc implements prometheus.Metric.
func (o *observed) Desc() *prometheus.Desc { return o.desc }

// Write implements prometheus.Metric.
func (o *observed) Write(out *dto.Metric) error {
	out.Label = o.labels
	out.Histogram = &dto.Histogram{
		SampleSum: &o.sum, Schema: new(int32(schema)), ZeroThreshold: new(math.Exp2(minExponent)), ZeroCount: &o.buckets[0],
	}
	o.writeClassic(out.Histogram)
	o.writeNative(out.Histogram)
	return nil
}

// writeClassic writes the cumulative counts.
func (o *observed) writeClassic(out *dto.Histogram) {
	var total uint64
	bound := firstClassic
	for i, n := range o.buckets {
		total += n
		if bound <= lastClassic && i == (bound-minExponent)*perOctave {
			out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: new(math.Exp2(float64(bound))), CumulativeCount: new(total)})
			bound++
		}
	}
	out.SampleCount = &total
}

// writeNative writes all buckets from the first to the last that is not empty, as one span: each as the difference to the one before.
func (o *observed) writeNative(out *dto.Histogram) {
	first, last := 1, len(o.buckets)-1
	for first <= last && o.buckets[first] == 0 {
		first++
	}
	for first <= last && o.buckets[last] == 0 {
		last--
	}
	var before int64
	for i := first; i <= last; i++ {
		n := int64(o.buckets[i])
		out.PositiveDelta = append(out.PositiveDelta, n-before)
		before = n
	}
	if length := uint32(len(out.PositiveDelta)); length > 0 {
		out.PositiveSpan = []*dto.BucketSpan{{Offset: new(int32(first + minExponent*perOctave)), Length: &length}}
	}
}
