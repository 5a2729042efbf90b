package cache

import (
	"strconv"
	"time"
)

// loader makes entries of the index's records.
type loader struct {
	cache  *Cache
	byID   map[uint64]*entry
	order  []*entry
	lastID uint64
}

func newLoader(c *Cache) *loader { return &loader{cache: c, byID: map[uint64]*entry{}} }

// record takes one record. Any order and any repetition of records is harmless: blocks are checked before they are used.
func (l *loader) record(r *record) {
	l.lastID = max(l.lastID, r.id)
	switch r.kind {
	case kindFile:
		e := l.byID[r.id]
		if e == nil {
			n := blockCount(r.version.Size)
			e = &entry{id: r.id, path: r.path, version: r.version, timeNs: r.version.TimeNs(), stored: true, blocks: make([]block, n), unverified: n, absent: n}
			l.byID[r.id] = e
			l.order = append(l.order, e)
		}
		e.checked = max(e.checked, r.checked)
	case kindBlocks:
		e := l.byID[r.id]
		if e == nil || r.first+len(r.sums) > len(e.blocks) {
			return
		}
		for i, sum := range r.sums {
			b := &e.blocks[r.first+i]
			if b.state == missing {
				e.absent--
			}
			*b = block{sum, present}
		}
	case kindDrop:
		if e := l.byID[r.id]; e != nil {
			e.gone = true
			delete(l.byID, r.id)
		}
	case kindPin:
		l.cache.pins[r.path] = true
	case kindUnpin:
		delete(l.cache.pins, r.path)
	}
}

// finish puts the entries into the cache, in the order in which they came, and returns the ids of their data files.
func (l *loader) finish() map[uint64]*entry {
	c := l.cache
	for _, e := range l.order {
		if e.gone {
			continue
		}
		if newer := c.entries[e.path]; newer != nil { // the record of the older one's end is lost
			if newer.id > e.id {
				delete(l.byID, e.id)
				continue
			}
			c.policy.Remove(&newer.item)
			c.used -= newer.item.Size()
			delete(l.byID, newer.id)
		}
		e.pinned = c.pins[e.path]
		e.until = time.Unix(e.checked, 0).Add(c.ttl(e.path)).UnixNano()
		c.admit(e)
		c.policy.Restore(&e.item)
		var bytes int64
		for b := range e.blocks {
			if e.blocks[b].state != missing {
				bytes += e.blockLen(b)
			}
		}
		c.policy.Resize(&e.item, bytes)
		c.used += bytes
	}
	return l.byID
}

// sweep removes data files that the index does not know.
func (c *Cache) sweep(known map[uint64]*entry, firstNew uint64) {
	removed := 0
	err := c.dir.names(func(name string) bool {
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil || fileName(id) != name || known[id] == nil && id < firstNew {
			if c.dir.removeName(name) == nil {
				removed++
			}
		}
		return c.ctx.Err() == nil
	})
	if removed > 0 || err != nil {
		c.opts.Log.Info("data files that the cache's index does not know were removed", "share", c.name, "files", removed, "error", err)
	}
}

// snapshotBatch is how many entries are looked at with the lock held.
const snapshotBatch = 1000

// snapshot tells everything that the index must know, for a new log.
func (c *Cache) snapshot(add func(*record)) {
	c.lock()
	all := make([]*entry, 0, len(c.entries))
	c.policy.Each(func(e *entry) { all = append(all, e) })
	for p := range c.pins {
		add(&record{kind: kindPin, path: p})
	}
	c.unlock()
	for len(all) > 0 {
		n := min(snapshotBatch, len(all))
		c.lock()
		for _, e := range all[:n] {
			if e.stored && !e.gone {
				e.tell(add)
			}
		}
		c.unlock()
		all = all[n:]
	}
}

// tell describes an entry. Cache.mu is held.
func (e *entry) tell(add func(*record)) {
	add(e.fileRecord())
	for b := 0; b < len(e.blocks); b++ {
		if e.blocks[b].state == missing {
			continue
		}
		r := record{kind: kindBlocks, id: e.id, first: b}
		for ; b < len(e.blocks) && e.blocks[b].state != missing && len(r.sums) < maxSums; b++ {
			r.sums = append(r.sums, e.blocks[b].sum)
		}
		add(&r)
		b-- // the loop's own step
	}
}

func (e *entry) fileRecord() *record {
	return &record{kind: kindFile, id: e.id, version: e.version, checked: e.checked, path: e.path}
}
