package e2e

import (
	"sync"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/session"
)

// TestClientFaults: clients that go in the middle, read slowly, or not at all for a while.
func TestClientFaults(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	var running sync.WaitGroup // not t.Parallel, which allows two at a time on a small machine: most of them wait
	for _, arm := range offloading {
		for _, c := range []struct {
			name string
			run  func(*testing.T, *lab.Lab, *media, lab.Arm)
		}{
			{"reset in the middle", clientResets},
			{"close in the middle", clientCloses},
			{"half-closed in the middle", clientHalfCloses},
			{"half-closed after the request", clientHalfClosedRequest},
			{"one KB a second", clientTrickles},
			{"zero window", clientZeroWindow},
			{"idle", clientIdles},
		} {
			running.Go(func() {
				t.Run(string(arm)+" "+c.name, func(t *testing.T) { c.run(t, l, files, arm) })
			})
		}
	}
	running.Wait()
	for _, arm := range offloading { // whatever the others did, the servers serve
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
	}
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
	s := hostStatus(t, l)
	if s.Closed["client-gone"] == 0 || s.Closed["kernel"] != 0 || s.Breaches != 0 {
		t.Errorf("the daemon closed leases for %v, and %d sessions for breaches; want client-gone, no kernel and no breach", s.Closed, s.Breaches)
	}
}

// begun is a client that has read the first part of the big file and has a small buffer.
func begun(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) (c *client, rest []byte) {
	t.Helper()
	c = dial(t, l, arm, receiveBuffer(smallBuffer))
	if !c.begin(bigFile, files.files[bigFile], readSome) {
		t.FailNow()
	}
	return c, files.files[bigFile][readSome:]
}

func clientResets(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c, _ := begun(t, l, files, arm)
	c.reset()
}

// clientCloses closes with bytes under way: the kernel sends a FIN or, for what it has not delivered, a RST.
func clientCloses(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c, _ := begun(t, l, files, arm)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func clientHalfCloses(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c, rest := begun(t, l, files, arm)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.take(rest)
	c.expectClosed()
}

func clientHalfClosedRequest(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	for _, first := range []bool{true, false} { // the connection's first request, and one on a connection that was handed over before
		c := dial(t, l, arm)
		if !first {
			c.get("10m.mp4", files.files["10m.mp4"])
		}
		if !c.ask(bigFile) {
			return
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		resp, err := c.header("GET")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("first %v: %v, %v", first, resp, err)
		}
		c.take(files.files[bigFile])
		c.expectClosed()
	}
}

func clientTrickles(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c, rest := begun(t, l, files, arm)
	const step = 1 << 10
	for range 4 {
		c.take(rest[:step])
		rest = rest[step:]
		time.Sleep(time.Second)
	}
	c.take(rest)
	c.get("4k.m4s", files.files["4k.m4s"])
}

func clientZeroWindow(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c, rest := begun(t, l, files, arm)
	time.Sleep(5 * time.Second)
	c.take(rest)
	c.get("4k.m4s", files.files["4k.m4s"])
}

// clientIdles is silent for longer than a session may be.
func clientIdles(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	c := dial(t, l, arm)
	c.get("10m.mp4", files.files["10m.mp4"])
	time.Sleep(session.DefaultSilent + 2*time.Second)
	before := serverStats(t, l, arm).Counts // the slow readers have ended before
	c.get("10m.mp4", files.files["10m.mp4"])
	eventually(t, "the response was sent by the host", func() bool { return serverStats(t, l, arm).Counts.Sends > before.Sends })
	if before.Sessions != 1 {
		t.Errorf("%d sessions, want 1", before.Sessions)
	}
}
