package host

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"spillway/internal/cache"
)

// CacheFiles is a part of what a cache has. Its JSON form is an interface for scripts.
type CacheFiles struct {
	Files   []cache.FileStatus `json:"files"`
	LeftOut int                `json:"left_out"`
}

// CacheProgress is a line of the answer to an order that takes long. The last one has a result or an error.
type CacheProgress struct {
	Done   int64           `json:"done"`
	Total  int64           `json:"total"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// maxCacheFiles is how many files an answer lists if it is not told otherwise.
const maxCacheFiles = 1000

// serveCaches adds what operators may ask of caches:
//
//	GET  /cache/files?share=NAME&prefix=P&max=N   CacheFiles as JSON
//	POST /cache/pin, /cache/unpin                 ?share=NAME&path=P
//	POST /cache/evict                             ?share=NAME&path=P, or prefix=P
//	POST /cache/warm                              ?share=NAME&path=P: CacheProgress, a line each time that there is some
//	POST /cache/verify                            ?share=NAME&prefix=P: the same
func (d *Daemon) serveCaches(mux *http.ServeMux) {
	handle := func(pattern string, f func(c *cache.Cache, w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			name := r.URL.Query().Get("share")
			c, ok := d.shares[name].(cacheFiles)
			if !ok {
				http.Error(w, "there is no share of kind cache with the name "+strconv.Quote(name), http.StatusNotFound)
				return
			}
			f(c.Cache, w, r)
		})
	}
	handle("GET /cache/files", func(c *cache.Cache, w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("max"))
		if err != nil || limit < 0 {
			limit = maxCacheFiles
		}
		var out CacheFiles
		out.Files, out.LeftOut = c.List(r.URL.Query().Get("prefix"), limit)
		answerJSON(w, out)
	})
	pin := func(pinned bool) func(*cache.Cache, http.ResponseWriter, *http.Request) {
		return func(c *cache.Cache, w http.ResponseWriter, r *http.Request) {
			path := r.URL.Query().Get("path")
			c.Pin(path, pinned)
			s, _ := c.File(path)
			answerJSON(w, s)
		}
	}
	handle("POST /cache/pin", pin(true))
	handle("POST /cache/unpin", pin(false))
	handle("POST /cache/evict", func(c *cache.Cache, w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Has("prefix") {
			answerJSON(w, c.Evict(q.Get("prefix"), true))
		} else {
			answerJSON(w, c.Evict(q.Get("path"), false))
		}
	})
	handle("POST /cache/warm", func(c *cache.Cache, w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		long(w, r, func(ctx context.Context, progress func(done, total int64)) (any, error) {
			err := c.Warm(ctx, path, progress)
			s, _ := c.File(path)
			return s, err
		})
	})
	handle("POST /cache/verify", func(c *cache.Cache, w http.ResponseWriter, r *http.Request) {
		long(w, r, func(ctx context.Context, progress func(done, total int64)) (any, error) {
			return c.Verify(ctx, r.URL.Query().Get("prefix"), progress)
		})
	})
}

// progressEvery is how often a long order tells how far it is.
const progressEvery = 100 * time.Millisecond

// long executes an order that takes its time, and ends it when the client goes.
func long(w http.ResponseWriter, r *http.Request, do func(context.Context, func(done, total int64)) (any, error)) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the server's would end r's context
	e := json.NewEncoder(w)
	var told time.Time
	tell := func(p CacheProgress) {
		_ = control.SetWriteDeadline(time.Now().Add(adminTimeout)) // a client that is gone ends r's context
		_ = e.Encode(p)
		_ = control.Flush()
		told = time.Now()
	}
	var last CacheProgress
	result, err := do(r.Context(), func(done, total int64) {
		if last = (CacheProgress{Done: done, Total: total}); time.Since(told) >= progressEvery {
			tell(last)
		}
	})
	if err != nil {
		last.Error = err.Error()
	} else {
		last.Result, _ = json.Marshal(result) // plain structs
	}
	tell(last)
}

// cacheValues are the state of a cache.
var cacheValues = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*cache.Stats) float64
}{
	{describe("cache_files", "Files that the cache knows.", "share"), prometheus.GaugeValue, func(s *cache.Stats) float64 { return float64(s.Files) }},
	{describe("cache_bytes", "Bytes on disk.", "share"), prometheus.GaugeValue, func(s *cache.Stats) float64 { return float64(s.Bytes) }},
	{describe("cache_max_bytes", "Bytes that it may have.", "share"), prometheus.GaugeValue, func(s *cache.Stats) float64 { return float64(s.MaxBytes) }},
	{describe("cache_hits_total", "Ranges asked for that began with bytes that were there.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Hits) }},
	{describe("cache_misses_total", "Ranges asked for that did not.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Misses) }},
	{describe("cache_lookups_total", "Questions to the origin about versions.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Lookups) }},
	{describe("cache_stale_total", "Answers given without the origin, because it did not answer.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Stale) }},
	{describe("cache_fills", "Fills under way, those that wait for their turn at the origin included.", "share"), prometheus.GaugeValue,
		func(s *cache.Stats) float64 { return float64(s.Filling) }},
	{describe("cache_fills_total", "Ranges asked from the origin.", "share"), prometheus.CounterValue, func(s *cache.Stats) float64 { return float64(s.Fills) }},
	{describe("cache_read_ahead_total", "Files fetched before anybody has asked for them.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.ReadAhead) }},
	{describe("cache_replaced_total", "Files that the origin has replaced.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Replaced) }},
	{describe("cache_fill_bytes_total", "Bytes that came from the origin.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.FillBytes) }},
	{describe("cache_fill_failures_total", "Fills that have failed after all attempts.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.FillFailures) }},
	{describe("cache_origin_errors_total", "Attempts at the origin that have failed.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.OriginErrors) }},
	{describe("cache_damaged_blocks_total", "Blocks on disk whose checksum was wrong.", "share"), prometheus.CounterValue,
		func(s *cache.Stats) float64 { return float64(s.Damaged) }},
	{describe("cache_evictions_total", "Files evicted to make room.", "share"), prometheus.CounterValue, func(s *cache.Stats) float64 { return float64(s.Evictions) }},
	{describe("cache_evicted_bytes_total", "Bytes of them.", "share"), prometheus.CounterValue, func(s *cache.Stats) float64 { return float64(s.EvictedBytes) }},
}

var originDesc = describe("cache_origin_latency_seconds", "How long the origin took to its answer, or to its first byte.", "share")

// collectCaches is the part of Collect that is about caches.
func (c collector) collectCaches(out chan<- prometheus.Metric) {
	for name, f := range c.daemon.shares {
		if f, ok := f.(cacheFiles); ok {
			s := f.Stats()
			for _, m := range cacheValues {
				out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s), name)
			}
			out <- f.OriginLatency().Metric(originDesc, name)
		}
	}
}
