package loglimit

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAllow: the first line at once, then one an interval, each with the number of those before it that were left out.
func TestAllow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Limiter
		for i, c := range []struct {
			after   time.Duration
			skipped int
			ok      bool
		}{
			{0, 0, true}, {0, 0, false}, {Interval - 1, 0, false}, {1, 2, true},
			{Interval / 2, 0, false}, {Interval / 2, 1, true}, {10 * Interval, 0, true},
		} {
			time.Sleep(c.after)
			if skipped, ok := l.Allow(); skipped != c.skipped || ok != c.ok {
				t.Errorf("call %d: %d, %v, want %d, %v", i, skipped, ok, c.skipped, c.ok)
			}
		}
	})
}
