package tcprepair

import (
	"io"
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
				must(t, Snapshot(fd, &st, st.RecvSeq, st.SendSeq, false, false))
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

// TestStartWindowDoesNotCreep: short responses leave the window as it is, however often the connection changes hands, also with a congestion control that adds
// to it what is acknowledged.
func TestStartWindowDoesNotCreep(t *testing.T) {
	use := func(fd int, name string) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}
	for _, name := range []string{"reno", "cubic", "bbr"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lanes()[0])
			w, err := NewStartWindow()
			must(t, err)
			defer w.Close()
			if err := controlErr(t, r.guest, func(fd int) error { return use(fd, name) }); err == unix.ENOENT {
				t.Skip("this kernel has no congestion control ", name)
			} else {
				must(t, err)
			}
			st := tcpstate.State{Local: r.local, Remote: r.remote}
			for range 10 {
				began := st.Cwnd
				st = r.extractGuest(t)
				if began != 0 && st.Cwnd > began {
					t.Errorf("the guest's window grew from %d to %d segments", began, st.Cwnd)
				}
				st.Cwnd = max(st.Cwnd, initialWindow)
				fd := r.transparent(t)
				must(t, w.Set(fd, &st))
				must(t, Restore(fd, &st))
				must(t, use(fd, name))
				began = st.Cwnd
				say := make([]byte, 4096)
				if _, err := unix.Write(fd, say); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(r.client, say); err != nil {
					t.Fatal(err)
				}
				drain(t, fd)
				must(t, Snapshot(fd, &st, st.RecvSeq, st.SendSeq+uint32(len(say)), false, false))
				if st.Cwnd > began {
					t.Errorf("the host's window grew from %d to %d segments", began, st.Cwnd)
				}
				takeBack(t, r, w, &st)
				must(t, Park(fd))
				must(t, unix.Close(fd))
			}
			r.bothWays(t)
		})
	}
}

// takeBack takes the connection back.
func takeBack(t *testing.T, r *rig, w *StartWindow, st *tcpstate.State) {
	t.Helper()
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error {
		must(t, w.Set(fd, st))
		return RestoreInPlace(fd, st, st.KeepAlive)
	})
}
