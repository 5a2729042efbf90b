package e2e

import (
	"testing"

	"spillway/internal/config"
	"spillway/internal/lab"
)

// TestThresholdAuto: the server tries both ways for a size before it decides, and the client has its bytes on either. What it decides
// depends on the machine.
func TestThresholdAuto(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files, func(o *lab.Options) { o.Threshold = config.ThresholdAuto })
	const name = "tablet/1 (1).m4s"
	for _, arm := range offloading {
		c := dial(t, l, arm)
		for i := range 40 {
			if !c.get(name, files.files[name]) {
				t.Fatalf("%s: request %d", arm, i)
			}
			if s := serverStats(t, l, arm); i == 0 && s.Counts.Handovers != 0 {
				t.Errorf("%s: handed over before it knew anything: %+v", arm, s.Counts)
			}
		}
		s := serverStats(t, l, arm)
		if len(s.Learned) != 1 || s.Learned[0].Local == 0 || s.Learned[0].Host == 0 {
			t.Errorf("%s: learned %+v of %+v", arm, s.Learned, s.Counts)
		}
		t.Logf("%s: %+v, %d handovers, %d sends", arm, s.Learned, s.Counts.Handovers, s.Counts.Sends)
	}
}
