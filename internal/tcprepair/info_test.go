package tcprepair

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestInfoLayout holds the fields of info against another description of struct tcp_info.
func TestInfoLayout(t *testing.T) {
	var i info
	var k unix.TCPInfo
	for name, offsets := range map[string][2]uintptr{
		"tcpi_rto":            {unsafe.Offsetof(i.rtoUs), unsafe.Offsetof(k.Rto)},
		"tcpi_unacked":        {unsafe.Offsetof(i.unackedSegs), unsafe.Offsetof(k.Unacked)},
		"tcpi_last_data_sent": {unsafe.Offsetof(i.sinceDataMs), unsafe.Offsetof(k.Last_data_sent)},
		"tcpi_rtt":            {unsafe.Offsetof(i.rttUs), unsafe.Offsetof(k.Rtt)},
		"tcpi_snd_ssthresh":   {unsafe.Offsetof(i.sndSsthresh), unsafe.Offsetof(k.Snd_ssthresh)},
		"tcpi_snd_cwnd":       {unsafe.Offsetof(i.sndCwnd), unsafe.Offsetof(k.Snd_cwnd)},
		"tcpi_notsent_bytes":  {unsafe.Offsetof(i.notSentBytes), unsafe.Offsetof(k.Notsent_bytes)},
		"tcpi_delivered":      {unsafe.Offsetof(i.delivered), unsafe.Offsetof(k.Delivered)},
	} {
		if offsets[0] != offsets[1] {
			t.Errorf("%s at offset %d, want %d", name, offsets[0], offsets[1])
		}
	}
}

func TestStartWindowOfInfo(t *testing.T) {
	for _, c := range []struct{ cwnd, rtoUs, idleMs, want, began, delivered uint32 }{
		{100, 200_000, 0, 100, 0, 500}, {100, 200_000, 200, 100, 0, 500}, {100, 200_000, 201, 50, 0, 500}, {100, 200_000, 500, 25, 0, 500},
		{100, 200_000, 100_000_000, 10, 0, 500}, {5, 200_000, 1000, 5, 0, 500}, {100, 0, 1000, 100, 0, 500},
		{14, 0, 0, 10, 0, 4}, {14, 0, 0, 14, 0, 10}, {304, 0, 0, 300, 300, 4}, {200, 0, 0, 200, 300, 4}, {600, 0, 0, 600, 300, 300},
	} {
		i := info{sndCwnd: c.cwnd, rtoUs: c.rtoUs, sinceDataMs: c.idleMs, delivered: c.delivered}
		if got := i.startWindow(c.began); got != c.want {
			t.Errorf("%+v: %d segments", c, got)
		}
	}
}
