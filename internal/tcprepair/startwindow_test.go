package tcprepair

import (
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// TestStartWindow: a restored connection has the window and the threshold that were set for it, in both directions of a change of hands, and only once.
func TestStartWindow(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			w, err := NewStartWindow()
			must(t, err)
			defer w.Close()
			control(t, r.guest, func(fd int) error {
				return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic") // BBR has no threshold
			})
			const none = 0x7fffffff // TCP_INFINITE_SSTHRESH
			for _, c := range []struct{ segments, threshold, want, wantThreshold uint32 }{
				{77, 0, 77, none}, {0, 0, 10, none}, {1200, 0, 1200, none}, {100, 300, 100, 300}, {0, 0, 10, none}, {300, 200, 300, 300 + growth},
				{77, 0, 77, none},
			} {
				check := func(whose string, fd int) {
					calls := calls{fd: fd}
					i := calls.info()
					must(t, calls.err())
					if i.sndCwnd != c.want || i.sndSsthresh != c.wantThreshold {
						t.Errorf("%+v: the %s's socket begins with %d segments and a threshold of %d", c, whose, i.sndCwnd, i.sndSsthresh)
					}
				}
				st := r.extractGuest(t)
				fd := r.transparent(t)
				set := func(fd int) {
					st.Cwnd, st.Ssthresh, st.Congestion = c.segments, c.threshold, "cubic"
					must(t, w.Set(fd, &st))
				}
				set(fd)
				must(t, Restore(fd, &st))
				check("host", fd)
				must(t, Snapshot(fd, &st, st.RecvSeq, false))
				wantRead := c.wantThreshold
				if wantRead == none {
					wantRead = 0
				}
				if st.Cwnd != c.want || st.Ssthresh != wantRead {
					t.Errorf("%+v: the snapshot has %d segments and a threshold of %d", c, st.Cwnd, st.Ssthresh)
				}
				control(t, r.guest, Park)
				control(t, r.guest, func(fd int) error {
					set(fd)
					must(t, RestoreInPlace(fd, &st, st.KeepAlive))
					check("guest", fd)
					return nil
				})
				must(t, Park(fd))
				must(t, unix.Close(fd))
			}
			r.bothWays(t)
		})
	}
	for name, want := range map[string]uint32{"": 50, "reno": 50, "bbr": 0, "bbr2": 0} {
		if got := windowLimit(&tcpstate.State{Cwnd: 10, Ssthresh: 50, Congestion: name}); got != want {
			t.Errorf("congestion control %q: the window is limited to %d", name, got)
		}
	}
	var none *StartWindow
	must(t, none.Set(-1, &tcpstate.State{Cwnd: 5}))
	must(t, none.Close())
}
