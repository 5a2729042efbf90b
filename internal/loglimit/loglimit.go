// Package loglimit keeps a log readable when the same thing happens again and again: a broken host, a hostile guest or a client in a loop may
// cause a line for each request, and the lines that matter would be lost among them.
//
// It is for lines that somebody else can cause at will. What happens once in a daemon's life is logged without it.
package loglimit

import (
	"sync"
	"time"
)

// Interval between two lines of a Limiter.
const Interval = time.Second

// Limiter lets the first log line pass at once and then one each Interval. The zero Limiter is ready for use, also by several goroutines.
type Limiter struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

// Allow tells whether to log now, and how many lines were left out since the last one: log that number as not_logged.
func (l *Limiter) Allow() (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last) < Interval {
		l.skipped++
		return 0, false
	}
	skipped, l.skipped, l.last = l.skipped, 0, now
	return skipped, true
}
