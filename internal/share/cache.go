package share

import (
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// cache holds the open files of a share by path. Its mutex is never held during a system call.
type cache struct {
	share    string // name, for errors
	maxFiles int
	open     func(path string) (int, attributes, error)

	mu     sync.Mutex
	files  map[string]*File // being opened, in use or idle
	idle   idleList
	held   int // descriptors open or about to be: those of files and of replaced files that are still in use
	closed bool
	opens  uint64
	reuses uint64
}

func newCache(share string, maxFiles int, open func(string) (int, attributes, error)) *cache {
	return &cache{share: share, maxFiles: maxFiles, open: open, files: make(map[string]*File)}
}

// get returns the file at path with a reference for the caller. It is opened if it is not open yet; concurrent callers share one
// attempt. own tells that the result, be it a file or an error, was found out by this very call and not by an earlier one.
func (c *cache) get(path string) (f *File, own bool, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, true, fs.ErrClosed
	}
	f = c.files[path]
	if f == nil {
		f, err = c.add(path) // unlocks
		return f, true, err
	}
	if f.refs == 0 {
		c.idle.remove(f)
	}
	f.refs++
	opening := f.opening
	c.reuses++
	c.mu.Unlock()
	if opening {
		<-f.opened
		if f.err != nil {
			return nil, false, f.err
		}
	}
	return f, false, nil
}

// add opens path and makes it known. The caller holds the mutex, add unlocks it.
func (c *cache) add(path string) (*File, error) {
	var victim *File
	if c.held >= c.maxFiles {
		if victim = c.idle.oldest; victim == nil {
			c.mu.Unlock()
			return nil, errAllInUse
		}
		c.idle.remove(victim)
		c.forget(victim)
	} else {
		c.held++
	}
	f := &File{cache: c, path: path, opened: make(chan struct{}), fd: -1, opening: true, cached: true, refs: 1}
	c.files[path] = f
	c.mu.Unlock()

	if victim != nil {
		unix.Close(victim.fd) // before the open, so that the limit holds
	}
	f.fd, f.attr, f.err = c.open(path)

	c.mu.Lock()
	f.opening = false
	if f.err == nil {
		c.opens++
	} else {
		c.held--
		c.forget(f)
	}
	c.mu.Unlock()
	close(f.opened)
	if f.err != nil {
		return nil, f.err
	}
	return f, nil
}

// drop makes sure that f is not found again. Who has it keeps it.
func (c *cache) drop(f *File) {
	c.mu.Lock()
	c.forget(f)
	c.mu.Unlock()
}

// forget is drop with the mutex held. A file that nobody has must not be in the idle list any more.
func (c *cache) forget(f *File) {
	if f.cached {
		delete(c.files, f.path)
		f.cached = false
	}
}

// forgetPath drops the file at path, and closes it if it is idle.
func (c *cache) forgetPath(path string) {
	c.mu.Lock()
	f := c.files[path]
	if f == nil {
		c.mu.Unlock()
		return
	}
	c.forget(f)
	idle := f.refs == 0
	if idle {
		c.idle.remove(f)
		c.held--
	}
	c.mu.Unlock()
	if idle {
		unix.Close(f.fd)
	}
}

func (c *cache) release(f *File) {
	c.mu.Lock()
	f.refs--
	switch {
	case f.refs < 0:
		c.mu.Unlock()
		panic("share: File released more often than acquired: " + f.path)
	case f.refs > 0:
		c.mu.Unlock()
	case f.cached:
		c.idle.push(f)
		c.mu.Unlock()
	default:
		c.held--
		c.mu.Unlock()
		unix.Close(f.fd)
	}
}

// close closes the idle files. Those in use, or being opened, are closed when they are released.
func (c *cache) close() {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.files {
		c.forget(f)
	}
	first := c.idle.oldest
	for f := first; f != nil; f = f.newer {
		c.held--
	}
	c.idle = idleList{}
	c.mu.Unlock()
	for f := first; f != nil; f = f.newer { // nobody else knows them any more
		unix.Close(f.fd)
	}
}

func (c *cache) stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{Open: c.held, Idle: c.idle.len, Opens: c.opens, Reuses: c.reuses}
}

// idleList is the list of the files that nobody uses, by the time of their last Release. It is intrusive, so that a reused file costs no
// allocation.
type idleList struct {
	newest, oldest *File
	len            int
}

func (l *idleList) push(f *File) {
	f.older = l.newest
	if l.newest != nil {
		l.newest.newer = f
	} else {
		l.oldest = f
	}
	l.newest = f
	l.len++
}

func (l *idleList) remove(f *File) {
	if f.newer != nil {
		f.newer.older = f.older
	} else {
		l.newest = f.older
	}
	if f.older != nil {
		f.older.newer = f.newer
	} else {
		l.oldest = f.newer
	}
	f.newer, f.older = nil, nil
	l.len--
}
