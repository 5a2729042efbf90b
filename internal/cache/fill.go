package cache

import (
	"errors"
	"hash/crc32"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"spillway/internal/origin"
)

const (
	runBlocks   = 16 // blocks of a run: a request of 16 MiB costs an origin's round trip (tens of ms) little
	nearBlocks  = 4  // a run that is so near is waited for; another request would hardly be faster
	aheadBlocks = runBlocks / 2
)

// run brings blocks in a row to be verified: those that are present by their checksums, those that are missing from the origin. Cache.mu guards it.
type run struct {
	entry   *entry
	first   int
	end     int           // behind the last block; a reader beyond it may make it shorter
	pos     int64         // what the run has brought reaches up to here
	changed chan struct{} // closed, and replaced, at each progress
	early   bool          // only the read-ahead wants it: it ends where others wait for their turn at the origin
	over    bool
	err     error // when it is over
}

// wake wakes those who wait for progress.
func (r *run) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// want returns a run that will bring block b, one that there is or a new one. early tells that nobody has asked for it yet. mu is held, and e has a reference.
func (c *Cache) want(e *entry, b int, early bool) (*run, error) {
	if e.gone {
		return nil, origin.ErrChanged
	}
	if c.closed {
		return nil, fs.ErrClosed
	}
	if r := e.runOf(b); r != nil {
		if b <= int(r.pos/blockSize)+nearBlocks {
			r.early = r.early && early
			return r, nil
		}
		r.end = b
	}
	r := &run{entry: e, first: b, end: b + 1, pos: blockStart(b), early: early, changed: make(chan struct{})}
	for r.end < len(e.blocks) && r.end < b+runBlocks && e.blocks[r.end].state != verified && e.runOf(r.end) == nil {
		r.end++
	}
	e.runs = append(e.runs, r)
	e.refs++
	d := e.acquireData()
	c.running.Go(func() { c.run(r, d) })
	return r, nil
}

// next starts the next run when a reader at block b has come to the second half of what there is.
func (c *Cache) next(e *entry, b int) {
	if r := e.runOf(b); r != nil {
		r.early = false // he needs it
	}
	for n := b; n <= b+aheadBlocks && n < len(e.blocks); n++ {
		if e.blocks[n].state != verified && e.runOf(n) == nil {
			_, _ = c.want(e, n, false) // who needs it finds out
			return
		}
	}
}

// run executes a run.
func (c *Cache) run(r *run, d *data) {
	var err error
	for err == nil {
		c.lock()
		b := int(r.pos / blockSize)
		if r.pos%blockSize != 0 || b >= r.end { // only the last block is shorter
			c.unlock()
			break
		}
		m := b
		for m < r.end && r.entry.blocks[m].state == missing {
			m++
		}
		c.unlock()
		if m > b {
			err = c.fetch(r, d, b, m)
		} else {
			err = c.check(r, d, b)
		}
	}
	c.lock()
	e := r.entry
	r.over, r.err = true, err
	e.runs = slices.DeleteFunc(e.runs, func(o *run) bool { return o == r })
	if errors.Is(err, origin.ErrChanged) || errors.Is(err, fs.ErrNotExist) {
		c.outdate(e) // whoever looks for it next asks the origin
	}
	r.wake()
	fd := e.release(d)
	c.pump()
	c.unlock()
	closeFD(fd)
	if err != nil && c.ctx.Err() == nil {
		c.count.failures.Add(1)
	}
}

// check compares a block that is on disk with its checksum.
func (c *Cache) check(r *run, d *data, b int) error {
	e := r.entry
	if err := d.open(c.dir, e); err != nil {
		return err
	}
	buf := make([]byte, e.blockLen(b))
	n, err := readAt(d.fd, buf, blockStart(b))
	sum := crc32.Checksum(buf, castagnoli)
	c.lock()
	if n < len(buf) || err != nil || sum != e.blocks[b].sum { // a bad sector is as good as a flipped bit
		c.count.damaged.Add(1)
		e.blocks[b].state = missing
		e.absent++
		c.grow(e, -e.blockLen(b))
		c.unlock()
		return nil
	}
	c.unlock()
	return c.advance(r, d, e.blockEnd(b), block{sum, verified})
}

// advance notes that the bytes of a run up to pos can be read. done is the block that they complete, if its state is verified.
func (c *Cache) advance(r *run, d *data, pos int64, done block) error {
	e := r.entry
	c.lock()
	defer c.unlock()
	if e.gone {
		return origin.ErrChanged
	}
	if done.state == verified {
		b := &e.blocks[(pos-1)/blockSize]
		if b.state == missing {
			e.absent--
			c.index.add(&record{kind: kindBlocks, id: e.id, first: int((pos - 1) / blockSize), sums: []uint32{done.sum}})
		}
		*b = done
		if e.unverified--; e.unverified == 0 {
			c.finish(e, d)
		}
	}
	r.pos = pos
	r.wake()
	return nil
}

// finish makes an entry complete whose blocks all are verified: share.Share knows a version by its file's time. mu is held and released meanwhile.
func (c *Cache) finish(e *entry, d *data) {
	c.unlock()
	err := setTime(d.fd, e.timeNs)
	c.lock()
	if e.complete = err == nil && e.unverified == 0; err != nil {
		c.opts.Log.Warn("a cached file cannot be marked as complete and is served more slowly", "share", c.name, "path", e.path, "error", err)
	}
}

// errCut ends a fetch whose rest another run has taken over.
var errCut = errors.New("the rest is another run's")

// fetch brings the missing blocks b to m-1 from the origin.
func (c *Cache) fetch(r *run, d *data, b, m int) error {
	e := r.entry
	rest := e.blockEnd(m-1) - blockStart(b)
	evicted, err := c.reserve(e, rest)
	if err != nil {
		return err
	}
	// The request is on its way meanwhile: to make a file, and to remove others, takes as long as a round trip to an origin nearby.
	var meanwhile sync.WaitGroup
	defer meanwhile.Wait()
	meanwhile.Go(func() {
		_ = d.open(c.dir, e) // who writes finds out
		c.remove(evicted)
	})
	c.lock()
	if !e.stored && !e.gone {
		e.stored = true
		c.index.add(e.fileRecord())
	}
	c.unlock()
	c.count.fills.Add(1)
	c.count.filling.Add(1)
	defer c.count.filling.Add(-1)
	pos, sum := blockStart(b), uint32(0)
	end := pos + rest
	err = c.source.Fetch(c.ctx, e.path, e.version, pos, rest, func(p []byte) error {
		if err := d.open(c.dir, e); err != nil { // once; waits for it
			return err
		}
		for len(p) > 0 {
			blockEnd := e.blockEnd(int(pos / blockSize))
			part := p[:min(int64(len(p)), blockEnd-pos)]
			if err := c.write(d, part, pos); err != nil {
				return err
			}
			sum = crc32.Update(sum, castagnoli, part)
			pos, p = pos+int64(len(part)), p[len(part):]
			var done block
			if pos == blockEnd {
				done, sum = block{sum, verified}, 0
				rest -= e.blockLen(int((pos - 1) / blockSize))
			}
			if err := c.advance(r, d, pos, done); err != nil {
				return err
			}
			if pos-int64(len(part)) == blockStart(b) {
				runtime.Gosched() // who waits for the first byte goes first: with few CPUs, and an origin nearby, a fill seldom pauses
			}
			if pos < end && c.cutAt(r, pos) {
				return errCut
			}
		}
		return nil
	})
	c.lock()
	c.grow(e, -rest)
	c.unlock()
	if errors.Is(err, errCut) {
		return nil
	}
	return err
}

// cutAt tells whether a run ends at pos.
func (c *Cache) cutAt(r *run, pos int64) bool {
	c.lock()
	defer c.unlock()
	b := int(pos / blockSize)
	if pos%blockSize == 0 && r.early && c.crowded() {
		r.end = min(r.end, b)
	}
	return pos%blockSize == 0 && b >= r.end
}

// write writes to a data file. When the disk is full, because others fill it too, something else goes.
func (c *Cache) write(d *data, p []byte, off int64) error {
	err := writeAt(d.fd, p, off)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	c.lock()
	freed := c.evictBytes(blockSize)
	c.unlock()
	if freed == 0 {
		return errNoRoom
	}
	if err = writeAt(d.fd, p, off); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errNoRoom
	}
	return err
}
