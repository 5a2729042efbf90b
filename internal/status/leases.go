package status

import (
	"fmt"
	"time"

	"spillway/internal/host"
)

// leasesTable writes the leases for a person. before is an older answer, elapsed ago, for the rates; nil shows none.
func leasesTable(now, before *host.Leases, elapsed time.Duration, at time.Time) string {
	t := &table{}
	t.line("spillway host, live leases  [%s]", clock(at))
	earlier := sentBefore(before)
	for _, v := range now.VMs {
		t.line("\n%s: %s%s", v.Name, plural(len(v.Leases)+v.LeftOut, "lease"), listed(v))
		if len(v.Leases) == 0 {
			continue
		}
		width := len("CLIENT")
		for _, l := range v.Leases {
			width = max(width, len(l.Client.String()))
		}
		rates := fmt.Sprintf("  %11s", "RATE")
		if before == nil {
			rates = ""
		}
		t.line("  %-*s  %8s  %8s%s  %8s  DOING", width, "CLIENT", "AGE", "SENT", rates, "UNACKED")
		for _, l := range v.Leases {
			if before != nil {
				rate := ""
				if sent, known := earlier[keyOf(v.Name, &l)]; known && elapsed > 0 && l.SentBytes >= sent {
					rate = bytesPerSecond(float64(l.SentBytes-sent) / elapsed.Seconds())
				}
				rates = fmt.Sprintf("  %11s", rate)
			}
			t.line("  %-*s  %8s  %8s%s  %8s  %s", width, l.Client, age(l.AgeSeconds), byteCount(uint64(max(l.SentBytes, 0))), rates,
				byteCount(uint64(max(l.UnackedBytes, 0))), l.Doing)
		}
		if v.LeftOut > 0 {
			t.line("  %s left out, which sent less", count(uint64(v.LeftOut)))
		}
	}
	return t.text.String()
}

func listed(v host.VMLeases) string {
	if v.LeftOut == 0 {
		return ""
	}
	return fmt.Sprintf(", the %d that sent most", len(v.Leases))
}

// leaseKey tells a lease from the others. The same client may come again with the same port, but hardly under the same id.
type leaseKey struct {
	vm, client string
	id         uint32
}

func keyOf(vm string, l *host.LeaseStatus) leaseKey { return leaseKey{vm, l.Client.String(), l.ID} }

// sentBefore are the bytes that each lease had sent.
func sentBefore(before *host.Leases) map[leaseKey]int64 {
	sent := map[leaseKey]int64{}
	if before == nil {
		return sent
	}
	for _, v := range before.VMs {
		for i := range v.Leases {
			sent[keyOf(v.Name, &v.Leases[i])] = v.Leases[i].SentBytes
		}
	}
	return sent
}
