package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"spillway/internal/wire"
)

// Options of Host and Guest. The zero value is right in production.
type Options struct {
	Silent time.Duration // how long a silent other side is believed; default DefaultSilent, whole seconds
	// BusyPoll is how long Poll asks; 0: not at all.
	BusyPoll time.Duration
	Ended    func(error) // told why each session ended, and each offer that could not be understood
	// Offer, at the host, waits until a session may be offered; nil: always. An error of it, which ctx is the reason of, ends Host. A State that it returns is
	// that of a session which another host had with this guest: it goes on here, and none is offered.
	Offer func(ctx context.Context) (*State, error)
}

func (o Options) silent() time.Duration {
	if o.Silent > 0 {
		return o.Silent
	}
	return DefaultSilent
}

func (o Options) ended(err error) {
	if o.Ended != nil {
		o.Ended(err)
	}
}

// Host offers sessions over conn and serves them, one after the other, until the channel fails or ctx is done. begin makes the handler of a
// session that the guest has accepted.
func Host(ctx context.Context, conn Conn, hello wire.Hello, opts Options, begin func(*Session) Handler) error {
	hello.Version = wire.Version
	l := &link{conn: conn, reader: wire.NewHostReader(conn), opts: opts}
	return l.serve(ctx, func() (*Session, error) {
		if opts.Offer != nil {
			st, err := opts.Offer(ctx)
			if err != nil {
				return nil, err
			}
			if st != nil {
				return l.carryOn(st)
			}
		}
		id := rand.Uint32() | 1 // 0 is no session
		offer := wire.Append(nil, id, 0, 0, hello)
		l.say(ctx, offer)
		for {
			h, payload, err := l.sync()
			if err != nil {
				return nil, err
			}
			if h.Type == wire.TypeGreet {
				l.say(ctx, offer)
				continue
			}
			ready, err := wire.ParseReady(payload)
			switch {
			case err != nil || h.Session != id: // READY of an older session
				continue
			case ready.Version != wire.Version:
				opts.ended(fmt.Errorf("%w: the guest %d, the host %d; update the older one", ErrVersion, ready.Version, wire.Version))
				continue
			}
			return newSession(conn, id, hello, nil), nil
		}
	}, begin)
}

// Guest accepts the sessions that the host offers over conn and serves them, one after the other, until the channel fails or ctx is done.
func Guest(ctx context.Context, conn Conn, opts Options, begin func(*Session) Handler) error {
	l := &link{conn: conn, reader: wire.NewGuestReader(conn), opts: opts}
	greet := wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version})
	return l.serve(ctx, func() (*Session, error) {
		stop := l.repeat(ctx, greet)
		defer stop()
		for {
			h, payload, err := l.sync()
			if err != nil {
				return nil, err
			}
			hello, err := wire.ParseHello(payload)
			if err != nil {
				continue
			}
			stop()
			ready := wire.Append(nil, h.Session, 0, 0, wire.Ready{Version: wire.Version})
			if hello.Version != wire.Version {
				l.say(ctx, ready) // the host sees our version in it and says so in its log
				opts.ended(fmt.Errorf("%w: the host %d, the guest %d; update the older one", ErrVersion, hello.Version, wire.Version))
				continue
			}
			// Not by say, which waits: a host that is saying HELLO again does not read before we have read it.
			return newSession(conn, h.Session, hello, ready), nil
		}
	}, begin)
}

// carryOn makes the session of st.
func (l *link) carryOn(st *State) (*Session, error) {
	l.again, l.reader = false, wire.NewHostReader(l.conn)
	if err := l.reader.Fill(func(p []byte) (int, error) { return copy(p, st.Input), nil }); err != nil {
		return nil, err
	}
	s := newSession(l.conn, st.ID, st.Hello, st.Output)
	s.opening = nil // it is not to be repeated
	return s, nil
}

// link is one channel through all its sessions.
type link struct {
	conn   Conn
	reader *wire.Reader
	opts   Options

	again   bool // header and payload began a newer session: the next sync returns them
	header  wire.Header
	payload []byte
}

// serve runs sessions until the channel fails or ctx is done.
func (l *link) serve(ctx context.Context, agree func() (*Session, error), begin func(*Session) Handler) error {
	stop := context.AfterFunc(ctx, func() {
		_ = l.conn.SetReadDeadline(time.Unix(1, 0))
		_ = l.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	defer stop()
	for {
		s, err := agree()
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
		s.busyPoll = l.opts.BusyPoll
		s.intake = newIntake(l.conn, l.reader, nil)
		// begin lets others know the session, and they may poll it: not before there is a handler for what they find.
		s.intake.mu.Lock()
		s.intake.handler = begin(s)
		s.intake.mu.Unlock()
		o := s.run(l.opts.silent())
		l.again, l.header, l.payload, err = o.again, o.header, o.payload, o.err
		l.opts.ended(err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The session's end has left deadlines in the past behind. Of a channel that failed the next read tells again.
		if err := errors.Join(l.conn.SetReadDeadline(time.Time{}), l.conn.SetWriteDeadline(time.Time{})); err != nil {
			return err
		}
		if ctx.Err() != nil { // it was done while the deadlines were taken back
			return ctx.Err()
		}
		if !recoverable(err) {
			return err
		}
	}
}

// recoverable tells whether the channel can still carry a new session after err ended one.
func recoverable(err error) bool {
	return errors.Is(err, ErrRestart) || errors.Is(err, ErrMove) || errors.Is(err, ErrSilent) || errors.Is(err, wire.ErrFormat) || errors.Is(err, os.ErrDeadlineExceeded)
}

// sync returns the next frame that begins a session.
func (l *link) sync() (wire.Header, []byte, error) {
	if l.again {
		l.again = false
		return l.header, l.payload, nil
	}
	return l.reader.Sync()
}

// say writes a frame of the agreement. An error is not reported: the channel's next read fails too, or the frame is repeated.
func (l *link) say(ctx context.Context, frame []byte) {
	_ = l.conn.SetWriteDeadline(time.Now().Add(l.opts.silent()))
	// Only now: whoever ends ctx sets a deadline in the past afterwards, which ours has not undone then.
	if ctx.Err() == nil {
		_, _ = l.conn.Write(frame)
	}
	_ = l.conn.SetWriteDeadline(time.Time{})
}

// repeat says frame now and every second until stop is called; stop waits until nothing is being said.
func (l *link) repeat(ctx context.Context, frame []byte) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(tickInterval)
		defer tick.Stop()
		for {
			l.say(ctx, frame)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		_ = l.conn.SetWriteDeadline(time.Unix(1, 0))
		<-gone
		_ = l.conn.SetWriteDeadline(time.Time{})
	})
}
