package tcprepair

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// BenchmarkHandover measures the steps of one handover and handback of an idle connection, in namespaces: the median of each
// in µs. Freeze and extract, restore, park and restore in place are those of docs/handover.md.
func BenchmarkHandover(b *testing.B) {
	for _, l := range lanes() {
		b.Run(l.name, func(b *testing.B) {
			r := newRig(b, l)
			r.bothWays(b)
			raw, err := r.guest.SyscallConn()
			must(b, err)
			must(b, raw.Control(func(fd uintptr) { drain(b, int(fd)) }))
			steps := []string{"read-options", "freeze", "extract", "restore", "park", "restore-in-place", "release+close"}
			took := make([][]time.Duration, len(steps))
			b.ReportAllocs()
			r.net.Host.Must(b, func() error { // for NewTransparent
				var err error
				ctrlErr := raw.Control(func(guest uintptr) {
					for b.Loop() {
						if err = r.benchRound(b, int(guest), took); err != nil {
							return
						}
					}
				})
				must(b, ctrlErr)
				return err
			})
			for i, s := range steps {
				slices.Sort(took[i])
				b.ReportMetric(float64(took[i][len(took[i])/2].Nanoseconds())/1000, s+"-µs")
			}
			r.bothWays(b)
		})
	}
}

// benchRound hands the connection over and back once, and appends the time of each step to took.
func (r *rig) benchRound(b *testing.B, guest int, took [][]time.Duration) error {
	b.StopTimer()
	host, err := r.freezer.NewTransparent(r.family)
	if err != nil {
		return err
	}
	st := tcpstate.State{Local: r.local, Remote: r.remote, Congestion: "bbr"}
	b.StartTimer()
	for i, step := range []func() error{
		func() error { return ReadOptions(guest, &st) },
		func() error { return r.freezer.Freeze(guest) },
		func() error { return Extract(guest, &st) },
		func() error { return Restore(host, &st) },
		func() error { return Park(guest) },
		func() error { return RestoreInPlace(guest, &st, st.KeepAlive) },
		func() error {
			if err := Release(host); err != nil {
				return err
			}
			return unix.Close(host)
		},
	} {
		start := time.Now()
		err := step()
		took[i] = append(took[i], time.Since(start))
		if err != nil {
			return err
		}
	}
	return nil
}
