package cache

import (
	"context"
	"path"
	"strconv"
	"strings"
	"time"

	"spillway/internal/origin"
)

// Read-ahead: whoever begins to read segment-12.m4s will most likely ask for segment-13.m4s in some seconds. So the cache fetches the next files of the series
// before they are asked for, one after another, if the origin has time for it:
//
//   - It begins only as long as a request more to the origin would leave one free, and stops at the next block when somebody waits for his turn.
//   - That there is no next file yet is not remembered for those who ask for it: of a live stream it may come at any moment.
//   - The next file of a live stream may still be growing when it is found. It is believed only if it is old enough, or when the origin says the same once more
//     to the first one who asks.

const (
	maxAhead      = 256              // names that wait to be fetched ahead
	maxAheadBytes = 64 << 20         // of a file that is: segments have some MB, films of a series some GB
	settledAge    = 10 * time.Minute // of a file that nobody writes to any more; more than clocks differ
	maxDigits     = 18               // of a number in a name, so that it is an int64
)

// ahead is what is to be fetched before it is asked for. Cache.mu guards it.
type ahead struct {
	waiting []aheadItem     // in the order in which they came
	known   map[string]bool // those that wait, and those that are being fetched
	running int
	absent  absences // names that were looked for in vain
}

// aheadItem is a file to be fetched ahead, and how many of its series are to be, itself included.
type aheadItem struct {
	path string
	left int
}

// nextName is the name of the file that follows in a series: the last number of the name, without its extension, is one more and has as many digits at least.
func nextName(p string) (next string, ok bool) {
	ext := path.Ext(p)
	stem := strings.TrimSuffix(p, ext)
	isDigit := func(c byte) bool { return '0' <= c && c <= '9' }
	last := len(stem)
	for last > 0 && stem[last-1] != '/' && !isDigit(stem[last-1]) {
		last--
	}
	first := last
	for first > 0 && isDigit(stem[first-1]) {
		first--
	}
	if first == last || last-first > maxDigits {
		return "", false
	}
	n, err := strconv.ParseInt(stem[first:last], 10, 64)
	if err != nil {
		return "", false // cannot be: it has digits only, and few
	}
	number := strconv.FormatInt(n+1, 10)
	if missing := last - first - len(number); missing > 0 {
		number = strings.Repeat("0", missing) + number
	}
	return stem[:first] + number + stem[last:] + ext, true
}

// settled tells whether a version is old enough for its file to be complete.
func settled(v origin.Version, now time.Time) bool {
	return !v.ModTime.IsZero() && now.Sub(v.ModTime) >= settledAge
}

// readAhead notes that somebody begins to read a file. mu is held.
func (c *Cache) readAhead(p string) {
	if c.opts.ReadAhead > 0 && c.source.MaxRequests() > 1 {
		c.lineUp(aheadItem{p, c.opts.ReadAhead + 1})
		c.pump()
	}
}

// lineUp makes the first file that follows i, and of which something is missing, one to be fetched. mu is held.
func (c *Cache) lineUp(i aheadItem) {
	for {
		next, ok := nextName(i.path)
		if i = (aheadItem{next, i.left - 1}); !ok || i.left == 0 || c.ahead.known[next] || c.ahead.absent.get(next, c.opts.Now()) != nil {
			return
		}
		if e := c.entries[next]; e == nil || e.absent > 0 {
			break
		}
	}
	if len(c.ahead.waiting) >= maxAhead { // whoever wanted the oldest has most likely asked for it by now
		delete(c.ahead.known, c.ahead.waiting[0].path)
		c.ahead.waiting = c.ahead.waiting[1:]
	}
	c.ahead.known[i.path] = true
	c.ahead.waiting = append(c.ahead.waiting, i)
}

// pump fetches as much of what waits as the origin has time for. mu is held.
func (c *Cache) pump() {
	for len(c.ahead.waiting) > 0 && !c.closed && c.ahead.running < c.source.MaxRequests()-1 && c.spare() {
		i := c.ahead.waiting[0]
		c.ahead.waiting = c.ahead.waiting[1:]
		c.ahead.running++
		c.running.Go(func() { c.fetchAhead(i) })
	}
}

// spare tells whether a fill more leaves one request to the origin free.
func (c *Cache) spare() bool { return int(c.count.filling.Load()) < c.source.MaxRequests()-1 }

// crowded tells whether somebody waits for his turn at the origin.
func (c *Cache) crowded() bool { return int(c.count.filling.Load()) > c.source.MaxRequests() }

// fetchAhead fetches a file, and lines up the next one.
func (c *Cache) fetchAhead(i aheadItem) {
	a, err := c.stat(c.ctx, i.path, true)
	done := false
	if err == nil && a.size <= maxAheadBytes {
		done, err = c.fillAhead(c.ctx, i.path, a)
	}
	c.lock()
	defer c.unlock()
	c.ahead.running--
	delete(c.ahead.known, i.path)
	switch {
	case err != nil: // whoever asks for the file finds out
	case done:
		c.lineUp(i)
	case a.size <= maxAheadBytes && len(c.ahead.waiting) < maxAhead: // it had to make way
		c.ahead.known[i.path] = true
		c.ahead.waiting = append(c.ahead.waiting, i)
	}
	c.pump()
}

// fillAhead brings all of a file into the cache, as long as nobody else needs the origin. It returns whether all is there.
func (c *Cache) fillAhead(ctx context.Context, p string, a attributes) (done bool, err error) {
	c.lock()
	e := c.entries[p]
	if e == nil || e.attributes() != a {
		c.unlock()
		return false, origin.ErrChanged
	}
	fetched := e.absent > 0
	f, err := c.use(e, -1) // unlocks
	if err != nil {
		return false, err
	}
	defer f.Release()
	if f.shared != nil {
		return true, nil
	}
	var last *run
	for off := int64(0); off < a.size; {
		c.lock()
		if n := e.available(off); n > 0 {
			c.unlock()
			off += n
			continue
		}
		b := int(off / blockSize)
		switch {
		case last != nil && last.err != nil:
			err = last.err
		case e.runOf(b) == nil && !c.spare(): // make way
			c.unlock()
			return false, nil
		default:
			last, err = c.want(e, b, true)
		}
		if err != nil {
			c.unlock()
			return false, err
		}
		changed := last.changed
		c.unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	if fetched {
		c.count.readAhead.Add(1)
	}
	return true, nil
}
