package cache

import (
	"sync/atomic"

	"spillway/internal/metrics"
)

// counters since the cache was opened.
type counters struct {
	hits, misses, lookups, stale, replaced, fills, failures, damaged, evictions, evictedBytes, readAhead atomic.Uint64
	filling                                                                                              atomic.Int64
}

// Stats is the state of a cache, for status and metrics. Its JSON form is an interface for scripts.
type Stats struct {
	Files    int   `json:"files"`
	Bytes    int64 `json:"bytes"`
	MaxFiles int   `json:"max_files"`
	MaxBytes int64 `json:"max_bytes"`
	Pins     int   `json:"pins"`
	Filling  int   `json:"filling"` // fills under way, those that wait for their turn at the origin included

	Hits         uint64 `json:"hits_total"`           // files acquired of which nothing was missing
	Misses       uint64 `json:"misses_total"`         // and others
	Lookups      uint64 `json:"lookups_total"`        // questions to the origin about versions
	Stale        uint64 `json:"stale_total"`          // answers from before, because the origin did not answer
	Replaced     uint64 `json:"replaced_total"`       // versions that the origin has replaced
	Fills        uint64 `json:"fills_total"`          // ranges asked from the origin
	FillBytes    uint64 `json:"fill_bytes_total"`     // that came from the origin
	FillFailures uint64 `json:"fill_failures_total"`  // runs that have failed, after all attempts
	OriginErrors uint64 `json:"origin_errors_total"`  // attempts that have failed
	ReadAhead    uint64 `json:"read_ahead_total"`     // files fetched before anybody has asked for them
	Damaged      uint64 `json:"damaged_blocks_total"` // blocks whose checksum was wrong
	Evictions    uint64 `json:"evictions_total"`      // files
	EvictedBytes uint64 `json:"evicted_bytes_total"`  //
	OpenFiles    int    `json:"-"`                    // as in share.Stats
	IdleFiles    int    `json:"-"`
	Opens        uint64 `json:"-"`
	Reuses       uint64 `json:"-"`
}

// Stats returns the present state.
func (c *Cache) Stats() Stats {
	n, f := &c.count, c.files.Stats()
	s := Stats{
		MaxFiles: c.opts.MaxFiles, MaxBytes: c.opts.MaxBytes, Filling: int(n.filling.Load()),
		Hits: n.hits.Load(), Misses: n.misses.Load(), Lookups: n.lookups.Load(), Stale: n.stale.Load(), Replaced: n.replaced.Load(),
		Fills: n.fills.Load(), FillBytes: c.source.ReadBytes.Load(), FillFailures: n.failures.Load(), OriginErrors: c.source.Failures.Load(),
		ReadAhead: n.readAhead.Load(), Damaged: n.damaged.Load(), Evictions: n.evictions.Load(), EvictedBytes: n.evictedBytes.Load(),
		OpenFiles: f.Open, IdleFiles: f.Idle, Opens: f.Opens, Reuses: f.Reuses,
	}
	c.lock()
	defer c.unlock()
	s.Files, s.Bytes, s.Pins = len(c.entries), c.used, len(c.pins)
	return s
}

// OriginLatency is how long the origin took to its first byte, or to its answer.
func (c *Cache) OriginLatency() *metrics.Histogram { return &c.source.Latency }
