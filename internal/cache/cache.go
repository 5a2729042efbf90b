package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log/slog"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"spillway/internal/evict"
	"spillway/internal/origin"
	"spillway/internal/share"
	"spillway/internal/wire"
)

// Rule is a time-to-live for the files that a pattern matches (path.Match): their names, or with a slash in the pattern their paths.
type Rule struct {
	Pattern string
	TTL     time.Duration
}

// Options of a Cache. Dir, MaxBytes and MaxFiles are needed.
type Options struct {
	Dir         string        // of its own
	MaxBytes    int64         // on disk
	MaxFiles    int           // known, those of which nothing was fetched included
	KeepFree    int64         // bytes of the disk that are left free
	TTL         time.Duration // for how long a version is believed; see Rules
	Rules       []Rule        // the first that matches goes before TTL
	NegativeTTL time.Duration // for how long "not found" is believed
	Stale       time.Duration // after its TTL, for how long a version is believed while the origin is away

	// ReadAhead is how many files of a series (segment-12.m4s, segment-13.m4s …) are fetched ahead of the one that somebody begins to read. See readahead.go.
	ReadAhead int

	// Replaced is told the path of each file that the origin has replaced or removed, as soon as the cache knows, and of each one that Evict removes. It must not wait for the cache. nil: nobody.
	Replaced func(path string)

	MaxOpenFiles int // of complete files, as in share.Options
	Log          *slog.Logger
	Now          func() time.Time // nil: time.Now
}

// Cache is one share that is filled from an origin. It is safe for concurrent use.
type Cache struct {
	name   string
	opts   Options
	source *origin.Source
	dir    *directory
	index  *index
	files  *share.Share // the data directory: serves what is complete
	seed   maphash.Seed
	count  counters

	ctx     context.Context // ends with the cache: of questions and runs
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry
	policy  *evict.S3FIFO[*entry]
	used    int64 // bytes of blocks that are there, or reserved for a run
	nextID  uint64
	pins    map[string]bool
	lookups map[string]*lookup
	absent  absences
	ahead   ahead
	doomed  []uint64 // data files to remove when mu is released
	news    []string // paths of which Replaced is to be told then
}

// Open opens the cache of a share, with what is in its directory from before. It owns source from now on, also after an error.
func Open(name string, source *origin.Source, opts Options) (*Cache, error) {
	c, err := open(name, source, opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache of share %q: %w", name, err), source.Close())
	}
	return c, nil
}

func open(name string, source *origin.Source, opts Options) (*Cache, error) {
	if opts.MaxBytes < blockSize || opts.MaxFiles < 1 {
		return nil, fmt.Errorf("a budget of %d bytes and %d files holds nothing", opts.MaxBytes, opts.MaxFiles)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := openDirectory(opts.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		name: name, opts: opts, source: source, dir: dir, seed: maphash.MakeSeed(),
		entries: map[string]*entry{}, policy: evict.NewS3FIFO[*entry](opts.MaxBytes, opts.MaxFiles),
		pins: map[string]bool{}, lookups: map[string]*lookup{}, absent: absences{until: map[string]absence{}},
		ahead: ahead{known: map[string]bool{}, absent: absences{until: map[string]absence{}}},
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	if err := c.load(); err != nil {
		dir.close()
		return nil, err
	}
	return c, nil
}

// load reads the index and starts what runs as long as the cache.
func (c *Cache) load() error {
	began := time.Now()
	l := newLoader(c)
	size, damaged, err := loadIndex(c.dir.path, l.record)
	if err != nil {
		return err
	}
	firstNew := max(l.lastID+1, uint64(began.UnixNano())) // above all that was ever used, also by records that are lost
	c.nextID = firstNew
	known := l.finish()
	if c.files, err = share.Open(c.name, filepath.Join(c.dir.path, dataName), share.Options{MaxOpenFiles: c.opts.MaxOpenFiles}); err != nil {
		return err
	}
	if c.index, err = openIndex(c.dir.path, size, damaged, c.opts.Log, c.snapshot); err != nil {
		c.files.Close()
		return err
	}
	if damaged {
		c.opts.Log.Warn("the cache's index was damaged, by a crash or by its disk: what it does not tell any more is fetched again", "share", c.name)
	}
	c.opts.Log.Info("cache opened", "share", c.name, "files", len(c.entries), "bytes", c.used, "took", time.Since(began).Round(time.Millisecond))
	c.running.Go(func() { c.sweep(known, firstNew) })
	c.lock()
	_ = c.room(0, 0) // the budget may be a smaller one now
	c.unlock()
	return nil
}

// Close ends questions and runs, and writes the index. Files that are acquired can be read, but wait for nothing any more.
func (c *Cache) Close() {
	c.lock()
	closed := c.closed
	c.closed = true
	c.unlock()
	if closed {
		return
	}
	c.stop()
	c.running.Wait()
	if err := c.index.close(); err != nil {
		c.opts.Log.Error("the cache's index cannot be closed", "share", c.name, "error", err)
	}
	c.files.Close()
	_ = c.source.Close() // nothing of it is in use
	c.dir.close()
}

func (c *Cache) lock() { c.mu.Lock() }

// unlock releases mu, removes the data files that became of no use, and tells of files that were replaced.
func (c *Cache) unlock() {
	doomed, news := c.doomed, c.news
	c.doomed, c.news = nil, nil
	c.mu.Unlock()
	c.remove(doomed)
	for _, p := range news {
		c.opts.Replaced(p)
	}
}

// remove removes data files. mu is not held.
func (c *Cache) remove(ids []uint64) {
	for _, id := range ids {
		c.dir.remove(id)
		c.files.Forget(fileName(id))
	}
}

// ttl is how long a version of the file at path is believed.
func (c *Cache) ttl(p string) time.Duration {
	for _, r := range c.opts.Rules {
		name := p
		if !strings.Contains(r.Pattern, "/") {
			name = path.Base(p)
		}
		if ok, _ := path.Match(r.Pattern, name); ok { // the configuration has checked the pattern
			return r.TTL
		}
	}
	return c.opts.TTL
}

// insert adds an entry for a version that the origin has told of. mu is held.
func (c *Cache) insert(p string, v origin.Version, now time.Time) (*entry, error) {
	if v.Size > c.opts.MaxBytes {
		return nil, fmt.Errorf("%w: the file has %d bytes, the budget %d", errNoRoom, v.Size, c.opts.MaxBytes)
	}
	if err := c.room(0, 1); err != nil {
		return nil, err
	}
	e := &entry{id: c.nextID, path: p, version: v, timeNs: v.TimeNs(), pinned: c.pins[p]}
	c.nextID++
	n := blockCount(v.Size)
	e.unverified, e.absent = n, n
	e.believe(now, c.ttl(p))
	c.admit(e)
	c.policy.Add(&e.item)
	return e, nil
}

func (c *Cache) admit(e *entry) {
	e.item.Value, e.item.Key = e, maphash.String(c.seed, e.path)
	c.entries[e.path] = e
}

// outdate discards an entry that is not, or may not be, what the origin has any more. mu is held.
func (c *Cache) outdate(e *entry) {
	if !e.gone && c.opts.Replaced != nil {
		c.news = append(c.news, e.path)
	}
	c.discard(e)
}

// discard takes an entry out of the cache. Who reads it goes on with what there is. mu is held.
func (c *Cache) discard(e *entry) {
	if e.gone {
		return
	}
	c.policy.Remove(&e.item)
	c.bury(e)
}

// bury is discard for an entry that the policy has given away.
func (c *Cache) bury(e *entry) {
	e.gone = true
	delete(c.entries, e.path)
	c.used -= e.item.Size()
	if e.stored {
		c.index.add(&record{kind: kindDrop, id: e.id})
	}
	if e.blocks != nil {
		c.doomed = append(c.doomed, e.id)
	}
	for _, r := range e.runs {
		r.wake()
	}
}

// Errors.
var (
	errNoRoom = errors.New("nothing may be evicted to make room: all is in use or pinned, or the disk is full")
	errPath   = errors.New("the path is not relative and clean")
)

// fail gives an error the form that those of package share have.
func (c *Cache) fail(op, p string, err error) error {
	if e, ok := errors.AsType[*share.Error](err); ok {
		return e
	}
	reason := wire.ReasonKernel
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = wire.ReasonNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, errPath):
		reason = wire.ReasonForbidden
	case errors.Is(err, origin.ErrChanged):
		reason = wire.ReasonChanged
	case errors.Is(err, errNoRoom):
		reason = wire.ReasonLimit
	case errors.Is(err, fs.ErrClosed):
		reason = wire.ReasonShareUnknown
	}
	return &share.Error{Op: op, Share: c.name, Path: p, Reason: reason, Err: err}
}
