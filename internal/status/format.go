package status

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// byteCount writes an amount of bytes in decimal units: 1 MB is 10⁶.
func byteCount(n uint64) string { return humanize.Bytes(n) }

// count writes a number with a comma after each three digits.
func count(n uint64) string { return humanize.Comma(int64(min(n, math.MaxInt64))) }

// perSecond writes a rate of events. Small ones have a decimal: one in ten seconds is not none.
func perSecond(n float64) string {
	if n > 0 && n < 10 {
		return fmt.Sprintf("%.1f/s", max(n, 0.1))
	}
	return count(uint64(n)) + "/s"
}

// bytesPerSecond writes a rate of bytes.
func bytesPerSecond(n float64) string { return byteCount(uint64(n)) + "/s" }

// age writes a time span in its two largest units.
func age(seconds float64) string {
	s := int64(max(seconds, 0))
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch {
	case s >= day:
		return fmt.Sprintf("%dd %dh", s/day, s%day/hour)
	case s >= hour:
		return fmt.Sprintf("%dh %dm", s/hour, s%hour/minute)
	case s >= minute:
		return fmt.Sprintf("%dm %ds", s/minute, s%minute)
	}
	return fmt.Sprintf("%ds", s)
}

// plural writes a number of things.
func plural(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return count(uint64(max(n, 0))) + " " + thing
}

// reasons writes counts by reason, the most frequent first.
func reasons(by map[string]uint64) string {
	names := make([]string, 0, len(by))
	for name := range by {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		switch {
		case by[a] > by[b]:
			return -1
		case by[a] < by[b]:
			return 1
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = name + " " + count(by[name])
	}
	return strings.Join(names, ", ")
}

// sum adds up counts by reason.
func sum(by map[string]uint64) (n uint64) {
	for _, c := range by {
		n += c
	}
	return n
}

// clock is the time of day that is shown.
func clock(t time.Time) string { return t.Format(time.TimeOnly) }
