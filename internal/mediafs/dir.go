package mediafs

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"
)

// Defaults of [Options].
const (
	DefaultAttributeTTL   = time.Second
	DefaultMaxIdle        = 256 // a quarter of the usual soft limit of 1,024 descriptors
	DefaultMaxIdlePerFile = 32
	DefaultMaxPaths       = 8192 // about 3 MB of attributes; the largest data set of the seed has 875 segments
)

// Options tunes a [Dir]. The zero value means the defaults.
type Options struct {
	// AttributeTTL is how long attributes are trusted before stat(2) is asked again. Negative: never trusted.
	AttributeTTL time.Duration
	// MaxIdle bounds the descriptors that are kept open between requests, over all files; the least recently used goes first.
	MaxIdle int
	// MaxIdlePerFile bounds the same for one file.
	MaxIdlePerFile int
	// MaxPaths bounds the files whose attributes are remembered.
	MaxPaths int
	// Now is the clock of AttributeTTL: time.Now, unless a test moves the time. Its times must carry a monotonic reading or
	// never go backwards.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.AttributeTTL == 0 {
		o.AttributeTTL = DefaultAttributeTTL
	}
	if o.MaxIdle == 0 {
		o.MaxIdle = DefaultMaxIdle
	}
	if o.MaxIdlePerFile == 0 {
		o.MaxIdlePerFile = DefaultMaxIdlePerFile
	}
	if o.MaxPaths == 0 {
		o.MaxPaths = DefaultMaxPaths
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Dir serves one directory. It implements [fs.FS] and [fs.StatFS] and is safe for concurrent use.
type Dir struct {
	share string
	path  string
	opts  Options
	stats singleflight.Group // one stat(2) for all requests that wait for the same name

	opened, reused, checked atomic.Uint64

	mu     sync.Mutex // guards the fields below
	root   *os.Root   // nil after Release, until the next use
	closed bool
	pool   pool
}

// NewDir serves the directory dir under the host's share name. An empty share says that no host knows these files: [File.HostFile]
// then answers no. The caller owns the Dir and closes it.
func NewDir(share, dir string, opts Options) (*Dir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	return &Dir{share: share, path: dir, opts: opts, root: root, pool: newPool(opts)}, nil
}

// Open opens a regular file. The returned [*File] must be closed, by which its descriptor, if it needed one, goes back to the pool.
// Errors are *fs.PathError with the causes of this package or an errno.
func (d *Dir) Open(name string) (fs.File, error) {
	attr, readable, err := d.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if !attr.info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if readable {
		return &File{dir: d, name: name, attr: attr}, nil
	}
	f, attr, err := d.openFile(name)
	if err != nil {
		return nil, rootError("open", name, err)
	}
	return &File{dir: d, name: name, attr: attr, file: f}, nil
}

// Stat answers from the cached attributes when they are young enough. Directories have a Stat but do not open.
func (d *Dir) Stat(name string) (fs.FileInfo, error) {
	attr, _, err := d.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return attr.info, nil
}

// Share is the host's name for the directory; empty when no host knows it.
func (d *Dir) Share() string { return d.share }

// Release closes every idle descriptor and forgets every attribute, so that the share can be unmounted once the open files are
// closed. The next Open or Stat takes the directory up again, at what is then mounted on its path.
func (d *Dir) Release() error {
	d.mu.Lock()
	root, idle := d.root, d.pool.clear()
	d.root = nil
	d.mu.Unlock()
	closeAll(idle)
	if root == nil {
		return nil
	}
	return root.Close()
}

// Close is Release, for good: later calls answer fs.ErrClosed. Files that are open stay usable until they are closed.
func (d *Dir) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	return d.Release()
}

// Counters are totals since NewDir, and the present size of the pool.
type Counters struct {
	Opened  uint64 // open(2) calls
	Reused  uint64 // descriptors taken from the pool
	Checked uint64 // stat(2) calls
	Idle    int    // descriptors in the pool now
}

// Counters says what the directory has cost so far.
func (d *Dir) Counters() Counters {
	d.mu.Lock()
	idle := d.pool.idle.Len()
	d.mu.Unlock()
	return Counters{Opened: d.opened.Load(), Reused: d.reused.Load(), Checked: d.checked.Load(), Idle: idle}
}

// lookup returns the attributes of a name, at most AttributeTTL old, and whether a file with just these has been opened before.
func (d *Dir) lookup(op, name string) (attributes, bool, error) {
	if !fs.ValidPath(name) {
		return attributes{}, false, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	d.mu.Lock()
	if e := d.pool.find(name); e != nil && d.opts.Now().Sub(e.checked) < d.opts.AttributeTTL {
		attr, readable := e.attr, e.readable
		d.mu.Unlock()
		return attr, readable, nil
	}
	d.mu.Unlock()

	type answer struct {
		attr     attributes
		readable bool
	}
	v, err, _ := d.stats.Do(name, func() (any, error) {
		attr, readable, err := d.check(name)
		return answer{attr, readable}, err
	})
	if err != nil {
		return attributes{}, false, rootError(op, name, err)
	}
	a := v.(answer)
	return a.attr, a.readable, nil
}

// check asks stat(2) and brings the cache up to date with the answer.
func (d *Dir) check(name string) (attributes, bool, error) {
	asked := d.opts.Now() // before the call: an answer is as old as its question
	d.checked.Add(1)
	info, err := inRoot(d, func(root *os.Root) (fs.FileInfo, error) { return root.Stat(name) })
	if err != nil || !info.Mode().IsRegular() {
		d.forget(name)
		if err != nil {
			return attributes{}, false, err
		}
		return attributesOf(info), false, nil
	}
	attr := attributesOf(info)
	readable := d.remember(name, attr, asked, false)
	return attr, readable, nil
}

// openFile opens a name that stat(2) called a regular file, and returns the attributes of what was opened. The caller owns the file.
func (d *Dir) openFile(name string) (*os.File, attributes, error) {
	asked := d.opts.Now()
	d.opened.Add(1)
	// The name may have become a FIFO or a terminal since stat(2): neither may block us or become ours.
	f, err := inRoot(d, func(root *os.Root) (*os.File, error) {
		return root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, attributes{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err == nil {
		err = clearNonblock(f)
	}
	if err != nil {
		f.Close()
		d.forget(name)
		return nil, attributes{}, err
	}
	attr := attributesOf(info)
	d.remember(name, attr, asked, true)
	return f, attr, nil
}

// clearNonblock undoes O_NONBLOCK, with which 9p answers short reads (fs/9p/vfs_file.c: p9_client_read_once).
func clearNonblock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = syscall.SetNonblock(int(fd), false) })
	return errors.Join(err, setErr)
}

// take returns a descriptor for exactly the file that want describes, from the pool or by opening it. The caller owns it.
func (d *Dir) take(name string, want identity) (*os.File, error) {
	d.mu.Lock()
	f := d.pool.pop(name, want)
	d.mu.Unlock()
	if f != nil {
		d.reused.Add(1)
		return f, nil
	}
	f, attr, err := d.openFile(name)
	if err != nil {
		return nil, err
	}
	if attr.id != want {
		d.put(name, attr.id, f) // it is the right file for the next request
		return nil, ErrChanged
	}
	return f, nil
}

// put takes a descriptor back. It is kept when the name still stands for the same file and there is room.
func (d *Dir) put(name string, id identity, f *os.File) {
	d.mu.Lock()
	surplus := d.pool.push(name, id, f)
	d.mu.Unlock()
	closeAll(surplus)
}

func (d *Dir) remember(name string, attr attributes, asked time.Time, readable bool) bool {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return readable
	}
	readable, stale := d.pool.remember(name, attr, asked, readable)
	d.mu.Unlock()
	closeAll(stale)
	return readable
}

func (d *Dir) forget(name string) {
	d.mu.Lock()
	stale := d.pool.forget(name)
	d.mu.Unlock()
	closeAll(stale)
}

// inRoot calls fn with the directory, and again when Release has closed the directory under it.
func inRoot[T any](d *Dir, fn func(*os.Root) (T, error)) (T, error) {
	for {
		root, err := d.openRoot()
		if err != nil {
			var zero T
			return zero, err
		}
		v, err := fn(root)
		if !errors.Is(err, fs.ErrClosed) {
			return v, err
		}
	}
}

// openRoot returns the directory, which it opens when Release has closed it; fs.ErrClosed after Close.
func (d *Dir) openRoot() (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fs.ErrClosed
	}
	if d.root == nil {
		root, err := os.OpenRoot(d.path)
		if err != nil {
			return nil, err
		}
		d.root = root
	}
	return d.root, nil
}

// closeAll closes descriptors that were open for reading only: there is nothing to lose, hence no error to report.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
