package session

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bufferedPipe returns the two ends of a channel that holds capacity bytes in each direction, as a virtio-serial port or a socket does. It works
// within a synctest bubble.
func bufferedPipe(capacity int) (a, b *pipeEnd) {
	ab, ba := newStream(capacity), newStream(capacity)
	return &pipeEnd{in: ba, out: ab}, &pipeEnd{in: ab, out: ba}
}

type pipeEnd struct{ in, out *stream }

func (p *pipeEnd) Read(b []byte) (int, error)         { return p.in.read(b) }
func (p *pipeEnd) Write(b []byte) (int, error)        { return p.out.write(b) }
func (p *pipeEnd) SetReadDeadline(t time.Time) error  { p.in.readers.set(t); return nil }
func (p *pipeEnd) SetWriteDeadline(t time.Time) error { p.out.writers.set(t); return nil }
func (p *pipeEnd) Close() error                       { p.in.close(); p.out.close(); return nil }

// stream is one direction.
type stream struct {
	mu               sync.Mutex
	changed          sync.Cond
	buf              bytes.Buffer
	capacity         int
	closed           bool
	readers, writers waitLimit
}

func newStream(capacity int) *stream {
	s := &stream{capacity: capacity}
	s.changed.L = &s.mu
	s.readers.s, s.writers.s = s, s
	return s
}

// waitLimit is a deadline; its stream's mu guards it.
type waitLimit struct {
	s     *stream
	past  bool
	timer *time.Timer
}

func (l *waitLimit) set(t time.Time) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.past = !t.IsZero() && !t.After(time.Now())
	if !t.IsZero() && !l.past {
		var timer *time.Timer
		timer = time.AfterFunc(time.Until(t), func() {
			l.s.mu.Lock()
			defer l.s.mu.Unlock()
			if l.timer == timer {
				l.past = true
				l.s.changed.Broadcast()
			}
		})
		l.timer = timer
	} else {
		l.timer = nil
	}
	l.s.changed.Broadcast()
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.readers.past:
			return 0, os.ErrDeadlineExceeded
		case s.buf.Len() > 0:
			defer s.changed.Broadcast()
			return s.buf.Read(b)
		case s.closed:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

func (s *stream) write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch room := s.capacity - s.buf.Len(); {
		case s.closed:
			return n, io.ErrClosedPipe
		case s.writers.past: // before room: a deadline in the past fails a write that would not have waited too
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case room > 0:
			k := min(room, len(b)-n)
			s.buf.Write(b[n : n+k])
			n += k
			s.changed.Broadcast()
			continue
		}
		s.changed.Wait()
	}
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
}

// unixPair returns the two ends of a connected unix socket.
func unixPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "channel"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// closer is a Conn that the test can close.
type closer interface {
	Conn
	io.Closer
}

// watched holds that a Conn is used as channel.Conn allows: one writer at a time. It counts the writes.
type watched struct {
	closer
	t       testing.TB
	writing atomic.Int32
	writes  atomic.Int64
	drop    func(frame []byte) bool // loses a write
}

func watch(t testing.TB, c closer) *watched { return &watched{closer: c, t: t} }

// SyscallConn makes a watched socket one for the netpoller, as the product's channels are.
func (w *watched) SyscallConn() (syscall.RawConn, error) {
	if c, ok := w.closer.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (w *watched) Write(b []byte) (int, error) {
	if w.writing.Add(1) != 1 {
		w.t.Error("two goroutines write to the channel at once")
	}
	defer w.writing.Add(-1)
	w.writes.Add(1)
	if w.drop != nil && w.drop(b) {
		return len(b), nil
	}
	return w.closer.Write(b)
}
