package tcprepair

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// TestLate: what the client says while its connection is given back is neither lost nor sent twice, however much it is and wherever it falls.
func TestLate(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			for _, tt := range []struct{ unread, late int }{{0, 0}, {0, 1}, {1, 0}, {700, 0}, {700, 1300}, {0, 40_000}} {
				st := r.extractGuest(t)
				host := r.restoreOnHost(t, &st)
				transfer(t, host, r.client, 5000)
				said := bytes.Repeat([]byte("request "), (tt.unread+tt.late)/8+1)[:tt.unread+tt.late]
				r.say(t, host.fd, said[:tt.unread], 0)
				r.handBack(t, host, st, 0, func() { r.say(t, host.fd, said[tt.unread:], tt.unread) })
				if !bytes.Equal(r.late, said) || r.fin {
					t.Fatalf("%d unread and %d late bytes: Seal told of %d, FIN %v", tt.unread, tt.late, len(r.late), r.fin)
				}
				r.bothWays(t) // the guest's socket expects the byte behind them
			}
		})
	}
}

// say lets the client say p and waits until it is queued at the host, behind before bytes.
func (r *rig) say(t *testing.T, host int, p []byte, before int) {
	t.Helper()
	if _, err := r.client.Write(p); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host's socket has what the client said", func() bool {
		n, err := unix.IoctlGetInt(host, unix.SIOCINQ)
		return err == nil && n == before+len(p)
	})
}

// TestLateWindow: a client that makes room while its connection is given back tells the host's socket, and the guest's must not wait for it to say
// so again, which it does when the guest asks, after a second.
func TestLateWindow(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	must(t, r.client.SetReadBuffer(64<<10))
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	window := func(fd int) uint32 {
		c := calls{fd: fd}
		c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
		var w tcpstate.Window
		c.window(&w)
		c.goLive()
		must(t, c.err())
		return w.SndWnd
	}
	// Bit by bit, so that all of it is acknowledged.
	sent := 0
	for open := window(host.fd); window(host.fd) > open/2; sent += 4096 {
		if _, err := host.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		drain(t, host.fd)
	}
	closed := window(host.fd)
	r.handBack(t, host, st, 0, func() {
		if _, err := io.ReadFull(r.client, make([]byte, sent)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the host's socket knows of the room", func() bool {
			c := calls{fd: host.fd}
			var w tcpstate.Window
			c.window(&w)
			return c.err() == nil && w.SndWnd > closed
		})
	})
	control(t, r.guest, func(fd int) error {
		if got := window(fd); got <= closed {
			t.Errorf("the guest's socket knows of %d bytes of room, as the client told before the handback; want more", got)
		}
		return nil
	})
	r.bothWays(t)
}

// TestLateEnd: the client closes its direction while the connection is given back. The guest's kernel never sees the FIN, and needs none to
// close in good order.
func TestLateEnd(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	r.handBack(t, host, st, 0, func() {
		r.say(t, host.fd, []byte("last words"), 0)
		must(t, r.client.CloseWrite())
		eventually(t, "the host's socket has the FIN", func() bool {
			state, err := TCPState(host.fd)
			return err == nil && state == CloseWait
		})
	})
	if string(r.late) != "last words" || !r.fin {
		t.Errorf("Seal told of %q, FIN %v", r.late, r.fin)
	}
	transfer(t, r.guest, r.client, 10_000)
	must(t, r.guest.Close())
	if n, err := r.client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %d, %v, want EOF", n, err)
	}
}

// TestLateReset: a connection that the client resets while it is given back is found dead.
func TestLateReset(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, Snapshot(host.fd, &st, st.RecvSeq, false))
	must(t, r.client.SetLinger(0))
	must(t, r.client.Close())
	eventually(t, "the host's socket has the RST", func() bool {
		state, err := TCPState(host.fd)
		return err == nil && state == Closed
	})
	_, _, err := r.holder.Seal(host.fd, &st)
	var state *StateError
	if !errors.As(err, &state) || state.State != Closed {
		t.Errorf("Seal says %v", err)
	}
}

// TestSnapshotUndone: a connection that was not taken back goes on where it is, with what came meanwhile.
func TestSnapshotUndone(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	ka := st.KeepAlive
	must(t, Snapshot(host.fd, &st, st.RecvSeq, false))
	r.say(t, host.fd, []byte("meanwhile"), 0)
	must(t, Thaw(host.fd, ka))
	got := make([]byte, len("meanwhile"))
	if _, err := io.ReadFull(host, got); err != nil || string(got) != "meanwhile" {
		t.Fatalf("read %q, %v", got, err)
	}
	transfer(t, r.client, host, 5000)
	transfer(t, host, r.client, 5000)
}

// TestSnapshotRefuses: no queue travels, so a connection with unacknowledged bytes stays.
func TestSnapshotRefuses(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, r.freezer.Freeze(host.fd)) // no acknowledgement comes in
	if _, err := host.Write([]byte("unacknowledged")); err != nil {
		t.Fatal(err)
	}
	wantError(t, Snapshot(host.fd, &st, st.RecvSeq, false), ErrUnacked, LeftLive)
}

// TestTakeInFails: more than a receive buffer holds is an error, not a hole in the stream.
func TestTakeInFails(t *testing.T) {
	r := newRig(t, lanes()[0])
	err := controlErr(t, r.guest, func(fd int) error {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
		return TakeIn(fd, make([]byte, 4<<20))
	})
	var repairError *Error
	if !errors.As(err, &repairError) || repairError.Left != LeftRepair {
		t.Errorf("TakeIn says %v", err)
	}
	if err := PeekLate(-1, make([]byte, 1)); !errors.Is(err, unix.EBADF) {
		t.Errorf("PeekLate says %v, want EBADF", err)
	}
	if _, _, err := r.holder.Seal(-1, &tcpstate.State{}); !errors.Is(err, unix.EBADF) {
		t.Errorf("Seal says %v, want EBADF", err)
	}
}
