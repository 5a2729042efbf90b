package channel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// acceptPause keeps a listener that fails on each Accept (no file descriptor left, say) from spinning.
const acceptPause = 50 * time.Millisecond

// Serve is the host's counterpart of Keep: it accepts the connections of one VM and runs serve on each, one at a time, the
// newest one first. When a connection comes while an older one is served, the older one's context ends and its Conn is
// closed; the new one is served as soon as serve has returned for the old one. The Conn is closed when serve returns.
//
// Serve owns l and closes it. It returns the cause when ctx ends, after the connection under way is over, or nil when
// somebody else closed l. logger may be nil.
func Serve(ctx context.Context, l Listener, serve func(context.Context, Conn) error, logger *slog.Logger) error {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	logger = logger.With("channel", l.Addr().String())
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	var current *session
	defer func() { current.end() }()
	lastFailure := ""
	var replaced time.Time // when that was last told
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return context.Cause(ctx)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// A guest can cause ErrPeer at will: the same failure is told once, or it could fill the log.
			if s := err.Error(); s != lastFailure {
				lastFailure = s
				logger.Warn("accept failed, going on", "error", err)
			}
			sleep(ctx, acceptPause)
			continue
		}
		// Whoever may connect can do so all day: it is told once a second at most.
		if now := time.Now(); current.alive() && now.Sub(replaced) >= time.Second {
			replaced = now
			logger.Info("a newer connection takes the place of the old one")
		}
		current.end()
		current = startSession(ctx, conn, serve)
	}
}

// session is one accepted connection under service. A nil session is over.
type session struct {
	conn   Conn
	cancel context.CancelFunc
	done   chan struct{} // closed when serve has returned and conn is closed
}

func startSession(ctx context.Context, conn Conn, serve func(context.Context, Conn) error) *session {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{conn: conn, cancel: cancel, done: make(chan struct{})}
	stopClose := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(s.done)
		defer cancel()
		defer conn.Close()
		defer stopClose()
		_ = serve(ctx, conn) // it knows best what to log of its own end
	}()
	return s
}

func (s *session) alive() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// end ends the session and waits until nothing of it runs any more.
func (s *session) end() {
	if s == nil {
		return
	}
	s.cancel()
	s.conn.Close()
	<-s.done
}
