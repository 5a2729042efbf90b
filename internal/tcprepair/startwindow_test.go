package tcprepair

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartWindow: a restored connection has the window that was set for it, in both directions of a change of hands, and only once.
func TestStartWindow(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			w, err := NewStartWindow()
			must(t, err)
			defer w.Close()
			window := func(fd int) uint32 {
				c := calls{fd: fd}
				i := c.info()
				must(t, c.err())
				return i.sndCwnd
			}
			for _, want := range []uint32{77, 10, 1200} {
				st := r.extractGuest(t)
				fd := r.transparent(t)
				if want != 10 {
					must(t, w.Set(fd, want))
				}
				must(t, Restore(fd, &st))
				if got := window(fd); got != want {
					t.Errorf("the host's socket begins with %d segments, want %d", got, want)
				}
				must(t, Snapshot(fd, &st, st.RecvSeq, false))
				control(t, r.guest, Park)
				control(t, r.guest, func(fd int) error {
					if want != 10 {
						must(t, w.Set(fd, want))
					}
					must(t, RestoreInPlace(fd, &st, st.KeepAlive))
					if got := window(fd); got != want {
						t.Errorf("the guest's socket begins with %d segments, want %d", got, want)
					}
					return nil
				})
				must(t, Park(fd))
				must(t, unix.Close(fd))
			}
			r.bothWays(t)
		})
	}
	var none *StartWindow
	must(t, none.Set(-1, 5))
	must(t, none.Close())
}
