package session

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// intake is the reading half of a session. Frames are taken off the channel and handed to the handler by whoever has the time: the session's own
// goroutine, which is woken when there are some, or a goroutine that expects an answer and asks for it (Poll).
type intake struct {
	conn    Conn
	raw     syscall.RawConn // nil: conn cannot be asked without waiting
	handler Handler
	block   []byte // what waitBlocked has read

	mu     sync.Mutex // held by whoever reads, until the handler has had what was read
	reader *wire.Reader
	frozen bool // nothing is read
	over   bool
	last   outcome
}

// outcome is how a session ends.
type outcome struct {
	again   bool // header and payload began a newer session
	header  wire.Header
	payload []byte
	err     error
}

// errNothing is what ask returns when the channel has nothing at the moment.
var errNothing = errors.New("nothing to read")

func newIntake(conn Conn, r *wire.Reader, h Handler) *intake {
	in := &intake{conn: conn, reader: r, handler: h}
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			in.raw = raw
		}
	}
	return in
}

// take takes in frames until the session is over, and returns how it ended.
func (s *Session) take(in *intake) outcome {
	for {
		in.mu.Lock()
		s.handleBuffered(in)
		over, last := in.over, in.last
		in.mu.Unlock()
		if over {
			return last
		}
		if err := in.wait(); err != nil {
			in.mu.Lock()
			s.takeLastWords(in)
			in.end(outcome{err: err})
			in.mu.Unlock()
		}
	}
}

// maxLastWords bounds the reads of takeLastWords: a socket's buffer is not larger.
const maxLastWords = 64

// takeLastWords takes in what the other side said before it closed the channel, when a write was the first to notice that it has: a RELEASED or CLOSED among
// it says who has a connection. in.mu is held.
func (s *Session) takeLastWords(in *intake) {
	s.mu.Lock()
	deaf := s.deaf
	s.mu.Unlock()
	if !deaf || in.raw == nil {
		return
	}
	for range maxLastWords {
		var err error
		if cerr := in.raw.Control(func(fd uintptr) { err = in.ask(fd) }); cerr != nil || err != nil {
			return
		}
		s.handleBuffered(in)
	}
}

// wait returns when more has been read.
func (in *intake) wait() error {
	if in.raw == nil {
		return in.waitBlocked()
	}
	var readErr error
	err := in.raw.Read(func(fd uintptr) bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		readErr = in.ask(fd)
		return readErr != errNothing
	})
	if err != nil { // a deadline: the session is over
		return err
	}
	return readErr
}

// waitBlocked is wait for a conn without a descriptor.
func (in *intake) waitBlocked() error {
	if in.block == nil {
		in.block = make([]byte, wire.HeaderSize+wire.MaxPayload)
	}
	n, err := in.conn.Read(in.block)
	in.mu.Lock()
	defer in.mu.Unlock()
	fillErr := in.reader.Fill(func(p []byte) (int, error) {
		if n == 0 && err == nil {
			return 0, io.ErrNoProgress
		}
		return copy(p, in.block[:n]), nil
	})
	if n > 0 { // an error behind bytes comes again
		return nil
	}
	return errors.Join(err, fillErr)
}

// ask reads what there is, or returns errNothing. in.mu is held.
func (in *intake) ask(fd uintptr) error {
	if in.frozen {
		return errNothing
	}
	return in.reader.Fill(func(p []byte) (int, error) {
		for {
			n, err := unix.Read(int(fd), p)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return 0, errNothing
			case err != nil:
				return 0, fmt.Errorf("channel read: %w", err)
			case n == 0:
				return 0, io.EOF
			default:
				return n, nil
			}
		}
	})
}

// end notes how the session ends; the first cause counts. in.mu is held.
func (in *intake) end(o outcome) {
	if !in.over {
		in.over, in.last = true, o
	}
}

// handleBuffered hands all frames to the handler that have been read. in.mu is held.
func (s *Session) handleBuffered(in *intake) {
	for !in.over {
		header, payload, ok, err := in.reader.Buffered()
		if err != nil {
			in.end(outcome{err: err})
		}
		if !ok {
			return
		}
		s.heard.Store(true)
		switch {
		case header.Type == wire.TypeGreet || header.Type == wire.TypeHello && header.Session != s.ID:
			in.end(outcome{again: true, header: header, payload: payload, err: ErrRestart})
		case header.Session != s.ID:
			in.end(outcome{err: fmt.Errorf("%w: %v of another session", wire.ErrFormat, header.Type)})
		default:
			if err := s.frame(header, payload, in.handler); err != nil {
				in.end(outcome{err: err})
			}
		}
	}
}

// An Expectation is one kind of answer that Poll waits for, on one session or on many: how often asking has been in vain decides whether it is
// worth while. The zero value is ready. It is safe for concurrent use.
type Expectation struct {
	mu   sync.Mutex
	vain int // 2^n-1 after n times in vain
	skip int // so many times are not worth while
}

// maxVain bounds the pause of an Expectation that is always in vain: asking once in so many times costs little, and finds out when things change.
const maxVain = 63

func (e *Expectation) worthwhile() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.skip > 0 {
		e.skip--
		return false
	}
	return true
}

func (e *Expectation) learn(hit bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if hit {
		e.vain, e.skip = 0, 0
		return
	}
	e.vain = min(2*e.vain+1, maxVain)
	e.skip = e.vain
}

// Poll reads the session on the caller's goroutine, without sleeping, until done tells that what the caller expects has come, for at most the session's
// busy-poll time. An interrupt, the wake-up of an idle CPU and the netpoller take longer than many an answer does. The caller waits in the usual way if
// it has not come; an Expectation that is disappointed is not asked for again so soon.
//
// The caller must hold no lock that the session's handler or done takes. At any time one goroutine polls a session; for others Poll returns at once.
func (s *Session) Poll(e *Expectation, done func() bool) {
	in := s.intake
	if s.busyPoll <= 0 || in == nil || in.raw == nil || !e.worthwhile() || !s.polling.CompareAndSwap(false, true) {
		return
	}
	defer s.polling.Store(false)
	for began := time.Now(); ; runtime.Gosched() {
		ended := false
		if in.mu.TryLock() { // else somebody is at work who brings what there is
			s.askNow(in)
			ended = in.over
			in.mu.Unlock()
		}
		hit := done()
		if hit || ended || time.Since(began) > s.busyPoll {
			e.learn(hit)
			return
		}
	}
}

// askNow takes in what there is. in.mu is held.
func (s *Session) askNow(in *intake) {
	s.handleBuffered(in)
	if in.over {
		return
	}
	var err error
	if cerr := in.raw.Control(func(fd uintptr) { err = in.ask(fd) }); cerr != nil || err != nil {
		return // errors and the end of the stream are left to the session's own goroutine, which meets them too
	}
	s.handleBuffered(in)
	if in.over {
		s.Close(in.last.err) // wakes the session's own goroutine
	}
}
