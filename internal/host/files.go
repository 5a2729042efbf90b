package host

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"spillway/internal/cache"
	"spillway/internal/config"
	"spillway/internal/origin"
	"spillway/internal/share"
	"spillway/internal/wire"
)

// files is a share: a directory of this machine, or a cache.
type files interface {
	// Stat and Acquire wait for an origin where there is one, at most until ctx is done.
	Stat(ctx context.Context, path string) (size, mtimeNs int64, err error)
	Acquire(ctx context.Context, ref wire.FileRef, offset int64) (file, error)
	ReadAt(ctx context.Context, f file, p []byte, offset int64) (int, error)
	// free tells whether to look a path up costs an origin nothing.
	free(path string) bool
	stats() share.Stats
	Close()
}

// file is an open file of a share: a *share.File, or a *cache.File.
type file interface {
	Fd() int
	Release()
}

// dirFiles is a share of kind dir.
type dirFiles struct{ *share.Share }

func (d dirFiles) Stat(_ context.Context, path string) (size, mtimeNs int64, err error) {
	return d.Share.Stat(path)
}

func (d dirFiles) Acquire(_ context.Context, ref wire.FileRef, _ int64) (file, error) {
	f, err := d.Share.Acquire(ref)
	if err != nil {
		return nil, err // not a nil *share.File in an interface
	}
	return f, nil
}

func (d dirFiles) ReadAt(_ context.Context, f file, p []byte, offset int64) (int, error) {
	return f.(*share.File).ReadAt(p, offset)
}

func (d dirFiles) free(string) bool   { return true }
func (d dirFiles) stats() share.Stats { return d.Stats() }

// cacheFiles is a share of kind cache.
type cacheFiles struct{ *cache.Cache }

func (c cacheFiles) Acquire(ctx context.Context, ref wire.FileRef, offset int64) (file, error) {
	f, err := c.Cache.Acquire(ctx, ref, offset)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (c cacheFiles) ReadAt(ctx context.Context, f file, p []byte, offset int64) (int, error) {
	return f.(*cache.File).ReadAt(ctx, p, offset)
}

func (c cacheFiles) free(path string) bool { return c.Known(path) }

func (c cacheFiles) stats() share.Stats {
	s := c.Stats()
	return share.Stats{Open: s.OpenFiles, Idle: s.IdleFiles, Opens: s.Opens, Reuses: s.Reuses}
}

// openFiles opens a share.
func (d *Daemon) openFiles(s config.HostShare, maxOpenFiles int, log *slog.Logger) (files, error) {
	if s.Origin == "" {
		opened, err := share.Open(s.Name, s.Path, share.Options{
			MaxOpenFiles: maxOpenFiles, Replaced: func(path string) { d.forget(s.Name, path) },
		})
		if err != nil {
			return nil, err
		}
		return dirFiles{opened}, nil
	}
	c := s.Cache.WithDefaults()
	o, err := origin.Open(context.Background(), s.Origin, origin.HTTPOptions{IgnoreETag: c.IgnoreETag, Conns: c.MaxFills})
	if err != nil {
		return nil, err
	}
	source := origin.NewSource(o, origin.Options{MaxRequests: c.MaxFills, MaxRate: int64(c.MaxRate), Timeout: c.Timeout.Value()})
	opts := cache.Options{
		Dir: c.Dir, MaxBytes: int64(c.MaxSize), MaxFiles: c.MaxFiles, KeepFree: int64(c.KeepFree),
		TTL: c.TTL.Value(), NegativeTTL: c.NegativeTTL.Value(), Stale: c.Stale.Value(), MaxOpenFiles: maxOpenFiles, Log: log, ReadAhead: c.ReadAhead,
		Replaced: func(path string) { d.forget(s.Name, path) },
	}
	for _, r := range c.Rules {
		opts.Rules = append(opts.Rules, cache.Rule{Pattern: r.Pattern, TTL: r.TTL.Value()})
	}
	opened, err := cache.Open(s.Name, source, opts)
	if err != nil {
		return nil, err
	}
	return cacheFiles{opened}, nil
}

// originPatience is how long the desk waits for an origin: less than the guest waits for its answer, which is 10 s.
const originPatience = 9 * time.Second

// vmShare is a share that a VM may name.
type vmShare struct {
	files
	lookups *rate.Limiter // of names that cost the origin a question
}

func newVMShare(f files, c config.ShareCache) vmShare {
	n := c.WithDefaults().MaxLookups
	return vmShare{f, rate.NewLimiter(rate.Limit(n), n)}
}

// forget tells the guests that may name a share that a file of it is another one now.
func (d *Daemon) forget(share, path string) {
	for _, v := range d.vms { // complete before the first guest can ask for anything
		if _, ok := v.shares[share]; !ok {
			continue
		}
		v.mu.Lock()
		for h := range v.handlers {
			h.desk.forget(share, path)
		}
		v.mu.Unlock()
	}
}

// patience bounds the wait for a share's origin, where it has one.
func (v *vm) patience(ctx context.Context, share string) (context.Context, context.CancelFunc) {
	if _, ok := v.shares[share].files.(cacheFiles); ok {
		return context.WithTimeout(ctx, originPatience)
	}
	return ctx, func() {}
}

// may tells whether a path may be looked up: a guest can ask for any number of names, and each one that is not known is a request to the origin.
func (s vmShare) may(path string) bool { return s.free(path) || s.lookups.Allow() }

// untilWanted is a context for a wait for an origin, which is cancelled when the sender has something else to do. The caller calls done behind it.
func (l *leaseConn) untilWanted(parent context.Context) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancel(parent)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopWait = cancel
	if l.over != wire.ReasonOK || l.recall == recalled || l.carry == asked {
		cancel()
	}
	return ctx, func() {
		l.mu.Lock()
		l.stopWait = nil
		l.mu.Unlock()
		cancel()
	}
}

// acquire opens the file of a SEND. The reason is draining when the sender has something else to do than to wait for the origin.
func (l *leaseConn) acquire(o *order) (file, wire.Reason) {
	if _, fills := l.vm.shares[o.file.Share].files.(cacheFiles); !fills {
		return l.vm.acquire(context.Background(), o.file, o.offset)
	}
	patient, cancel := l.vm.patience(context.Background(), o.file.Share)
	defer cancel()
	ctx, done := l.untilWanted(patient)
	defer done()
	return l.vm.acquire(ctx, o.file, o.offset)
}

// awaitBytes waits until bytes of a file can be sent from offset on, and returns how many. An error means that they cannot, or that the sender has something else to do.
func (l *leaseConn) awaitBytes(f *cache.File, offset int64) (int64, error) {
	ctx, done := l.untilWanted(context.Background())
	defer done()
	n, err := f.Await(ctx, offset)
	if err != nil && ctx.Err() != nil {
		return 0, context.Canceled
	}
	return n, err
}

// partial returns f as a file of which not everything is there, or nil.
func partial(f file) *cache.File {
	if c, ok := f.(*cache.File); ok && !c.Complete() {
		return c
	}
	return nil
}
