package guest

import (
	"maps"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"spillway/internal/metrics"
	"spillway/internal/wire"
)

// Step is a part of a change of hands, or of a response on a leased connection, that is timed.
type Step string

// Steps, in the order in which they happen.
const (
	StepFreeze   Step = "freeze_extract" // guest: freeze, read what is queued, extract
	StepRestore  Step = "park_restore"   // guest: park and restore in place
	StepRelease  Step = "release"        // channel, the host closes its socket, channel
	StepHandover Step = "handover"       // freeze to grant: StepFreeze, channel, restore on the host, channel
	StepHandback Step = "handback"       // HANDBACK to RELEASED: StepRestore and StepRelease
	StepRound    Step = "round_trip"     // freeze to release, without StepLeased
	StepLeased   Step = "leased"         // what the host had the connection for: sending, and waiting for the client

	StepAnswer Step = "answer" // leased: from the request's first byte on the channel to the SEND, which is the server's work
	StepOrder  Step = "order"  // leased: from the SEND to SENT: channel, what the host does, channel
)

func steps() []Step {
	return []Step{StepFreeze, StepRestore, StepRelease, StepHandover, StepHandback, StepRound, StepLeased, StepAnswer, StepOrder}
}

// Stats counts what became of the responses. Its methods are safe for concurrent use.
type Stats struct {
	mu        sync.Mutex
	counts    Counts
	fallbacks map[wire.Reason]uint64
	steps     map[Step]*hdrhistogram.Histogram // µs ×10

	durations map[Step]*metrics.Histogram // the same as steps, for Prometheus; the map itself never changes
}

// Counts are numbers since the start.
type Counts struct {
	Accepted   uint64 `json:"accepted"`    // connections
	Handovers  uint64 `json:"handovers"`   // granted by the host
	Handbacks  uint64 `json:"handbacks"`   // taken back from the host
	Kept       uint64 `json:"kept"`        // handbacks that this side declined
	Sends      uint64 `json:"sends"`       // file ranges sent by the host
	SentBytes  uint64 `json:"sent_bytes"`  // their bytes, without headers
	LocalBytes uint64 `json:"local_bytes"` // bytes that this side wrote to its own sockets
	Relayed    uint64 `json:"relayed"`     // bytes that were no file range and went through the host
	Sessions   uint64 `json:"sessions"`    // with the host
	Lost       uint64 `json:"lost"`        // leases that ended with their session
}

// Quantiles of a step in µs.
type Quantiles struct {
	N      int64   `json:"n"`
	Median float64 `json:"median_us"`
	P99    float64 `json:"p99_us"`
}

// Snapshot is the JSON form of Stats, served by `spillway serve` at its admin address.
type Snapshot struct {
	Mode      string             `json:"mode"`
	Host      string             `json:"host"` // "up", "away" or "draining"
	Leases    int                `json:"leases"`
	Channels  int                `json:"channels"` // with a session
	Counts    Counts             `json:"counts"`
	Fallbacks map[string]uint64  `json:"fallbacks"` // by reason: ranges that could have gone through the host and did not
	Steps     map[Step]Quantiles `json:"steps"`
	Learned   []LearnedCost      `json:"learned,omitempty"` // with ThresholdAuto
}

func newStats() *Stats {
	s := &Stats{
		fallbacks: map[wire.Reason]uint64{}, steps: map[Step]*hdrhistogram.Histogram{}, durations: map[Step]*metrics.Histogram{},
	}
	for _, step := range steps() {
		s.durations[step] = new(metrics.Histogram)
	}
	return s
}

// count changes the counters under the lock.
func (s *Stats) count(change func(*Counts)) {
	s.mu.Lock()
	change(&s.counts)
	s.mu.Unlock()
}

func (s *Stats) fallback(r wire.Reason) {
	s.mu.Lock()
	s.fallbacks[r]++
	s.mu.Unlock()
}

// histogramUnit is the resolution of the steps; they are kept up to one minute.
const (
	histogramUnit = 100 * time.Nanosecond
	histogramMax  = int64(time.Minute / histogramUnit)
)

func (s *Stats) step(name Step, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.steps[name]
	if h == nil {
		h = hdrhistogram.New(1, histogramMax, 3)
		s.steps[name] = h
	}
	_ = h.RecordValue(min(max(int64(d/histogramUnit), 1), histogramMax)) // in range by construction
	s.durations[name].Observe(d)
}

// Reset sets everything to zero, for a measurement that begins.
func (s *Stats) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = Counts{}
	clear(s.fallbacks)
	clear(s.steps)
	for _, h := range s.durations {
		h.Reset()
	}
}

// counted returns the counters alone: quantiles, which snapshot has too, take long to find under the lock.
func (s *Stats) counted() (Counts, map[wire.Reason]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts, maps.Clone(s.fallbacks)
}

func (s *Stats) snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Snapshot{Counts: s.counts, Fallbacks: map[string]uint64{}, Steps: map[Step]Quantiles{}}
	for r, n := range maps.All(s.fallbacks) {
		out.Fallbacks[r.String()] = n
	}
	for name, h := range s.steps {
		toMicros := func(v int64) float64 { return float64(v) * float64(histogramUnit) / float64(time.Microsecond) }
		out.Steps[name] = Quantiles{N: h.TotalCount(), Median: toMicros(h.ValueAtQuantile(50)), P99: toMicros(h.ValueAtQuantile(99))}
	}
	return out
}
