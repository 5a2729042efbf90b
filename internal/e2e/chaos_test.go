package e2e

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
)

// TestChaos: clients come and go while daemon and servers are killed and started at any moment of a connection's life. A response may be cut,
// but no byte is wrong, nobody hangs, and in the end everything works and nothing is left.
func TestChaos(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var clients sync.WaitGroup
	var stop atomic.Bool
	var whole, cut [2]atomic.Int64
	for i := range 8 {
		arm := i % len(offloading)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		clients.Go(func() {
			for !stop.Load() {
				w, c := visit(t, l, files, offloading[arm], random)
				whole[arm].Add(w)
				cut[arm].Add(c)
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, 100))
	pause := func() { time.Sleep(100*time.Millisecond + rand.N(300*time.Millisecond)) }
	for range 4 {
		pause()
		stopHost(t, l, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[random.IntN(2)])
		pause()
		startHost(t, l)
		pause()
		arm := offloading[random.IntN(2)]
		killServer(t, l, arm)
		pause()
		restartServer(t, l, arm)
	}
	stop.Store(true)
	clients.Wait()
	for i, arm := range offloading {
		t.Logf("%s: %d whole responses, %d cut", arm, whole[i].Load(), cut[i].Load())
		if whole[i].Load() == 0 {
			t.Errorf("%s: no response came whole", arm)
		}
		before := serverStats(t, l, arm).Counts.Sends
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
		expectSends(t, l, arm, before+1) // in the end it works
	}
	noLeases(t, l)
	checkRedirect(t, l)
}

// visit makes a few requests over one connection and counts the responses that came whole and that were cut.
func visit(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, random *rand.Rand) (whole, cut int64) {
	conn, err := l.Client.Dial(&net.Dialer{Timeout: hangLimit}, "tcp", l.Addr(arm))
	if err != nil {
		// The server was killed, before or while the connection waited to be accepted.
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: dial: %v", arm, err)
		}
		time.Sleep(20 * time.Millisecond)
		return 0, 0
	}
	defer conn.Close()
	c := wrapClient(t, conn.(*net.TCPConn), l.Addr(arm))
	c.patience = hangLimit
	names := files.names()
	for range 1 + random.IntN(10) {
		name := names[random.IntN(len(names))]
		want := files.files[name]
		resp, got, err := c.fetchAny(name)
		switch {
		case err != nil && !closedByPeer(err):
			t.Errorf("%s: %s: %v after %d bytes; want an answer or a closed connection within %v", arm, name, err, len(got), hangLimit)
			return whole, cut
		case !bytes.HasPrefix(want, got):
			t.Errorf("%s: %s: wrong bytes among %d", arm, name, len(got))
			return whole, cut
		case err != nil:
			return whole, cut + 1
		case resp.StatusCode != http.StatusOK || len(got) != len(want):
			t.Errorf("%s: %s: status %d, %d bytes", arm, name, resp.StatusCode, len(got))
			return whole, cut
		}
		whole++
	}
	return whole, cut
}
