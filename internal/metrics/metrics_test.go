package metrics

import (
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

var testDesc = prometheus.NewDesc("test_duration_seconds", "How long a test takes.", []string{"step"}, nil)

// one is a collector of one histogram.
type one struct{ h *Histogram }

func (o one) Describe(c chan<- *prometheus.Desc) { c <- testDesc }
func (o one) Collect(c chan<- prometheus.Metric) { c <- o.h.Metric(testDesc, "all") }

// upperBound is that of a bucket, in seconds.
func upperBound(i int) float64 { return math.Exp2(minExponent + float64(i)/perOctave) }

// TestBucketOf: a duration lies in its bucket, up to the last ulp of a bound.
func TestBucketOf(t *testing.T) {
	last := len(Histogram{}.buckets) - 1
	for d, want := range map[time.Duration]int{
		-time.Second: 0, 0: 0, 1: 0, 953 * time.Nanosecond: 0, 954 * time.Nanosecond: 1,
		500 * time.Millisecond: 19 * perOctave, 500*time.Millisecond + 1: 19*perOctave + 1, time.Second: 20 * perOctave,
		36 * time.Hour: last, math.MaxInt64: last,
	} {
		if got := bucketOf(d); got != want {
			t.Errorf("bucketOf(%v) = %d, want %d", d, got, want)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100_000 {
		d := time.Duration(math.Exp2(47 * r.Float64())) // 1 ns to 39 h
		i, s := bucketOf(d), d.Seconds()
		if i < last && s > upperBound(i)*(1+1e-12) || i > 0 && s < upperBound(i-1)*(1-1e-12) {
			t.Fatalf("%v is in bucket %d, from %g to %g s", d, i, upperBound(i-1), upperBound(i))
		}
	}
}

// gather returns the histogram as the library hands it on.
func gather(t *testing.T, h *Histogram) *dto.Histogram {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(one{h})
	families, err := r.Gather()
	if err != nil || len(families) != 1 || len(families[0].Metric) != 1 {
		t.Fatalf("%v, %v", families, err)
	}
	return families[0].Metric[0].Histogram
}

// native adds up the counts of the native buckets, by the index that the format gives them.
func native(h *dto.Histogram) map[int32]int64 {
	counts := map[int32]int64{}
	var index int32
	var n int64
	deltas := h.PositiveDelta
	for _, s := range h.PositiveSpan {
		index += s.GetOffset()
		for range s.GetLength() {
			n += deltas[0]
			if deltas = deltas[1:]; n != 0 {
				counts[index] = n
			}
			index++
		}
	}
	return counts
}

// TestHistogram: classic and native buckets tell the same, and agree with the library's own histogram.
func TestHistogram(t *testing.T) {
	var h Histogram
	var bounds []float64
	for e := firstClassic; e <= lastClassic; e++ {
		bounds = append(bounds, math.Exp2(float64(e)))
	}
	reference := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "reference_seconds", Buckets: bounds,
		NativeHistogramBucketFactor: 1.1, NativeHistogramZeroThreshold: math.Exp2(minExponent), NativeHistogramMaxBucketNumber: 1000,
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const n = 2000
	for range n {
		d := time.Duration(math.Exp2(46 * r.Float64()))
		h.Observe(d)
		reference.Observe(d.Seconds())
	}
	var m dto.Metric
	if err := reference.Write(&m); err != nil {
		t.Fatal(err)
	}
	got, want := gather(t, &h), m.Histogram
	if h.Count() != n || got.GetSampleCount() != n || math.Abs(got.GetSampleSum()/want.GetSampleSum()-1) > 1e-9 {
		t.Errorf("count %d, sum %g, want %d, %g", got.GetSampleCount(), got.GetSampleSum(), n, want.GetSampleSum())
	}
	if len(got.Bucket) != len(want.Bucket) {
		t.Fatalf("%d classic buckets, want %d", len(got.Bucket), len(want.Bucket))
	}
	for i, w := range want.Bucket {
		if g := got.Bucket[i]; g.GetUpperBound() != w.GetUpperBound() || g.GetCumulativeCount() != w.GetCumulativeCount() {
			t.Errorf("classic bucket %v, want %v", g, w)
		}
	}
	if got.GetSchema() != want.GetSchema() || got.GetZeroCount() != want.GetZeroCount() || got.GetZeroThreshold() != want.GetZeroThreshold() {
		t.Errorf("native: %d %d %g, want %d %d %g", got.GetSchema(), got.GetZeroCount(), got.GetZeroThreshold(),
			want.GetSchema(), want.GetZeroCount(), want.GetZeroThreshold())
	}
	gotNative, wantNative := native(got), native(want)
	for i, w := range wantNative {
		if gotNative[i] != w {
			t.Errorf("native bucket %d has %d, want %d", i, gotNative[i], w)
		}
	}
	if len(gotNative) != len(wantNative) || len(gotNative) < 100 {
		t.Errorf("%d native buckets, want %d", len(gotNative), len(wantNative))
	}

	h.Reset()
	empty := gather(t, &h)
	if empty.GetSampleCount() != 0 || empty.GetSampleSum() != 0 || len(empty.PositiveSpan) != 0 || len(empty.Bucket) != len(bounds) {
		t.Errorf("after a reset: %v", empty)
	}
}

// TestConcurrent: nothing gets lost between those who observe and one who reads.
func TestConcurrent(t *testing.T) {
	var h Histogram
	var wait sync.WaitGroup
	const each = 10_000
	for i := range 4 {
		wait.Go(func() {
			for range each {
				h.Observe(time.Duration(i) * time.Millisecond)
			}
		})
	}
	for range 100 {
		gather(t, &h)
	}
	wait.Wait()
	if got := gather(t, &h); got.GetSampleCount() != 4*each || got.GetSampleSum() != each*6e-3 {
		t.Errorf("count %d, sum %g", got.GetSampleCount(), got.GetSampleSum())
	}
}

// TestHandler: a Prometheus gets what it asks for, text or protobuf.
func TestHandler(t *testing.T) {
	var h Histogram
	h.Observe(20 * time.Microsecond)
	h.Observe(3 * time.Second)
	handler := Handler(one{&h})
	ask := func(accept string) *http.Response {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept", accept)
		handler.ServeHTTP(w, r)
		return w.Result()
	}
	text, err := io.ReadAll(ask("").Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`test_duration_seconds_bucket{step="all",le="1.52587890625e-05"} 0`,
		`test_duration_seconds_bucket{step="all",le="3.0517578125e-05"} 1`,
		`test_duration_seconds_bucket{step="all",le="4"} 2`,
		`test_duration_seconds_bucket{step="all",le="+Inf"} 2`,
		`test_duration_seconds_sum{step="all"} 3.00002`,
		`test_duration_seconds_count{step="all"} 2`,
	} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("not there: %s", line)
		}
	}
	for _, of := range []string{"process_open_fds", "go_goroutines"} {
		if !strings.Contains(string(text), "\n"+of+" ") {
			t.Errorf("not there: %s", of)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(string(text))); err != nil {
		t.Error(err)
	}

	resp := ask(string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	decoder := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			t.Fatalf("no native histogram before %v", err)
		}
		if family.GetName() == "test_duration_seconds" {
			if got := native(family.Metric[0].Histogram); len(got) != 2 {
				t.Errorf("native buckets %v", got)
			}
			break
		}
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(one{new(Histogram)})
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestValues(t *testing.T) {
	var m dto.Metric
	for want, metric := range map[float64]prometheus.Metric{
		7: Counter(testDesc, 7, "a"), 0.5: Gauge(testDesc, 0.5, "a"), 1: Gauge(testDesc, Flag(true), "a"), 0: Gauge(testDesc, Flag(false), "a"),
	} {
		m.Reset()
		if err := metric.Write(&m); err != nil || m.GetCounter().GetValue()+m.GetGauge().GetValue() != want {
			t.Errorf("%v, %v, want %g", &m, err, want)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	var h Histogram
	for b.Loop() {
		h.Observe(37 * time.Microsecond)
	}
}
