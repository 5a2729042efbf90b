package e2e

import (
	"testing"

	"spillway/internal/lab"
)

// TestServerKilledInTransfer: what the guest's server has ordered is sent to its end, then the connection is closed.
func TestServerKilledInTransfer(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) { serverKilled(t, l, files, arm) })
	}
}

func serverKilled(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	want := files.files[bigFile]
	var streaming []*client
	for range 3 {
		c := dial(t, l, arm, receiveBuffer(smallBuffer))
		c.begin(bigFile, want, readSome)
		streaming = append(streaming, c)
	}
	idle := dial(t, l, arm)
	idle.get("64k.m4s", files.files["64k.m4s"])

	killServer(t, l, arm)
	for _, c := range streaming {
		c.take(want[readSome:])
		c.expectClosed()
		c.Close()
	}
	idle.expectClosed()
	idle.Close()

	restartServer(t, l, arm)
	fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
	expectSends(t, l, arm, 1)
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
}
