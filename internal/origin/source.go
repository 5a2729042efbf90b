package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"spillway/internal/metrics"
)

// Options of a Source. Zero values mean the defaults.
type Options struct {
	MaxRequests int           // to the origin at a time, for versions and for bytes each
	MaxRate     int64         // bytes a second; 0: no limit
	Timeout     time.Duration // without a byte from the origin, after which an attempt has failed
	Attempts    int           // at one thing
	Backoff     time.Duration // before the second attempt; doubled, and scattered, before each further one
}

// Defaults of Options.
const (
	DefaultMaxRequests = 32
	DefaultTimeout     = 10 * time.Second
	DefaultAttempts    = 4
	DefaultBackoff     = 200 * time.Millisecond
)

func (o Options) withDefaults() Options {
	if o.MaxRequests == 0 {
		o.MaxRequests = DefaultMaxRequests
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Attempts == 0 {
		o.Attempts = DefaultAttempts
	}
	if o.Backoff == 0 {
		o.Backoff = DefaultBackoff
	}
	return o
}

// pieceSize is the most that is read at once: little enough for the bandwidth cap to be smooth, and for readers to follow closely.
const pieceSize = 256 << 10

// Source is an origin with patience and limits. It is safe for concurrent use.
type Source struct {
	origin   Origin
	opts     Options
	versions *semaphore.Weighted // requests for versions; apart, as they are short and a fill may be long
	bytes    *semaphore.Weighted
	rate     *rate.Limiter // nil: no limit

	// Latency is how long the origin took to its first byte, or to its answer.
	Latency metrics.Histogram
	// Requests counts attempts, Failures those that failed for another reason than that there is no such file.
	Requests, Failures, ReadBytes atomic.Uint64
}

// NewSource wraps o, which it owns from now on.
func NewSource(o Origin, opts Options) *Source {
	opts = opts.withDefaults()
	s := &Source{origin: o, opts: opts, versions: semaphore.NewWeighted(int64(opts.MaxRequests)), bytes: semaphore.NewWeighted(int64(opts.MaxRequests))}
	if opts.MaxRate > 0 {
		s.rate = rate.NewLimiter(rate.Limit(opts.MaxRate), pieceSize)
	}
	return s
}

// MaxRequests is how many requests for bytes there may be at a time.
func (s *Source) MaxRequests() int { return s.opts.MaxRequests }

// Close closes the origin. Nothing may be under way.
func (s *Source) Close() error { return s.origin.Close() }

// errStalled is why an attempt ends that brings nothing.
var errStalled = errors.New("the origin sent nothing in time")

// Stat asks for a file's version.
func (s *Source) Stat(ctx context.Context, name string) (v Version, err error) {
	err = s.retry(ctx, s.versions, func(a *attempt) error {
		v, err = s.origin.Stat(a.ctx, name)
		return err
	})
	return v, err
}

// sinkError marks an error that is not the origin's.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// Fetch passes bytes off to off+n of the version v to sink, in order, each once, as they come.
func (s *Source) Fetch(ctx context.Context, name string, v Version, off, n int64, sink func([]byte) error) error {
	if n <= 0 {
		return nil
	}
	buf := make([]byte, min(pieceSize, n))
	return s.retry(ctx, s.bytes, func(a *attempt) error {
		if n == 0 {
			return nil // all that was missing was the body's end
		}
		r, err := s.origin.Open(a.ctx, name, v, off, n)
		if err != nil {
			return err
		}
		defer r.Close()
		for n > 0 {
			got, err := r.Read(buf[:min(int64(len(buf)), n)])
			if got > 0 {
				a.heard()
				s.ReadBytes.Add(uint64(got))
				if err := sink(buf[:got]); err != nil {
					return sinkError{err}
				}
				off, n = off+int64(got), n-int64(got)
				if err := s.throttle(a, got); err != nil {
					return err
				}
			}
			switch {
			case err == io.EOF && n > 0:
				return io.ErrUnexpectedEOF
			case err != nil && err != io.EOF:
				return err
			}
		}
		return s.checkEnd(r)
	})
}

// throttle waits until n bytes more may be read.
func (s *Source) throttle(a *attempt, n int) error {
	if s.rate == nil {
		return nil
	}
	a.watchdog.Stop() // this wait is ours
	defer a.heard()
	return s.rate.WaitN(a.ctx, n)
}

// checkEnd looks whether the body ends where it should. A body of known length answers at once.
func (s *Source) checkEnd(r io.Reader) error {
	if e, ok := r.(*exactReader); ok {
		var more [1]byte
		if _, err := e.Read(more[:]); errors.Is(err, ErrUnusable) {
			return err
		}
	}
	return nil
}

// retry makes attempts at f.
func (s *Source) retry(ctx context.Context, slots *semaphore.Weighted, f func(*attempt) error) error {
	for n := 1; ; n++ {
		err := s.try(ctx, slots, f)
		if err == nil || ctx.Err() != nil || !temporary(err) {
			return err
		}
		if n >= s.opts.Attempts {
			return fmt.Errorf("after %d attempts: %w", n, err)
		}
		pause := s.opts.Backoff << (n - 1)
		pause = pause/2 + rand.N(pause) // so that what failed together is not tried again together
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt is one try at one thing. It ends when the origin says nothing for the time-out.
type attempt struct {
	ctx      context.Context
	source   *Source
	watchdog *time.Timer
	began    time.Time
	answered bool
}

// heard notes that the origin has said something.
func (a *attempt) heard() {
	a.watchdog.Reset(a.source.opts.Timeout)
	if !a.answered {
		a.answered = true
		a.source.Latency.Observe(time.Since(a.began))
	}
}

// try makes one attempt at f.
func (s *Source) try(ctx context.Context, slots *semaphore.Weighted, f func(*attempt) error) error {
	if err := slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer slots.Release(1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attempt{ctx: ctx, source: s, began: time.Now(), watchdog: time.AfterFunc(s.opts.Timeout, func() { cancel(errStalled) })}
	defer func() { a.watchdog.Stop() }()
	s.Requests.Add(1)
	err := f(a)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		a.heard()
		return err
	}
	if _, ours := errors.AsType[sinkError](err); ours {
		return err // the origin has done nothing wrong
	}
	s.Failures.Add(1)
	if errors.Is(context.Cause(ctx), errStalled) {
		err = fmt.Errorf("%w (%v)", errStalled, s.opts.Timeout)
	}
	return err
}

// temporary tells whether another attempt may help.
func temporary(err error) bool {
	for _, final := range []error{fs.ErrNotExist, fs.ErrPermission, ErrChanged, ErrUnusable} {
		if errors.Is(err, final) {
			return false
		}
	}
	_, ours := errors.AsType[sinkError](err)
	return !ours
}

// Away tells whether err says that the origin cannot be reached, or is out of order, rather than anything about the file.
func Away(err error) bool { return err != nil && temporary(err) && !errors.Is(err, context.Canceled) }
