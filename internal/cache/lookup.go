package cache

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"spillway/internal/origin"
	"spillway/internal/wire"
)

// staleAfter is how long somebody waits for the origin who may have an older answer.
const staleAfter = time.Second

// awayTTL is how long an origin that is away, or out of order, is not asked again for the same file.
const awayTTL = time.Second

// recordedTTL is the least time-to-live for which it is worth to remember over a restart when a version was checked.
const recordedTTL = time.Minute

// attributes are what a guest knows a version by.
type attributes struct{ size, timeNs int64 }

func (e *entry) attributes() attributes { return attributes{e.version.Size, e.timeNs} }

// lookup is a question to the origin that is under way.
type lookup struct {
	done  chan struct{}
	early bool // only the read-ahead waits for it. Guarded by Cache.mu
	// Set before done is closed.
	attr attributes
	err  error
}

// Stat returns size and modification time (ns since 1970) of a file: those of the version that the cache has, if it is still believed, or else what the origin
// says. ctx bounds the wait and not the question.
func (c *Cache) Stat(ctx context.Context, p string) (size, mtimeNs int64, err error) {
	a, err := c.stat(ctx, p, false)
	if err != nil {
		return 0, 0, c.fail("stat", p, err)
	}
	return a.size, a.timeNs, nil
}

func (c *Cache) stat(ctx context.Context, p string, early bool) (attributes, error) {
	if !wire.ValidPath(p) {
		return attributes{}, errPath
	}
	c.lock()
	now := c.opts.Now()
	e := c.entries[p]
	if e != nil && now.UnixNano() < e.until {
		a := e.attributes()
		c.unlock()
		return a, nil
	}
	if err := c.absent.get(p, now); err != nil {
		c.unlock()
		return attributes{}, err
	}
	l, err := c.ask(p, early)
	var older attributes
	var enough <-chan time.Time
	if e != nil && c.mayBeStale(e, now) {
		older = e.attributes()
		timer := time.NewTimer(staleAfter)
		defer timer.Stop()
		enough = timer.C
	}
	c.unlock()
	if err != nil {
		return attributes{}, err
	}
	select {
	case <-l.done:
		return l.attr, l.err
	case <-enough:
		c.count.stale.Add(1)
		return older, nil
	case <-ctx.Done():
		return attributes{}, context.Cause(ctx)
	}
}

// Known tells whether Stat answers at once, or waits for a question that is under way already: whether it costs the origin nothing.
func (c *Cache) Known(p string) bool {
	c.lock()
	defer c.unlock()
	e := c.entries[p]
	return e != nil || c.absent.get(p, c.opts.Now()) != nil || c.lookups[p] != nil || !wire.ValidPath(p)
}

// mayBeStale tells whether e may be served although nobody knows whether it is still the version.
func (c *Cache) mayBeStale(e *entry, now time.Time) bool {
	return now.Before(time.Unix(e.checked, 0).Add(c.ttl(e.path) + c.opts.Stale))
}

// ask asks the origin, unless somebody does already. early tells that nobody has asked for the file yet. mu is held.
func (c *Cache) ask(p string, early bool) (*lookup, error) {
	if c.closed {
		return nil, fs.ErrClosed
	}
	l := c.lookups[p]
	if l == nil {
		l = &lookup{done: make(chan struct{}), early: early}
		c.lookups[p] = l
		c.count.lookups.Add(1)
		c.running.Go(func() {
			v, err := c.source.Stat(c.ctx, p)
			l.attr, l.err = c.learn(p, l, v, err)
			close(l.done)
		})
	}
	l.early = l.early && early
	return l, nil
}

// learn takes an answer of the origin.
func (c *Cache) learn(p string, l *lookup, v origin.Version, err error) (attributes, error) {
	c.lock()
	defer c.unlock()
	delete(c.lookups, p)
	now := c.opts.Now()
	e := c.entries[p]
	switch {
	case err == nil && e != nil && e.version.Same(v) && l.early && !settled(v, now): // as much in doubt as before
	case err == nil && e != nil && e.version.Same(v):
		e.believe(now, c.ttl(p))
		if e.stored && c.ttl(p) >= recordedTTL {
			c.index.add(e.fileRecord())
		}
	case err == nil:
		if e != nil {
			c.count.replaced.Add(1)
			c.outdate(e)
		}
		if e, err = c.insert(p, v, now); err != nil {
			return attributes{}, err
		}
		if l.early && !settled(v, now) {
			e.doubt()
		}
	case origin.Away(err) && e != nil && c.mayBeStale(e, now):
		c.count.stale.Add(1)
		e.until = now.Add(awayTTL).UnixNano()
	default:
		ttl := c.opts.NegativeTTL
		if errors.Is(err, fs.ErrNotExist) {
			if e != nil {
				c.outdate(e)
			}
		} else {
			ttl = min(ttl, awayTTL)
		}
		if l.early {
			c.ahead.absent.put(p, absence{err, now.Add(ttl)})
		} else {
			c.absent.put(p, absence{err, now.Add(ttl)})
		}
		return attributes{}, err
	}
	c.absent.remove(p)
	return e.attributes(), nil
}

// maxAbsences bounds the names that are remembered as not there: with the longest of names, 16 MiB.
const maxAbsences = 16 << 10

// absence is an answer that there is no such file, or none to be had now.
type absence struct {
	err   error
	until time.Time
}

// absences are remembered by name, the latest ones.
type absences struct {
	until map[string]absence
	order []string // oldest first; a name may be in it that is no longer in the map
}

// get returns why there is no such file, or nil.
func (a *absences) get(p string, now time.Time) error {
	if x, ok := a.until[p]; ok && now.Before(x.until) {
		return x.err
	}
	return nil
}

func (a *absences) put(p string, x absence) {
	if _, there := a.until[p]; !there {
		for len(a.order) >= maxAbsences {
			delete(a.until, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, p)
	}
	a.until[p] = x
}

func (a *absences) remove(p string) { delete(a.until, p) }
