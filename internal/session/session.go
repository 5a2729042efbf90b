// Package session keeps one session over one channel: it finds the session's start in a stream of unknown history, reads frames and
// hands them to a Handler, writes frames together, and notices when the other side has died. docs/wire.md, section
// Synchronization, is the specification.
//
// It is shared by the guest's agent and the host daemon and knows nothing of leases, files or sockets.
package session

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"spillway/internal/wire"
)

// Conn is the channel: a byte stream whose blocked calls a deadline in the past interrupts.
type Conn interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Handler takes what a session brings. Its methods are called one at a time, Frame by the goroutine that runs Host or Guest or by one that calls
// Poll, End by the former.
type Handler interface {
	// Frame takes one frame; payload is valid during the call only. It must not wait for the other side. An error ends the session.
	Frame(h wire.Header, payload []byte) error
	// End is called last: the session is over, err says why.
	End(err error)
}

// Times of the protocol (docs/wire.md), in ticks.
const (
	tickInterval  = time.Second
	pingTicks     = 2
	DefaultSilent = 6 * time.Second
)

// Errors that end a session.
var (
	ErrEnded   = errors.New("the session is over")
	ErrSilent  = errors.New("the other side is silent")
	ErrStuck   = errors.New("the other side takes no bytes")
	ErrRestart = errors.New("the other side has started anew")
	ErrVersion = errors.New("the other side speaks another version of the protocol")
	// ErrMove is for Close: this side ends the session and looks for another one on the same channel, as the VM moves or has not moved after all.
	ErrMove = errors.New("the VM moves")
)

// maxPending bounds the bytes that wait behind a write under way; who adds more waits.
const maxPending = 1 << 20

// Session is one agreed session. Its methods are safe for concurrent use.
type Session struct {
	ID    uint32
	Hello wire.Hello // as the host sent it

	conn     Conn
	intake   *intake
	busyPoll time.Duration

	polling  atomic.Bool // a goroutine polls
	heard    atomic.Bool // a frame arrived since the last tick
	spoke    atomic.Bool // a frame was written since the last tick
	replying atomic.Bool // an answer of the session itself is on its way

	opening []byte // the frame that this side began the session with, if it did

	mu      sync.Mutex
	drained sync.Cond // pending has room, nothing is being written, or the session is over
	pending []byte    // frames that wait for the write under way
	spare   []byte
	writing bool
	frozen  bool // nothing of pending is written
	stuck   int  // ticks that the write under way has lasted
	deaf    bool // a write has failed: the other side has closed the channel
	err     error
}

// newSession makes a session that begins with the frame opening, or with none. The frame leaves before all others, and nobody waits for it.
func newSession(conn Conn, id uint32, hello wire.Hello, opening []byte) *Session {
	s := &Session{ID: id, Hello: hello, conn: conn, opening: opening}
	s.drained.L = &s.mu
	if len(opening) > 0 {
		s.writing = true
		go s.write(opening)
	}
	return s
}

// Write sends whole frames, made with ID as their session. Frames of concurrent callers leave in few writes. ErrEnded means that
// nothing of them was sent; nil means that they are on their way, and that End will tell if they got lost.
// The caller may reuse frames when Write returns.
func (s *Session) Write(frames []byte) error {
	s.mu.Lock()
	for s.err == nil && s.writing && !s.frozen && len(s.pending) > maxPending {
		s.drained.Wait()
	}
	if s.err != nil {
		s.mu.Unlock()
		return ErrEnded
	}
	if s.writing || s.frozen {
		s.pending = append(s.pending, frames...)
		s.mu.Unlock()
		return nil
	}
	s.writing = true
	s.mu.Unlock()
	s.write(frames)
	return nil
}

// write writes frames. s.writing is set. What has come to wait meanwhile is written by a goroutine of its own: a caller who holds a lock must
// not be kept for as long as others have something to say.
func (s *Session) write(frames []byte) {
	s.spoke.Store(true)
	_, err := s.conn.Write(frames)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = 0
	if err != nil {
		s.deaf = true
		s.failLocked(fmt.Errorf("channel write: %w", err))
	}
	s.writing = s.err == nil && !s.frozen && len(s.pending) > 0
	if s.writing {
		waiting := s.pending
		s.pending, s.spare = s.spare[:0], waiting
		go s.write(waiting)
	}
	s.drained.Broadcast()
}

// awaitWriter returns when nothing is being written any more. The session is over, so no write lasts.
func (s *Session) awaitWriter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing {
		s.drained.Wait()
	}
}

// busy tells whether Write might wait.
func (s *Session) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing
}

func (s *Session) isFrozen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frozen
}

// Close ends the session with err, as if the channel had failed. It returns at once.
func (s *Session) Close(err error) {
	s.mu.Lock()
	s.failLocked(err)
	s.mu.Unlock()
}

// failLocked ends the session: later writes fail, a blocked read or write returns.
func (s *Session) failLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	s.drained.Broadcast()
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	_ = s.conn.SetWriteDeadline(time.Unix(1, 0))
}

// failure returns why the session ended, or err when it has not ended by itself.
func (s *Session) failure(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.failLocked(err)
	}
	return s.err
}

// watch ends a silent session and pings over a quiet one, until stop is closed.
func (s *Session) watch(silentLimit time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	limit := int(silentLimit / tickInterval)
	silent, quiet := 0, 0
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		silent++
		if s.heard.Swap(false) {
			silent = 0
		}
		quiet++
		if s.spoke.Swap(false) {
			quiet = 0
		}
		if s.isFrozen() {
			silent, quiet = 0, 0
		}
		switch {
		case silent >= limit:
			s.Close(fmt.Errorf("%w for %v", ErrSilent, silentLimit))
		case s.tickWriter() >= limit:
			s.Close(fmt.Errorf("%w for %v", ErrStuck, silentLimit))
		case quiet >= pingTicks:
			quiet = 0
			// A goroutine of its own: the write may block, this loop must not.
			go func() { _ = s.Write(wire.Append(nil, s.ID, 0, 0, wire.Ping{})) }()
		}
	}
}

// tickWriter counts the ticks of the write under way.
func (s *Session) tickWriter() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.writing {
		s.stuck = 0
		return 0
	}
	s.stuck++
	return s.stuck
}

// run takes in frames until the session ends, and tells the handler. The outcome's err is what the handler was told.
func (s *Session) run(silentLimit time.Duration) outcome {
	stop := make(chan struct{})
	go s.watch(silentLimit, stop)
	defer close(stop)
	s.heard.Store(true)
	o := s.take(s.intake)
	o.err = s.failure(o.err)
	// The next session takes the deadlines back, which must not keep a write of this one alive.
	s.awaitWriter()
	s.intake.handler.End(o.err)
	return o
}

// frame handles the session's own frames and leaves the others to h.
func (s *Session) frame(header wire.Header, payload []byte, h Handler) error {
	switch header.Type {
	case wire.TypeReady, wire.TypePong: // being heard is all that they are for
		_, err := wire.Parse(header.Type, payload)
		return err
	case wire.TypeHello: // again: our READY was lost, or is on its way
		if _, err := wire.ParseHello(payload); err != nil {
			return err
		}
		s.reply(s.opening)
		return nil
	case wire.TypePing:
		m, err := wire.ParsePing(payload)
		if err != nil {
			return err
		}
		if !s.busy() { // with frames on their way already, these will be heard instead
			s.reply(wire.Append(nil, s.ID, 0, 0, wire.Pong(m)))
		}
		return nil
	}
	return h.Frame(header, payload)
}

// reply sends a frame of the session itself, unless one is on its way. It does so on a goroutine of its own: the reader must never wait for the
// other side's reader.
func (s *Session) reply(frame []byte) {
	if len(frame) == 0 || !s.replying.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer s.replying.Store(false)
		_ = s.Write(frame) // ErrEnded: no answer is due any more
	}()
}
