package e2e

import (
	"context"
	"io"
	"net/http"
	"testing"

	"spillway/internal/lab"
)

func recall(t *testing.T, l *lab.Lab) (leases int) {
	t.Helper()
	var answer struct{ Leases int }
	if err := l.HostAdmin(context.Background(), http.MethodPost, "/recall", &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Leases
}

// TestRecallIdle: an idle connection comes back to the guest, and is leased again with its next response.
func TestRecallIdle(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	check := watchResets(t, l)
	const connections, rounds = 5, 3
	var clients []*client
	for range connections {
		clients = append(clients, dial(t, l, lab.Lease))
	}
	for round := range rounds {
		for _, c := range clients {
			c.get("10m.mp4", files.files["10m.mp4"])
		}
		eventually(t, "all connections are leased, each handed over once a round", func() bool {
			s := serverStats(t, l, lab.Lease)
			return s.Leases == connections && s.Counts.Handovers == uint64(connections*(round+1))
		})
		if n := recall(t, l); n != connections {
			t.Errorf("round %d: recall found %d leases, want %d", round, n, connections)
		}
		eventually(t, "the connections are back", func() bool {
			return serverStats(t, l, lab.Lease).Leases == 0 && hostStatus(t, l).Leases == 0
		})
		if got := hostStatus(t, l).Handbacks; got != uint64(connections*(round+1)) {
			t.Errorf("round %d: %d handbacks, want %d", round, got, connections*(round+1))
		}
	}
	for _, c := range clients {
		c.get("4k.m4s", files.files["4k.m4s"])
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	noLeases(t, l)
	check()
}

// TestRecallWhileStreaming: a recall, and another one, and more of them than responses, in the middle of bodies and between them.
func TestRecallWhileStreaming(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	want := files.files[bigFile]
	c := dial(t, l, lab.Lease, receiveBuffer(smallBuffer))
	c.begin(bigFile, want, readSome)
	for range 2 {
		if n := recall(t, l); n != 1 {
			t.Errorf("recall found %d leases, want 1", n)
		}
	}
	eventually(t, "the connection is back in the middle of its response", func() bool { return hostStatus(t, l).Handbacks == 1 })
	c.take(want[readSome:])
	if s := serverStats(t, l, lab.Lease); s.Counts.SentBytes == 0 || s.Counts.LocalBytes == 0 || s.Counts.SentBytes+s.Counts.LocalBytes != uint64(len(want)) {
		t.Errorf("%+v; want a part of %d bytes sent by the host, and the rest by the guest", s.Counts, len(want))
	}
	c.get("10m.mp4", files.files["10m.mp4"])
	eventually(t, "the connection is leased again", func() bool {
		s := serverStats(t, l, lab.Lease)
		return s.Counts.Handovers == 2 && s.Leases == 1
	})

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = l.HostAdmin(context.Background(), http.MethodPost, "/recall", nil) // that it works was seen above
			}
		}
	}()
	load(t, l, files, lab.Lease, 2, 6)
	close(stop)
	<-stopped
	t.Logf("host %+v", hostStatus(t, l))
	t.Logf("guest %+v", serverStats(t, l, lab.Lease))
	if s := hostStatus(t, l); s.Handbacks < 3 {
		t.Errorf("%d handbacks and %d keeps under a storm of recalls", s.Handbacks, s.Keeps)
	}
	c.get("4k.m4s", files.files["4k.m4s"])
}

// TestRecallWhileUploading: connections that go home and back all the time while their clients upload. What is on its way to the host when the guest has
// the connection already is neither lost nor there twice, and no upload stands still.
func TestRecallWhileUploading(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	startTraffic(t, l, lab.Lease)
	e := &exchange{t: t, l: l, files: files, way: way{"recalled", lab.Lease, false, true}, ctl: httpClient(t, l), key: "upload"}
	stop := e.recallAllTheTime()
	defer stop()
	const connections, rounds, size = 30, 10, 150_000
	for i := range connections {
		c := e.connect()
		for round := range rounds {
			c.get("64k.m4s", files.files["64k.m4s"])
			c.send(post("/count", size))
			if err := c.sendPattern(size); err != nil {
				t.Fatalf("connection %d, round %d: %v", i, round, err)
			}
			resp, err := c.header(http.MethodPost)
			if err != nil {
				t.Fatalf("connection %d, round %d: %v", i, round, err)
			}
			if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "150000 bytes, ok" {
				t.Fatalf("connection %d, round %d: the server has read %q, %v", i, round, text, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	stop()
	if s := hostStatus(t, l); s.Handbacks < connections {
		t.Errorf("%d handbacks under %d uploads: the connections have not moved", s.Handbacks, connections*rounds)
	}
	noLeases(t, l)
}
