package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"spillway/internal/origin"
	"spillway/internal/share"
	"spillway/internal/wire"
)

// File is one version of a file, of which maybe not all is there yet. Who acquired it calls Release exactly once and does not use it afterwards. Until then it is safe for
// concurrent use.
type File struct {
	cache  *Cache
	entry  *entry
	shared *share.File // of a complete file
	data   *data       // of any other one; nil for an empty file
}

// Acquire returns the file that ref describes, with one reference: the caller releases it. When the cache's version, or the origin's if the cache has none, is
// another one, the error has the reason changed. off is where the reading is to begin: who comes for a file's start counts as one use of it, however
// many ranges he takes. ctx bounds the wait for the origin where there is one.
func (c *Cache) Acquire(ctx context.Context, ref wire.FileRef, off int64) (*File, error) {
	f, err := c.acquire(ctx, ref, off)
	if err != nil {
		return nil, c.fail("acquire", ref.Path, err)
	}
	return f, nil
}

func (c *Cache) acquire(ctx context.Context, ref wire.FileRef, off int64) (*File, error) {
	for asked := false; ; asked = true {
		c.lock()
		e := c.entries[ref.Path]
		if c.closed {
			c.unlock()
			return nil, fs.ErrClosed
		}
		if e != nil && e.attributes() == (attributes{ref.Size, ref.MTime}) {
			c.countUse(e, off)
			return c.use(e, off) // unlocks
		}
		c.unlock()
		if asked {
			return nil, fmt.Errorf("%w than the guest expects (%d bytes, mtime %d ns)", origin.ErrChanged, ref.Size, ref.MTime)
		}
		if _, err := c.stat(ctx, ref.Path, false); err != nil {
			return nil, err
		}
	}
}

// countUse counts a hit or a miss, and a use of the file by whoever begins to read it. mu is held.
func (c *Cache) countUse(e *entry, off int64) {
	if off < blockSize {
		c.policy.Use(&e.item)
		c.readAhead(e.path)
	}
	b := int(off / blockSize)
	if e.absent > 0 && (b >= len(e.blocks) || e.blocks[b].state == missing) {
		c.count.misses.Add(1)
	} else {
		c.count.hits.Add(1)
	}
}

// use returns a file of an entry, and lets a run begin if off, unless it is negative, is not there yet. The caller holds mu, use unlocks it.
func (c *Cache) use(e *entry, off int64) (*File, error) {
	e.refs++
	f := &File{cache: c, entry: e}
	if e.complete {
		c.unlock()
		ref := e.ref(c.name)
		ref.Path = fileName(e.id)
		shared, err := c.files.Acquire(ref)
		if err == nil {
			f.shared = shared
			return f, nil
		}
		if errors.Is(err, wire.ReasonLimit) {
			f.Release()
			return nil, err
		}
		// Somebody has touched the file: look at each block before it is used.
		c.opts.Log.Warn("a cached file was changed from outside; it is checked", "share", c.name, "path", e.path, "error", err)
		c.lock()
		e.distrust()
	}
	if e.version.Size == 0 {
		c.unlock()
		return f, nil
	}
	if e.blocks == nil {
		e.blocks = make([]block, blockCount(e.version.Size))
	}
	f.data = e.acquireData()
	if 0 <= off && off < e.version.Size && e.available(off) == 0 {
		_, _ = c.want(e, int(off/blockSize), false) // before the file is opened, which takes its time. Who reads finds out
	}
	c.unlock()
	if err := f.data.open(c.dir, e); err != nil {
		f.Release()
		return nil, err
	}
	return f, nil
}

// Fd returns the descriptor, for sendfile(2) and pread(2) with explicit offsets of bytes that Await has told of. It is valid until Release.
func (f *File) Fd() int {
	switch {
	case f.shared != nil:
		return f.shared.Fd()
	case f.data != nil:
		return f.data.fd
	}
	return -1 // an empty file
}

// Complete tells whether all of the file is there, and can be checked for changes by its attributes, as any file of a share.
func (f *File) Complete() bool { return f.shared != nil }

// Await waits until at least one byte from off on can be read, and returns how many can.
func (f *File) Await(ctx context.Context, off int64) (int64, error) {
	e, c := f.entry, f.cache
	if f.shared != nil || off >= e.version.Size {
		return max(e.version.Size-off, 0), nil
	}
	var last *run
	for {
		c.lock()
		if n := e.available(off); n > 0 {
			c.next(e, int(off/blockSize))
			c.unlock()
			return n, nil
		}
		if last != nil && last.over && last.err != nil {
			err := last.err
			c.unlock()
			return 0, c.fail("fill", e.path, err)
		}
		r, err := c.want(e, int(off/blockSize), false)
		if err != nil {
			c.unlock()
			return 0, c.fail("fill", e.path, err)
		}
		last = r
		changed := r.changed
		c.unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, c.fail("fill", e.path, context.Cause(ctx))
		}
	}
}

// ReadAt reads bytes of this version, waiting for them where they are missing. It ends at the version's size.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (read int, err error) {
	if f.shared != nil {
		return f.shared.ReadAt(p, off)
	}
	for read < len(p) {
		n, err := f.Await(ctx, off+int64(read))
		if err != nil {
			return read, err
		}
		if n == 0 {
			return read, io.EOF
		}
		want := min(int64(len(p)-read), n)
		got, err := readAt(f.data.fd, p[read:read+int(want)], off+int64(read))
		if read += got; err == nil && int64(got) < want {
			err = io.ErrUnexpectedEOF // somebody has truncated it
		}
		if err != nil {
			return read, f.cache.fail("read", f.entry.path, err)
		}
	}
	return read, nil
}

// Release gives the file back.
func (f *File) Release() {
	if f.shared != nil {
		f.shared.Release()
	}
	f.cache.lock()
	fd := f.entry.release(f.data)
	f.cache.unlock()
	closeFD(fd)
}
