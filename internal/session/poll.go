package session

import (
	"runtime"
	"syscall"
	"time"
)

// poller reads from a channel. While traffic is dense it asks again and again, for a bounded time, before it waits to be woken: an interrupt, the
// wake-up of an idle CPU and the netpoller take longer than most answers do. After one question in vain it waits like anybody until
// traffic is dense again, so an idle channel costs nothing, and the cost is bounded by limit for each pause that is longer than it.
type poller struct {
	conn  Conn
	raw   syscall.RawConn // nil: conn cannot be asked without waiting
	limit time.Duration   // 0: never poll
	dense bool            // the last bytes came within limit
}

func newPoller(conn Conn, limit time.Duration) *poller {
	p := &poller{conn: conn, limit: limit}
	if c, ok := conn.(syscall.Conn); ok && limit > 0 {
		if raw, err := c.SyscallConn(); err == nil {
			p.raw = raw
		}
	}
	return p
}

// Read implements io.Reader.
func (p *poller) Read(b []byte) (int, error) {
	if p.raw == nil {
		return p.conn.Read(b)
	}
	began := time.Now()
	for p.dense {
		if n := p.ask(b); n > 0 {
			return n, nil
		}
		p.dense = time.Since(began) < p.limit
		runtime.Gosched() // whoever can go on, goes on
	}
	n, err := p.conn.Read(b)
	p.dense = time.Since(began) < p.limit
	return n, err
}

// ask reads what is there. Errors and the end of the stream are left to the next Read of the Conn.
func (p *poller) ask(b []byte) (n int) {
	err := p.raw.Read(func(fd uintptr) bool {
		n, _ = syscall.Read(int(fd), b)
		return true
	})
	if err != nil {
		return 0
	}
	return n
}
