package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"spillway/internal/lab"
)

// lossPatience is for one read of a client whose packets get lost: a tenth of both directions seldom makes a retransmission time-out double more than
// five times (0.2 s, RFC 6298, section 5.5).
const lossPatience = 90 * time.Second

// TestHeavyLoss: up to a tenth of the packets gets lost in both directions, in each mode. It takes as long as TCP takes, but everything comes, and connections go
// there and back meanwhile.
func TestHeavyLoss(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, percent := range []uint32{2, 10} {
		for _, arm := range offloading {
			t.Run(fmt.Sprintf("%d percent %s", percent, arm), func(t *testing.T) {
				before := hostStatus(t, l).Handbacks
				toClient, stop := lose(t, l.Client, percent)
				fromClient, stopToo := lose(t, l.Host, percent)
				const enough, rounds = 20, 20
				for i := 0; i < rounds && min(toClient(), fromClient()) < enough; i++ {
					lossyVisitors(t, l, files, arm)
				}
				if to, from := toClient(), fromClient(); min(to, from) < enough {
					t.Errorf("%d and %d packets were lost in the two directions: the test has lost its meaning", to, from)
				}
				stop()
				stopToo()
				if hostStatus(t, l).Handbacks == before {
					t.Error("no connection has come back")
				}
				noLeases(t, l)
				fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
			})
		}
	}
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
	if s := hostStatus(t, l); s.Breaches != 0 || s.Closed["kernel"] != 0 {
		t.Errorf("%d breaches, leases closed for %v", s.Breaches, s.Closed)
	}
}

// lossyVisitors lets clients of each kind do what they do, side by side, while some connections are recalled in the middle of files.
func lossyVisitors(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	t.Helper()
	var clients, recaller sync.WaitGroup
	done := make(chan struct{})
	for _, visit := range []func(c *client) bool{
		func(c *client) bool { return c.get(fileOf288KB, files.files[fileOf288KB]) },
		func(c *client) bool { return c.getTimes(20, "4k.m4s", files.files["4k.m4s"]) },
		func(c *client) bool { return c.upload(20_000) && c.upload(10_000) },
		func(c *client) bool { return c.getTimes(2, "smarttv/seg-1.m4s", files.files["smarttv/seg-1.m4s"]) },
	} {
		for range 3 {
			clients.Go(func() {
				c := dial(t, l, arm)
				c.patience = lossPatience
				if c.get("64k.m4s", files.files["64k.m4s"]) && visit(c) {
					c.get("64k.m4s", files.files["64k.m4s"])
				}
				if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
			})
		}
	}
	recaller.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				recall(t, l)
			}
		}
	})
	clients.Wait()
	close(done)
	recaller.Wait()
}

func (c *client) getTimes(times int, name string, want []byte) bool {
	for range times {
		if !c.get(name, want) {
			return false
		}
	}
	return true
}

// upload sends a body that the server reads and refuses.
func (c *client) upload(size int) bool {
	c.t.Helper()
	if !c.send(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target("4k.m4s"), c.addr, size, make([]byte, size))) {
		return false
	}
	resp, err := c.header(http.MethodPost)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || resp.Close {
		c.t.Errorf("%v, %v; want 405 and the connection kept", resp, err)
		return false
	}
	return c.take([]byte(refusedText))
}
