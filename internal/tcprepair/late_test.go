package tcprepair

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

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

// TestLateAcknowledged: the host's socket acknowledges what the client says after the snapshot, by its own clock. What the guest sends then, whose clock was set by
// the snapshot, must not be older for the client, which would drop it.
func TestLateAcknowledged(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	transfer(t, host, r.client, 5000)
	drain(t, host.fd)
	must(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, false, false))
	time.Sleep(100 * time.Millisecond) // the guest is slow
	r.say(t, host.fd, []byte("request"), 0)
	control(t, r.client, func(fd int) error { drain(t, fd); return nil })
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) })
	late, _, err := r.holder.Seal(host.fd, &st)
	must(t, err)
	p := make([]byte, late)
	must(t, ReadLate(host.fd, p))
	must(t, Park(host.fd))
	must(t, host.Close())
	control(t, r.guest, func(fd int) error { return r.freezer.TakeIn(fd, st.RecvSeq, p) })
	r.bothWays(t)
	if n := r.net.Client.TCPCounter(t, "PAWSEstab"); n != 0 {
		t.Errorf("the client has dropped %d segments of the guest's as old", n)
	}
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
	must(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, false, false))
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
	must(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, false, false))
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
	wantError(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, false, false), ErrUnacked, LeftLive)
}

// TestLateUpload: a client that sends on and on, until the host's receive buffer is full, while its connection is given back. What it was told of the
// host's window must not keep it from sending on to the guest, whose window it has not heard of.
func TestLateUpload(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			transfer(t, r.client, r.guest, 4<<20) // the guest's receive buffer grows, the host's begins anew
			st := r.extractGuest(t)
			host := r.restoreOnHost(t, &st)
			said := make([]byte, 2<<20)
			for i := range said {
				said[i] = byte(i / 1000)
			}
			written := make(chan error, 1)
			meanwhile := func() {
				go func() {
					_, err := r.client.Write(said)
					written <- err
				}()
				for before, now := -1, 0; now == 0 || now != before; time.Sleep(50 * time.Millisecond) {
					before = now
					now, _ = unix.IoctlGetInt(host.fd, unix.SIOCINQ)
				}
			}
			r.handBack(t, host, st, 0, meanwhile)
			must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
			rest := make([]byte, len(said)-len(r.late))
			if n, err := io.ReadFull(r.guest, rest); err != nil {
				t.Fatalf("%d bytes were late, then the guest reads %d of %d: %v", len(r.late), n, len(rest), err)
			}
			if !bytes.Equal(append(r.late, rest...), said) {
				t.Error("the guest has other bytes than the client sent")
			}
			must(t, <-written)
			r.bothWays(t)
		})
	}
}

// TestLateUrgent: a byte that the client sends as urgent is one among the others, whoever has the connection.
func TestLateUrgent(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			st := r.extractGuest(t)
			host := r.restoreOnHost(t, &st)
			r.handBack(t, host, st, 0, func() {
				r.say(t, host.fd, []byte("before"), 0)
				control(t, r.client, func(fd int) error { return unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil) })
				eventually(t, "the urgent byte has come", func() bool {
					n, _ := unix.IoctlGetInt(host.fd, unix.SIOCOUTQ)
					return n == 0 && recvNext(t, host.fd) == st.RecvSeq+7
				})
				if _, err := r.client.Write([]byte("behind")); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the rest has come", func() bool { return recvNext(t, host.fd) == st.RecvSeq+13 })
			})
			if string(r.late) != "before!behind" {
				t.Errorf("late is %q", r.late)
			}
			r.bothWays(t)
		})
	}
}

// recvNext is the receive sequence of a socket in repair mode.
func recvNext(t *testing.T, fd int) uint32 {
	t.Helper()
	c := calls{fd: fd}
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
	seq := c.getTCP(unix.TCP_QUEUE_SEQ)
	must(t, c.err())
	return seq
}

// TestLateBehind: what the client says to the guest's socket before that has what was late waits for it, and comes behind it.
func TestLateBehind(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			st := r.extractGuest(t)
			host := r.restoreOnHost(t, &st)
			behind := bytes.Repeat([]byte("behind "), 1000)
			r.beyond = func() {
				for _, part := range [][]byte{behind[:3000], behind[3000:]} { // in segments of their own
					before := memory(t, r.guest)
					if _, err := r.client.Write(part); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the guest's socket has it out of order", func() bool { return memory(t, r.guest) > before })
				}
			}
			r.handBack(t, host, st, 0, func() { r.say(t, host.fd, []byte("late"), 0) })
			must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
			got := make([]byte, len(behind))
			if n, err := io.ReadFull(r.guest, got); err != nil || !bytes.Equal(got, behind) || string(r.late) != "late" {
				t.Fatalf("behind %q the guest reads %d of %d bytes, %v", r.late, n, len(behind), err)
			}
			r.bothWays(t)
		})
	}
}

// memory is what the receive queues of a socket hold, out of order or not. Bytes of the kernel's.
func memory(t *testing.T, conn *net.TCPConn) (n int) {
	t.Helper()
	control(t, conn, func(fd int) (err error) {
		n, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO) // its first number is SK_MEMINFO_RMEM_ALLOC
		return err
	})
	return n
}

// TestTakeInTwice: what the client has said to the socket before, and then, as it was not acknowledged in time, again to this one, is there once.
func TestTakeInTwice(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	for _, late := range []int{0, 1, 5, 9, 10} {
		seq := uint32(0)
		control(t, r.guest, func(fd int) error {
			seq = recvSeq(t, fd)
			r.say(t, fd, []byte("0123456789"), 0)
			return r.freezer.TakeIn(fd, seq, []byte("0123456789")[:late])
		})
		must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
		got := make([]byte, 10-late)
		if n, err := io.ReadFull(r.guest, got); err != nil || string(got) != "0123456789"[late:] {
			t.Fatalf("behind %d late bytes the guest reads %q, %v", late, got[:n], err)
		}
		r.bothWays(t)
	}
}

// recvSeq is the receive sequence of a live socket.
func recvSeq(t *testing.T, fd int) uint32 {
	t.Helper()
	c := calls{fd: fd}
	c.setTCP(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	c.setTCP(unix.TCP_REPAIR_QUEUE, recvQueue)
	seq := c.getTCP(unix.TCP_QUEUE_SEQ)
	c.goLive()
	must(t, c.err())
	return seq
}

// TestTakeInFails: more than a receive buffer holds is an error, not a hole in the stream.
func TestTakeInFails(t *testing.T) {
	r := newRig(t, lanes()[0])
	err := controlErr(t, r.guest, func(fd int) error {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
		return r.freezer.TakeIn(fd, recvSeq(t, fd), make([]byte, 4<<20))
	})
	var repairError *Error
	if !errors.As(err, &repairError) || repairError.Left != LeftRepair {
		t.Errorf("TakeIn says %v", err)
	}
	if err := ReadLate(-1, make([]byte, 1)); !errors.Is(err, unix.EBADF) {
		t.Errorf("ReadLate says %v, want EBADF", err)
	}
	if _, _, err := r.holder.Seal(-1, &tcpstate.State{}); !errors.Is(err, unix.EBADF) {
		t.Errorf("Seal says %v, want EBADF", err)
	}
}

// TestRestoreHeld: a connection that goes from one host's socket to another one's. What the client has said to the first, and its FIN, come to the second one's reader, and nothing
// is heard of the second one before Thaw.
func TestRestoreHeld(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("closes: %v", closes), func(t *testing.T) {
			r := newRig(t, lanes()[0])
			r.net.CheckNoResets(t)
			st := r.extractGuest(t)
			ka := st.KeepAlive
			first := r.restoreOnHost(t, &st)
			if closes {
				must(t, r.client.CloseWrite())
				eventually(t, "the host's socket has the FIN", func() bool {
					state, err := TCPState(first.fd)
					return err == nil && state == CloseWait
				})
			}
			must(t, Snapshot(first.fd, &st, st.RecvSeq, first.end, false, true))
			if !closes {
				r.say(t, first.fd, []byte("late"), 0)
			}
			late, fin, err := r.holder.Seal(first.fd, &st)
			must(t, err)
			if fin != closes {
				t.Errorf("Seal told of FIN %v", fin)
			}
			said := make([]byte, late)
			must(t, ReadLate(first.fd, said))
			must(t, Park(first.fd)) // both are in one namespace here
			must(t, first.Close())
			if fin {
				st.RecvSeq++
			}
			fd := r.transparent(t)
			second := &leased{os.NewFile(uintptr(fd), "leased connection"), fd, st.SendSeq}
			t.Cleanup(func() { second.Close() })
			must(t, RestoreHeld(fd, &st, said))
			must(t, Thaw(fd, ka))
			got := make([]byte, late)
			if _, err := io.ReadFull(second, got); err != nil || string(got) != "late"[:late] {
				t.Errorf("read %q, %v", got, err)
			}
			transfer(t, second, r.client, 10_000)
			if !closes {
				transfer(t, r.client, second, 10_000)
			}
		})
	}
}
