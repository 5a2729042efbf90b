package e2e

import (
	"testing"

	"spillway/internal/lab"
)

// TestBypass: the bytes of a leased body do not enter the VM.
func TestBypass(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) { bypass(t, l, arm, files.files[bigFile]) })
	}
	// The counters would show it: an arm without offloading is seen in full.
	t.Run("vm", func(t *testing.T) {
		if grown := guestTraffic(t, l, func() { fetch(t, l, lab.VM, bigFile, files.files[bigFile]) }); grown < uint64(bigBytes) {
			t.Errorf("%d bytes to and from the guest for %d bytes that it served itself: the counters are not its link's", grown, bigBytes)
		}
	})
}

// bypassPercent of a body may cross the VM's link: requests, acknowledgements before the handover, the counters' own requests.
const bypassPercent = 2

// bypass fetches a file and looks at the VM's link.
func bypass(t *testing.T, l *lab.Lab, arm lab.Arm, want []byte) {
	t.Helper()
	if grown := guestTraffic(t, l, func() { fetch(t, l, arm, bigFile, want) }); grown > uint64(len(want))*bypassPercent/100 {
		t.Errorf("%d bytes to and from the guest for %d bytes sent by the host", grown, len(want))
	}
}

// guestTraffic counts the bytes to and from the guest's network card while f runs.
func guestTraffic(t *testing.T, l *lab.Lab, f func()) uint64 {
	t.Helper()
	before, err := l.GuestCounters()
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := l.GuestCounters()
	if err != nil {
		t.Fatal(err)
	}
	return after.RxBytes - before.RxBytes + after.TxBytes - before.TxBytes
}
