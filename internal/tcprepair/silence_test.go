package tcprepair

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// TestThaw: the connection goes on, wherever it was stopped, and what the client sent meanwhile is not lost.
func TestThaw(t *testing.T) {
	for _, extract := range []bool{false, true} {
		for _, l := range lanes() {
			name := "frozen"
			if extract {
				name = "extracted"
			}
			t.Run(name+" "+l.name, func(t *testing.T) {
				r := newRig(t, l)
				r.net.CheckNoResets(t)
				r.bothWays(t)
				var ka tcpstate.KeepAlive
				if extract {
					ka = r.extractGuest(t).KeepAlive
				} else {
					ka = r.freeze(t, r.guest)
				}
				if !ka.Enabled {
					t.Error("Go enables the keepalive, but Freeze says that it was off")
				}
				r.client.Write([]byte("dropped first"))
				time.Sleep(time.Millisecond)
				control(t, r.guest, func(fd int) error {
					if n, err := UnreadBytes(fd); n != 0 || err != nil {
						t.Errorf("%d bytes came through the filter (%v)", n, err)
					}
					return nil
				})
				r.thaw(t, ka)
				r.thaw(t, ka) // twice is harmless
				got := make([]byte, len("dropped first"))
				must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
				if _, err := io.ReadFull(r.guest, got); err != nil || string(got) != "dropped first" {
					t.Fatalf("read %q, %v", got, err)
				}
				r.bothWays(t)
				control(t, r.guest, func(fd int) error {
					if sockopt(t, fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 1 {
						t.Error("the keepalive is still off")
					}
					return nil
				})
			})
		}
	}
}

// TestFreezeLeavesQueuedBytes: what came before can be read.
func TestFreezeLeavesQueuedBytes(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.client.Write([]byte("before"))
	r.waitUnread(t, 6)
	ka := r.freeze(t, r.guest)
	got := make([]byte, 6)
	if _, err := io.ReadFull(r.guest, got); err != nil || string(got) != "before" {
		t.Fatalf("read %q, %v", got, err)
	}
	r.thaw(t, ka)
	r.bothWays(t)
}

// wantSilence checks that the client sees neither a FIN nor a RST.
func (r *rig) wantSilence(t *testing.T) {
	t.Helper()
	must(t, r.client.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if n, err := r.client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the client read %d, %v, want silence", n, err)
	}
}

// TestSilentClose: the guest's fd goes without a segment, and the connection lives on at the host.
func TestSilentClose(t *testing.T) {
	for name, release := range map[string]func(fd int) error{
		"released":            Release,
		"parked":              Park,
		"parked and released": func(fd int) error { return errors.Join(Park(fd), Release(fd)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lanes()[0])
			r.net.CheckNoResets(t)
			st := r.extractGuest(t)
			host := r.restoreOnHost(t, &st)
			control(t, r.guest, release)
			must(t, r.guest.Close())
			r.wantSilence(t)
			transfer(t, host, r.client, 100_000)
			transfer(t, r.client, host, 1000)
		})
	}
}

// TestReleaseLive: a connection that was never frozen can be let go silently, with bytes still in both queues.
func TestReleaseLive(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	r.client.Write([]byte("unread"))
	r.waitUnread(t, 6)
	control(t, r.guest, Release)
	must(t, r.guest.Close())
	r.wantSilence(t)
	// The guest has no socket now, and would answer the client's FIN with a RST: so end the client silently, too.
	control(t, r.client, Release)
}

func TestAbort(t *testing.T) {
	for name, prepare := range map[string]func(*rig, *testing.T){
		"live": func(*rig, *testing.T) {},
		"frozen": func(r *rig, t *testing.T) {
			r.freeze(t, r.guest)
		},
		"extracted": func(r *rig, t *testing.T) {
			r.extractGuest(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lanes()[0])
			r.bothWays(t)
			prepare(r, t)
			before := r.net.Guest.TCPCounter(t, "OutRsts")
			control(t, r.guest, Abort)
			must(t, r.guest.Close())
			must(t, r.client.SetReadDeadline(time.Now().Add(patience)))
			if _, err := r.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client's read says %v, want ECONNRESET", err)
			}
			if sent := r.net.Guest.TCPCounter(t, "OutRsts") - before; sent != 1 {
				t.Errorf("the guest sent %d RST, want 1", sent)
			}
		})
	}
}

// TestPark: TCP_CLOSE, without an error for the next reader.
func TestPark(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	st := r.extractGuest(t)
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error {
		if s, err := TCPState(fd); s != Closed || err != nil {
			t.Errorf("the parked socket is %v, %v, want %v", s, err, Closed)
		}
		if e := sockopt(t, fd, unix.SOL_SOCKET, unix.SO_ERROR); e != 0 {
			t.Errorf("SO_ERROR is %v", syscall.Errno(e))
		}
		return RestoreInPlace(fd, &st, st.KeepAlive)
	})
	r.bothWays(t)
}

// TestRestoreFails: with a state that the kernel refuses, nothing leaves, and a parked socket can be tried again.
func TestRestoreFails(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			good := r.extractGuest(t)
			control(t, r.guest, Park)
			for name, tt := range map[string]struct {
				spoil func(*tcpstate.State)
				want  error
			}{
				"invalid state":             {func(st *tcpstate.State) { st.MSS = 0 }, tcpstate.ErrInvalid},
				"window before the bytes":   {func(st *tcpstate.State) { st.Window.RcvWup = st.RecvSeq + 1 }, unix.EINVAL},
				"update beyond the window":  {func(st *tcpstate.State) { st.Window.SndWl1 = st.RecvSeq + st.Window.RcvWnd + 1 }, unix.EINVAL},
				"update beyond, second try": {func(st *tcpstate.State) { st.Window.SndWl1 = st.RecvSeq + st.Window.RcvWnd + 1 }, unix.EINVAL},
			} {
				st := good
				tt.spoil(&st)
				fd := r.transparent(t)
				wantError(t, Restore(fd, &st), tt.want, LeftRepair)
				must(t, unix.Close(fd))
				err := controlErr(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) })
				wantError(t, err, tt.want, LeftParked)
				t.Log(name, err)
			}
			r.wantSilence(t)
			control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &good, good.KeepAlive) })
			r.bothWays(t)
		})
	}
}

// TestRestoreElsewhere: a socket that is bound cannot become another address's connection.
func TestRestoreElsewhere(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) }) // from now on it is bound
	st = r.extractGuest(t)
	control(t, r.guest, Park)
	other := st
	other.Local = netip.AddrPortFrom(st.Local.Addr(), st.Local.Port()^1)
	err := controlErr(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &other, st.KeepAlive) })
	wantError(t, err, unix.EINVAL, LeftParked)
	other = st
	other.Local = netip.AddrPortFrom(netip.MustParseAddr("fd77::2"), st.Local.Port())
	other.Remote = netip.AddrPortFrom(netip.MustParseAddr("fd78::2"), st.Remote.Port())
	err = controlErr(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &other, st.KeepAlive) })
	wantError(t, err, unix.EAFNOSUPPORT, LeftParked)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) })
	r.bothWays(t)
}

// TestProbe: a connection that nobody has any more is reset, long before the client's own keepalive (15 s) finds out; one that the other
// side has goes on.
func TestProbe(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			t.Run("nobody has it", func(t *testing.T) {
				r := newRig(t, l)
				st := r.extractGuest(t)
				host := r.restoreOnHost(t, &st)
				transfer(t, host, r.client, 100_000) // so the guest's sequence number lies far behind
				drain(t, host.fd)
				must(t, Release(host.fd))
				must(t, host.Close())
				control(t, r.guest, Release)
				must(t, r.guest.Close())
				r.net.Guest.Must(t, func() error { return Probe(&st) })
				must(t, r.client.SetKeepAlive(false))
				must(t, r.client.SetReadDeadline(time.Now().Add(patience)))
				if _, err := r.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client's read says %v, want ECONNRESET", err)
				}
			})
			t.Run("the host has it", func(t *testing.T) {
				r := newRig(t, l)
				r.net.CheckNoResets(t)
				st := r.extractGuest(t)
				host := r.restoreOnHost(t, &st)
				transfer(t, host, r.client, 100_000)
				control(t, r.guest, Release)
				must(t, r.guest.Close())
				r.net.Guest.Must(t, func() error { return Probe(&st) })
				transfer(t, host, r.client, 100_000)
				transfer(t, r.client, host, 100_000)
			})
		})
	}
}
