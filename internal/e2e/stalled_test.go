package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"spillway/internal/lab"
)

// Stalled clients: many that read nothing, and some that read fast until the host sends fast, and then nothing any more.
const (
	silentClients = 300
	greedyClients = 16
	greedyBytes   = 20_000_000

	daemonBytesEach = 80 << 10 // what a lease may take of the daemon's memory (examples/host.toml)
	daemonBytes     = 16 << 20 // what the daemon may take for itself
	queuedBytesEach = 1 << 20  // what may wait to be sent on the first leases; on later ones less
	queuedSlack     = 2 << 20  // what was sent, and the client's kernel had no room for
)

// TestStalledClients: clients that take no more, on all of a VM's leases, cost the host so much memory and no more, and nobody else anything.
func TestStalledClients(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	for range 3 { // what the daemon needs for its work is not the clients'
		fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	}
	base := residentBytes(t, l)
	var greedy, silent []*client
	for range greedyClients {
		c := dial(t, l, lab.Lease)
		c.begin(bigFile, files.files[bigFile], greedyBytes)
		greedy = append(greedy, c)
	}
	for range silentClients {
		c := dial(t, l, lab.Lease, receiveBuffer(smallBuffer))
		c.ask(bigFile)
		silent = append(silent, c)
	}
	eventually(t, "all connections are leased", func() bool { return hostStatus(t, l).Leases >= greedyClients+silentClients })
	// Honest clients, of the same server too.
	for _, arm := range offloading {
		before := serverStats(t, l, arm).Counts.Sends
		for range 3 {
			fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
		}
		expectSends(t, l, arm, before+3)
	}
	grown, queued, most := residentBytes(t, l)-base, 0, 0
	for _, n := range queuedBytes(t, l) {
		queued += n
		most = max(most, n)
	}
	t.Logf("the daemon has grown by %d KiB; %d KiB wait to be sent, at most %d KiB on a connection", grown>>10, queued>>10, most>>10)
	if limit := daemonBytes + (greedyClients+silentClients)*daemonBytesEach; grown > limit {
		t.Errorf("the daemon has grown by %d bytes, want %d at most", grown, limit)
	}
	if limit := queuedBytesEach + queuedSlack; most > limit {
		t.Errorf("%d bytes wait to be sent on a connection, want %d at most", most, limit)
	}
	// A client that comes to life again has missed nothing.
	greedy[0].take(files.files[bigFile][greedyBytes:])
	resp, err := silent[0].header(http.MethodGet)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	silent[0].take(files.files[bigFile])
	for _, c := range append(greedy, silent...) {
		c.reset()
	}
	noLeases(t, l)
}

// queuedBytes are the bytes in the send queues of the host's sockets that are the VM's: not sent, or not acknowledged.
func queuedBytes(t *testing.T, l *lab.Lab) (queues []int) {
	t.Helper()
	for _, line := range hostConnections(t, l) {
		var n int
		field := strings.Fields(line)[4] // tx_queue:rx_queue
		if _, err := fmt.Sscanf(field, "%08X:", &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		queues = append(queues, n)
	}
	return queues
}
