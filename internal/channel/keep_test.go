package channel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// logged collects the messages of a logger.
func logged() (*slog.Logger, func() []string) {
	var buf bytes.Buffer
	h := slog.NewTextHandler(&buf, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "error" {
			return slog.Attr{}
		}
		return a
	}})
	return slog.New(h), func() []string {
		return strings.Split(strings.TrimSpace(buf.String()), "\n")
	}
}

const (
	lineUp   = `level=INFO msg="channel up"`
	lineAway = `level=WARN msg="channel away, trying again until it is back"`
)

// checkWait compares a wait with its back-off: half to all of it.
func checkWait(t *testing.T, attempt int, wait, full time.Duration) {
	t.Helper()
	if wait < full/2 || wait > full {
		t.Errorf("wait before attempt %d was %v, want %v to %v", attempt, wait, full/2, full)
	}
}

func TestKeepBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		logger, lines := logged()
		fulls := []time.Duration{20, 40, 80, 160, 320, 500, 500, 500}
		var last time.Time
		attempt := 0
		k := newKeeper(func(context.Context) (Conn, error) {
			if attempt > 0 {
				checkWait(t, attempt, time.Since(last), fulls[attempt-1]*time.Millisecond)
			}
			last = time.Now()
			if attempt++; attempt > len(fulls) {
				cancel(errors.New("enough"))
			}
			return nil, ErrHostAway
		}, nil, KeepOptions{Logger: logger})
		if err := k.run(ctx); err == nil || err.Error() != "enough" {
			t.Errorf("Keep = %v, want the context's cause", err)
		}
		if got := lines(); len(got) != 1 || got[0] != lineAway {
			t.Errorf("log of %d failures: %q, want one line", attempt, got)
		}
	})
}

// Only a session that lived counts: it sets the back-off back and is worth a line in the log.
func TestKeepSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		logger, lines := logged()
		plan := []struct{ lives, waitBefore time.Duration }{
			{0, 0},
			{time.Millisecond, 20 * time.Millisecond},
			{stableAfter + time.Second, 40 * time.Millisecond}, // up
			{0, 20 * time.Millisecond},                         // away
			{stableAfter - time.Millisecond, 40 * time.Millisecond},
			{time.Hour, 80 * time.Millisecond}, // up
			{time.Hour, 20 * time.Millisecond}, // away, up
			{0, 20 * time.Millisecond},         // away, and the end of ctx is not told
		}
		var ended time.Time
		n := 0
		var open atomic.Int32
		dial := func(context.Context) (Conn, error) {
			if n > 0 {
				checkWait(t, n, time.Since(ended), plan[n].waitBefore)
			}
			c, _ := net.Pipe()
			open.Add(1)
			return &countedConn{Conn: c, open: &open}, nil
		}
		serve := func(context.Context, Conn) error {
			if o := open.Load(); o != 1 {
				t.Errorf("session %d runs with %d connections open", n, o)
			}
			time.Sleep(plan[n].lives)
			ended = time.Now()
			if n++; n == len(plan) {
				cancel()
			}
			return io.EOF
		}
		if err := newKeeper(dial, serve, KeepOptions{Logger: logger}).run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Keep = %v, want context.Canceled", err)
		}
		want := []string{lineAway, lineUp, lineAway, lineUp, lineAway, lineUp, lineAway}
		if got := lines(); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("log:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// countedConn counts how many of its kind are open.
type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func TestKeepOptions(t *testing.T) {
	k := newKeeper(nil, nil, KeepOptions{MinBackoff: time.Second})
	if k.min != time.Second || k.max != time.Second {
		t.Errorf("back-off %v to %v, want no maximum below the minimum", k.min, k.max)
	}
	for range 1000 {
		if d := jitter(time.Nanosecond); d < 0 || d > time.Nanosecond {
			t.Fatalf("jitter(1 ns) = %v", d)
		}
	}
}

func TestKeepGivesUpOnAnImpossibleAddress(t *testing.T) {
	if err := Keep(testContext(t), Address{}, nil, KeepOptions{}); !errors.Is(err, ErrAddress) {
		t.Errorf("Keep = %v, want ErrAddress", err)
	}
}

// The whole of both ends over a real socket: the daemon comes late, drops a connection, dies, and comes back.
func TestKeepOverUnix(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() {
		ended <- Keep(ctx, addr, func(_ context.Context, c Conn) error {
			_, err := io.Copy(c, c)
			return err
		}, KeepOptions{})
	}()
	echo := func(l Listener, word string) Conn {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, word)
		mustRead(t, c, word)
		return closeAfter(t, c)
	}
	l := mustListen(t, addr)
	echo(l, "late").Close()
	last := echo(l, "dropped")
	l.Close()
	last.Close()
	leaveStale(t, addr.Path)
	alive := echo(mustListen(t, addr), "back")

	cancel() // while the session waits in Read
	if err := receive(t, ended, "Keep's end"); !errors.Is(err, context.Canceled) {
		t.Errorf("Keep = %v, want context.Canceled", err)
	}
	if _, err := alive.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the host reads %v, want io.EOF", err)
	}
}
