package channel

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	defaultMinBackoff = 20 * time.Millisecond
	defaultMaxBackoff = 500 * time.Millisecond

	// stableAfter is how long a session must live to count: only then is the channel reported up, and only then does the
	// back-off begin anew. A daemon that accepts and dies at once is neither hammered nor logged twice a second.
	stableAfter = time.Second
)

// KeepOptions tune Keep. The zero value is ready for use.
type KeepOptions struct {
	MinBackoff time.Duration // wait after the first failure, 20 ms by default
	MaxBackoff time.Duration // upper limit of the wait, 500 ms by default
	Logger     *slog.Logger  // told when the channel goes up and away, not of each attempt; nil for silence
}

// Keep keeps the guest's end of the channel alive: it dials, runs serve on the connection, closes it when serve returns,
// and begins anew, waiting a little longer after each failure. It returns only when ctx ends, with the cause, or at
// once when addr is no address.
//
// When ctx ends the Conn is closed, whatever serve is doing. Keep returns after serve has; serve must therefore return
// when its Conn reports an error.
func Keep(ctx context.Context, addr Address, serve func(context.Context, Conn) error, opts KeepOptions) error {
	if _, err := ParseAddress(addr.String()); err != nil {
		return &Error{Op: "dial", Addr: addr, Err: err}
	}
	k := newKeeper(func(ctx context.Context) (Conn, error) { return Dial(ctx, addr) }, serve, opts)
	k.log = k.log.With("channel", addr.String())
	return k.run(ctx)
}

// keeper is the state of one Keep.
type keeper struct {
	dial  func(context.Context) (Conn, error)
	serve func(context.Context, Conn) error
	min   time.Duration
	max   time.Duration
	log   *slog.Logger

	up, told bool // what the log knows: the last state, and whether there was one
}

func newKeeper(dial func(context.Context) (Conn, error), serve func(context.Context, Conn) error, opts KeepOptions) *keeper {
	k := &keeper{dial: dial, serve: serve, min: opts.MinBackoff, max: opts.MaxBackoff, log: opts.Logger}
	if k.min <= 0 {
		k.min = defaultMinBackoff
	}
	if k.max <= 0 {
		k.max = defaultMaxBackoff
	}
	k.max = max(k.max, k.min)
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k
}

func (k *keeper) run(ctx context.Context) error {
	backoff := k.min
	for {
		lived, err := k.session(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k.tellAway(err)
		if lived >= stableAfter {
			backoff = k.min
		}
		if !sleep(ctx, jitter(backoff)) {
			return context.Cause(ctx)
		}
		backoff = min(2*backoff, k.max)
	}
}

// session runs one connection from dial to close. It returns how long it lived, and why it ended.
func (k *keeper) session(ctx context.Context) (time.Duration, error) {
	conn, err := k.dial(ctx)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	stopClose := context.AfterFunc(ctx, func() { conn.Close() })
	told := make(chan struct{})
	tell := time.AfterFunc(stableAfter, func() {
		defer close(told)
		k.tellUp()
	})
	err = k.serve(ctx, conn)
	if !tell.Stop() {
		<-told // the timer's function is through with k before anything else uses it
	}
	stopClose()
	conn.Close() // a second Close fails, and there is nothing to do about either
	return time.Since(began), err
}

func (k *keeper) tellUp() {
	if k.up {
		return
	}
	k.up, k.told = true, true
	k.log.Info("channel up")
}

func (k *keeper) tellAway(err error) {
	if k.told && !k.up {
		return
	}
	k.up, k.told = false, true
	k.log.Warn("channel away, trying again until it is back", "error", err)
}

// jitter spreads the attempts of many guests: half of d is fixed, the other half random.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d; it returns false as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
