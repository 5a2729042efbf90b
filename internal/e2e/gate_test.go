package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"spillway/internal/lab"
)

// gate is a TCP proxy in front of a real origin, in the host's namespace of a lab: it counts what the origin sends, and can hold it up.
type gate struct {
	l        *lab.Lab
	upstream string

	mu    sync.Mutex
	sent  int64 // bytes of answers, headers included, that have passed
	limit int64 // no more of them pass; negative: all
	conns map[net.Conn]bool
	shut  bool
}

// newGate listens at originAddr until the test ends, and passes everything on.
func newGate(t *testing.T, l *lab.Lab, upstream string) *gate {
	t.Helper()
	g := &gate{l: l, upstream: upstream, limit: -1, conns: map[net.Conn]bool{}}
	var listener net.Listener
	must(t, l.Host.Do(func() (err error) {
		listener, err = net.Listen("tcp", originAddr)
		return err
	}))
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { g.serve(c) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		g.mu.Lock()
		g.shut = true
		for c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		running.Wait()
	})
	return g
}

// serve passes one connection on.
func (g *gate) serve(from net.Conn) {
	defer from.Close()
	to, err := g.l.Host.Dial(&net.Dialer{Timeout: patience}, "tcp", g.upstream)
	if err != nil {
		return
	}
	defer to.Close()
	g.mu.Lock()
	g.conns[from], g.conns[to] = true, true
	shut := g.shut
	g.mu.Unlock()
	if shut {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}) // not by splice(2), which keeps pipes
		_ = to.(*net.TCPConn).CloseWrite()
	})
	g.answers(from, to)
	from.Close()
	up.Wait()
	g.mu.Lock()
	delete(g.conns, from)
	delete(g.conns, to)
	g.mu.Unlock()
}

// answers passes what the origin sends, as far as it may.
func (g *gate) answers(to io.Writer, origin io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := origin.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			m := g.allowed(len(p))
			if m == 0 {
				return
			}
			if _, err := to.Write(p[:m]); err != nil {
				return
			}
			p = p[m:]
		}
		if err != nil {
			return
		}
	}
}

// drop is the pace at which a held gate goes on, so that however long a test holds it, no time-out ends what waits for it.
const drop = time.Second

// allowed waits until some of n bytes may pass, and tells how many; 0: the test is over.
func (g *gate) allowed(n int) int {
	began := time.Now()
	for {
		g.mu.Lock()
		switch left := g.limit - g.sent; {
		case g.shut:
			n = 0
		case g.limit < 0:
		case left > 0:
			n = int(min(int64(n), left))
		case time.Since(began) >= drop:
			n = 1
			g.limit++
		default:
			g.mu.Unlock()
			time.Sleep(5 * time.Millisecond)
			continue
		}
		g.sent += int64(n)
		g.mu.Unlock()
		return n
	}
}

// hold lets only so many bytes more pass, and then next to nothing, until it is opened.
func (g *gate) hold(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = g.sent + bytes
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = -1
}

// total is how many bytes of answers have passed.
func (g *gate) total() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent
}
