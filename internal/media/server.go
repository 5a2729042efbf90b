package media

import (
	"log/slog"
	"net/http"
	"time"
)

// Limits of [NewServer].
const (
	// ReadHeaderTimeout bounds a client that sends its request slowly, from the request's first byte.
	ReadHeaderTimeout = 10 * time.Second

	// IdleTimeout bounds the pause between two requests. A player asks once per segment (6 to 15 s) and may be paused.
	IdleTimeout = 2 * time.Minute

	// MaxHeaderBytes bounds a request's header: a GET with a long URL and cookies.
	MaxHeaderBytes = 16 << 10
)

// NewServer returns a server for handler, ready for Serve on any listener. There is no time-out for writing: a slow client is
// a client. Errors of the connections go to log at level warn (slog.Default when nil).
func NewServer(handler http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.Default()
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: ReadHeaderTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
