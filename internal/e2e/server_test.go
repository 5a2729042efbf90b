package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
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

// TestServerStops: a server that is told to stop, and whose client takes longer than it may wait, ends; the host sends to the end what it was told to
// send.
func TestServerStops(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	want := files.files[bigFile]
	streaming := map[lab.Arm]*client{}
	for _, arm := range offloading {
		streaming[arm] = dial(t, l, arm, receiveBuffer(smallBuffer))
		streaming[arm].begin(bigFile, want, readSome)
		must(t, syscall.Kill(serverPID(t, l, arm), syscall.SIGTERM))
	}
	for arm, c := range streaming {
		eventually(t, "the server has ended", func() bool { return serverPID(t, l, arm) == 0 })
		c.take(want[readSome:])
		c.expectClosed()
	}
	eventually(t, "the lab has noticed", func() bool {
		ended := fmt.Sprint(l.Health())
		return strings.Contains(ended, "[lease offload]") || strings.Contains(ended, "[offload lease]")
	})
	for _, arm := range offloading {
		killServer(t, l, arm)
	}
	for _, arm := range offloading {
		must(t, l.StartServer(arm))
	}
	for _, arm := range offloading {
		waitArm(t, l, arm)
	}
	noLeases(t, l)
}

// serverPID is the process of an arm's server, or 0.
func serverPID(t *testing.T, l *lab.Lab, arm lab.Arm) int {
	t.Helper()
	found := processes(func(p process) bool { return strings.Contains(p.cmdline, "\x00unix:"+channelSocket(l, arm)+"\x00") })
	if len(found) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(found[0].pid)
	must(t, err)
	return pid
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
