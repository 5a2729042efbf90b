package cache

import (
	"cmp"
	"context"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"time"
)

// FileStatus is what the cache has of one file. Its JSON form is an interface for scripts.
type FileStatus struct {
	Path        string    `json:"path"`
	Bytes       int64     `json:"bytes"`
	CachedBytes int64     `json:"cached_bytes"`
	Complete    bool      `json:"complete"`
	Pinned      bool      `json:"pinned"`
	Users       int       `json:"users"` // readers and fills
	ModTime     time.Time `json:"mtime"` // as guests see it
	ETag        string    `json:"etag,omitempty"`
	Checked     time.Time `json:"checked"`  // when the origin has last said that this is the version
	Believed    time.Time `json:"believed"` // until when it is not asked again
	DataFile    string    `json:"data_file,omitempty"`
}

// status describes an entry. Cache.mu is held.
func (e *entry) status() FileStatus {
	s := FileStatus{
		Path: e.path, Bytes: e.version.Size, Complete: e.absent == 0, Pinned: e.pinned, Users: e.refs, ETag: e.version.ETag,
		ModTime: time.Unix(0, e.timeNs).UTC(), Checked: time.Unix(e.checked, 0).UTC(), Believed: time.Unix(0, e.until).UTC(),
	}
	for b := range e.blocks {
		if e.blocks[b].state != missing {
			s.CachedBytes += e.blockLen(b)
		}
	}
	if e.blocks != nil {
		s.DataFile = fileName(e.id)
	}
	return s
}

// matching returns the entries whose paths begin with prefix, by path.
func (c *Cache) matching(prefix string) []*entry {
	c.lock()
	all := make([]*entry, 0, len(c.entries))
	for _, e := range c.entries {
		all = append(all, e)
	}
	c.unlock()
	all = slices.DeleteFunc(all, func(e *entry) bool { return !strings.HasPrefix(e.path, prefix) })
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.path, b.path) })
	return all
}

// List returns what the cache has of the files whose paths begin with prefix, at most max, and how many it left out.
func (c *Cache) List(prefix string, max int) (files []FileStatus, leftOut int) {
	all := c.matching(prefix)
	listed := min(len(all), max)
	files = make([]FileStatus, 0, listed)
	for _, e := range all[:listed] {
		c.lock()
		files = append(files, e.status())
		c.unlock()
	}
	return files, len(all) - listed
}

// File returns what the cache has of one file, and whether it knows it.
func (c *Cache) File(p string) (FileStatus, bool) {
	c.lock()
	defer c.unlock()
	e := c.entries[p]
	if e == nil {
		return FileStatus{Path: p, Pinned: c.pins[p]}, false
	}
	return e.status(), true
}

// Warm brings all of a file into the cache. progress is told the bytes that are there.
func (c *Cache) Warm(ctx context.Context, p string, progress func(done, total int64)) error {
	a, err := c.stat(ctx, p, false)
	if err != nil {
		return c.fail("warm", p, err)
	}
	ref := (&entry{path: p, timeNs: a.timeNs}).ref(c.name)
	ref.Size = a.size
	f, err := c.Acquire(ctx, ref, 0)
	if err != nil {
		return err
	}
	defer f.Release()
	for off := int64(0); off < a.size; {
		n, err := f.Await(ctx, off)
		if err != nil {
			return err
		}
		off += n
		progress(off, a.size)
	}
	return nil
}

// Pin keeps a file from being evicted, from now on or when it comes; or not any more.
func (c *Cache) Pin(p string, pinned bool) {
	c.lock()
	defer c.unlock()
	if c.pins[p] == pinned {
		return
	}
	r := &record{kind: kindUnpin, path: p}
	if pinned {
		r.kind = kindPin
		c.pins[p] = true
	} else {
		delete(c.pins, p)
	}
	c.index.add(r)
	if e := c.entries[p]; e != nil {
		e.pinned = pinned
	}
}

// Evicted is what Evict has done.
type Evicted struct {
	Files  int   `json:"files"`
	Bytes  int64 `json:"bytes"`
	InUse  int   `json:"in_use"` // files that were left because somebody reads or fills them
	Pinned int   `json:"pinned"` // files that were left because they are pinned
}

// Evict removes the files whose paths begin with prefix, or exactly one. Replaced is told of them: whoever evicts a file wants the origin to be asked anew.
func (c *Cache) Evict(p string, prefix bool) (done Evicted) {
	for _, e := range c.matching(p) {
		if !prefix && e.path != p {
			continue
		}
		c.lock()
		switch {
		case e.gone:
		case e.pinned:
			done.Pinned++
		case e.refs > 0:
			done.InUse++
		default:
			done.Files++
			done.Bytes += e.item.Size()
			c.outdate(e)
		}
		c.unlock()
	}
	return done
}

// Verified is what Verify has found.
type Verified struct {
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Damaged []string `json:"damaged"` // paths of files that were removed because a checksum was wrong
}

// Verify reads what is cached of the files whose paths begin with prefix and compares the checksums. A damaged file is removed, to be fetched again; who is being
// sent it is cut. progress is told the bytes that are done.
func (c *Cache) Verify(ctx context.Context, prefix string, progress func(done, total int64)) (found Verified, err error) {
	all := c.matching(prefix)
	var total int64
	c.lock()
	for _, e := range all {
		total += e.item.Size()
	}
	c.unlock()
	found.Damaged = []string{}
	for _, e := range all {
		err := c.verify(ctx, e, func(n int64) {
			found.Bytes += n
			progress(found.Bytes, max(total, found.Bytes))
		})
		if errors.Is(err, errDamaged) {
			found.Damaged = append(found.Damaged, e.path)
		} else if err != nil {
			return found, c.fail("verify", e.path, err)
		}
		found.Files++
	}
	return found, nil
}

var errDamaged = errors.New("a checksum is wrong")

func (c *Cache) verify(ctx context.Context, e *entry, read func(int64)) error {
	c.lock()
	if e.gone || e.blocks == nil {
		c.unlock()
		return nil
	}
	e.refs++
	d := e.acquireData()
	c.unlock()
	defer func() {
		c.lock()
		fd := e.release(d)
		c.unlock()
		closeFD(fd)
	}()
	if err := d.open(c.dir, e); err != nil {
		return err
	}
	buf := make([]byte, blockSize)
	for b := range e.blocks {
		c.lock()
		was := e.blocks[b]
		c.unlock()
		if was.state == missing {
			continue
		}
		p := buf[:e.blockLen(b)]
		n, err := readAt(d.fd, p, blockStart(b))
		if err != nil || n < len(p) || crc32.Checksum(p, castagnoli) != was.sum {
			c.count.damaged.Add(1)
			c.lock()
			c.discard(e)
			c.unlock()
			return errDamaged
		}
		read(int64(n))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
