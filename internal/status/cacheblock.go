package status

import (
	"fmt"
	"strings"

	"spillway/internal/cache"
	"spillway/internal/host"
)

// cacheOf is what a share's cache has said before, or nil.
func cacheOf(s *host.Status, share string) *cache.Stats {
	if s != nil {
		for i := range s.Shares {
			if s.Shares[i].Name == share {
				return s.Shares[i].Cache
			}
		}
	}
	return nil
}

// cache writes the block of one cache.
func (t *table) cache(now, before *cache.Stats) {
	row := func(label string, value func(*cache.Stats) uint64, write func(uint64) string, rate func(float64) string, notes ...string) {
		writeRow(t, label, now, before, value, write, rate, joined(notes))
	}
	blank := ""
	if t.seconds > 0 {
		blank = fmt.Sprintf(" %11s", "") // bytes on disk come and go: they have no rate
	}
	t.line("  %-13s %15s%s  of %s; %s of %s%s", "cached", byteCount(uint64(now.Bytes)), blank, byteCount(uint64(max(now.MaxBytes, 0))),
		count(uint64(now.Files)), plural(now.MaxFiles, "file"), more(uint64(now.Pins), "pinned"))
	row("hits", func(s *cache.Stats) uint64 { return s.Hits }, count, perSecond, ratio(now.Hits, now.Hits+now.Misses))
	row("misses", func(s *cache.Stats) uint64 { return s.Misses }, count, perSecond)
	row("filled", func(s *cache.Stats) uint64 { return s.FillBytes }, byteCount, bytesPerSecond, unless0(uint64(now.Filling), "under way"),
		unless0(now.ReadAhead, "files ahead"),
		unless0(now.FillFailures, "failed for good"), unless0(now.OriginErrors, "failed attempts"), unless0(now.Damaged, "blocks found damaged"))
	row("lookups", func(s *cache.Stats) uint64 { return s.Lookups }, count, perSecond, unless0(now.Replaced, "replaced"), unless0(now.Stale, "stale"))
	row("evicted", func(s *cache.Stats) uint64 { return s.Evictions }, count, perSecond, bytesUnless0(now.EvictedBytes))
}

// ratio writes a part of a whole; nothing of nothing.
func ratio(part, of uint64) string {
	if of == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(of))
}

func more(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return ", " + unless0(n, what)
}

func bytesUnless0(n uint64) string {
	if n == 0 {
		return ""
	}
	return byteCount(n)
}

// joined writes those notes that say something.
func joined(notes []string) string {
	var some []string
	for _, n := range notes {
		if n != "" {
			some = append(some, n)
		}
	}
	return strings.Join(some, ", ")
}
