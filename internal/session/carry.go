package session

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// A session can go on at another host, over another channel to the same guest, which does not notice: Freeze, Collect, and Silent at the host that has it; the
// State, in Options.Offer, at the other one. Thaw goes back.

// State is a session between two hosts.
type State struct {
	ID     uint32
	Hello  wire.Hello
	Input  []byte // the beginning of a frame whose rest has not come
	Output []byte // whole frames that have not left
}

// MaxInput bounds State.Input.
const MaxInput = wire.HeaderSize + wire.MaxPayload

// Errors of sessions that cannot be carried.
var (
	ErrNoCarry = errors.New("the channel is of a kind whose sessions stay")
	errTalks   = errors.New("the guest does not take what it has been sent")
)

// freezePoll is how often Freeze looks whether everything has been taken.
const freezePoll = 100 * time.Microsecond

// Freeze holds what is written from now on, and returns when the other end of the channel has taken all that was written before: this side says nothing
// more. After limit it gives up, and the session goes on.
func (s *Session) Freeze(limit time.Duration) error {
	raw, err := s.rawConn()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.frozen = true
	s.drained.Broadcast()
	s.mu.Unlock()
	for until := time.Now().Add(limit); ; time.Sleep(freezePoll) {
		queued, err := ioctl(raw, unix.SIOCOUTQ)
		s.mu.Lock()
		writing, over := s.writing, s.err
		s.mu.Unlock()
		switch {
		case over != nil:
			return over
		case err == nil && !writing && queued == 0:
			return nil
		case err == nil && time.Now().After(until):
			err = errTalks
		}
		if err != nil {
			s.Thaw()
			return err
		}
	}
}

// Collect takes in what the guest, which is paused, has said, hands the frames to the handler, and reads nothing more. The session is frozen.
func (s *Session) Collect() error {
	in := s.intake
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.over {
		s.handleBuffered(in)
		if in.over {
			break
		}
		var err error
		if cerr := in.raw.Control(func(fd uintptr) { err = in.ask(fd) }); cerr != nil {
			err = cerr
		}
		switch err {
		case nil:
		case errNothing:
			in.frozen = true
			return nil
		default:
			return err // of a channel that failed the session's own goroutine hears, too
		}
	}
	s.Close(in.last.err)
	return in.last.err
}

// State returns the frozen session as Collect has left it.
func (s *Session) State() State {
	s.intake.mu.Lock()
	input := s.intake.reader.Rest()
	s.intake.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return State{ID: s.ID, Hello: s.Hello, Input: input, Output: slices.Clone(s.pending)}
}

// Silent tells whether nothing has come since Collect.
func (s *Session) Silent() error {
	raw, err := s.rawConn()
	if err != nil {
		return err
	}
	n, err := ioctl(raw, unix.SIOCINQ)
	if err == nil && n > 0 {
		err = fmt.Errorf("the guest has said %d bytes more after it was paused", n)
	}
	return err
}

// Thaw undoes Freeze and Collect.
func (s *Session) Thaw() {
	s.mu.Lock()
	s.frozen = false
	waiting := s.pending
	if len(waiting) > 0 && s.err == nil && !s.writing {
		s.pending, s.spare = s.spare[:0], waiting
		s.writing = true
		go s.write(waiting)
	}
	s.drained.Broadcast()
	s.mu.Unlock()
	in := s.intake
	in.mu.Lock()
	defer in.mu.Unlock()
	in.frozen = false
	// The session's goroutine was told of what has come meanwhile, and did not look.
	for !in.over {
		s.handleBuffered(in)
		var err error
		if cerr := in.raw.Control(func(fd uintptr) { err = in.ask(fd) }); cerr != nil {
			err = cerr
		}
		if err != nil {
			if err != errNothing {
				s.Close(err)
			}
			break
		}
	}
	if in.over {
		s.Close(in.last.err)
	}
}

// rawConn is the descriptor of a channel that can be asked without waiting.
func (s *Session) rawConn() (syscall.RawConn, error) {
	if s.intake == nil || s.intake.raw == nil {
		return nil, ErrNoCarry
	}
	return s.intake.raw, nil
}

// ioctl asks how many bytes wait in one of the channel's queues.
func ioctl(raw syscall.RawConn, request uint) (n int, err error) {
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), request) }); cerr != nil {
		return 0, cerr
	}
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		err = ErrNoCarry
	}
	return n, err
}
