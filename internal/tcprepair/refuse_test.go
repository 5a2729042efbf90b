package tcprepair

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// tryExtract freezes and extracts the guest's connection as it is, without waiting for anything.
func (r *rig) tryExtract(t *testing.T) (tcpstate.KeepAlive, error) {
	t.Helper()
	var st tcpstate.State
	err := controlErr(t, r.guest, func(fd int) error {
		if err := ReadOptions(fd, &st); err != nil {
			return err
		}
		if err := r.freezer.Freeze(fd); err != nil {
			return err
		}
		return Extract(fd, &st)
	})
	return st.KeepAlive, err
}

func (r *rig) thaw(t *testing.T, ka tcpstate.KeepAlive) {
	t.Helper()
	control(t, r.guest, func(fd int) error { return Thaw(fd, ka) })
}

func TestRefuseUnread(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	if _, err := r.client.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	r.waitUnread(t, 7)
	ka, err := r.tryExtract(t)
	wantError(t, err, ErrUnread, LeftRepair)
	r.thaw(t, ka)
	if _, err := io.ReadFull(r.guest, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	r.bothWays(t)
}

func (r *rig) waitUnread(t *testing.T, want int) {
	t.Helper()
	eventually(t, "the bytes reach the guest", func() bool {
		var n int
		control(t, r.guest, func(fd int) (err error) { n, err = UnreadBytes(fd); return err })
		return n == want
	})
}

// TestRefuseOutOfOrder: bytes that wait for a lost segment are not in the receive queue, and must not be lost either.
func TestRefuseOutOfOrder(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	for range 20 {
		ka := r.freeze(t, r.guest)
		r.client.Write([]byte("lost"))
		r.thaw(t, ka)
		// The client must not hear that the second segment arrived, or it would at once send the first one again.
		clientKA := r.freeze(t, r.client)
		r.client.Write([]byte("early"))
		ka, err := r.tryExtract(t)
		var unread int
		control(t, r.guest, func(fd int) (err error) { unread, err = UnreadBytes(fd); return err })
		r.thaw(t, ka)
		control(t, r.client, func(fd int) error { return Thaw(fd, clientKA) })
		if _, err := io.ReadFull(r.guest, make([]byte, len("lostearly"))); err != nil {
			t.Fatal(err)
		}
		r.bothWays(t)
		if unread == 0 {
			wantError(t, err, ErrUnread, LeftRepair)
			return
		}
		// The client's timer was faster: the segment was there again. Try once more.
	}
	t.Error("no segment stayed out of order in 20 attempts")
}

func TestRefuseUnacked(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	t.Run("unacknowledged", func(t *testing.T) {
		// Frozen, so that no acknowledgement comes in.
		ka := r.freeze(t, r.guest)
		r.guest.Write([]byte("response"))
		_, err := r.tryExtract(t)
		wantError(t, err, ErrUnacked, LeftFrozen)
		control(t, r.guest, func(fd int) error {
			if n, err := UnackedBytes(fd); n != 8 || err != nil {
				t.Errorf("UnackedBytes is %d, %v, want 8", n, err)
			}
			return nil
		})
		r.thaw(t, ka)
		if _, err := io.ReadFull(r.client, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("unsent", func(t *testing.T) {
		control(t, r.guest, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
		r.guest.Write([]byte("response"))
		ka, err := r.tryExtract(t)
		wantError(t, err, ErrUnacked, LeftFrozen)
		r.thaw(t, ka)
		control(t, r.guest, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_CORK, 0) })
		if _, err := io.ReadFull(r.client, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	})
	r.bothWays(t)
}

func TestRefuseNotEstablished(t *testing.T) {
	t.Run("peer sent FIN", func(t *testing.T) {
		r := newRig(t, lanes()[0])
		r.net.CheckNoResets(t)
		must(t, r.client.CloseWrite())
		r.waitState(t, CloseWait)
		ka, err := r.tryExtract(t)
		wantNotEstablished(t, err, CloseWait)
		r.thaw(t, ka)
		transfer(t, r.guest, r.client, 1000) // half-closed: the response still goes out
		must(t, r.guest.Close())
		if n, err := r.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d, %v, want EOF", n, err)
		}
	})
	t.Run("peer sent RST", func(t *testing.T) {
		r := newRig(t, lanes()[0])
		must(t, r.client.SetLinger(0))
		must(t, r.client.Close())
		r.waitState(t, Closed)
		_, err := r.tryExtract(t)
		wantNotEstablished(t, err, Closed)
	})
	t.Run("listener", func(t *testing.T) {
		r := newRig(t, lanes()[0])
		raw, err := r.listener.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			var st tcpstate.State
			wantNotEstablished(t, Extract(int(fd), &st), ConnState(10))
		}))
	})
}

func (r *rig) waitState(t *testing.T, want ConnState) {
	t.Helper()
	eventually(t, "the guest's socket is "+want.String(), func() bool {
		var s ConnState
		control(t, r.guest, func(fd int) (err error) { s, err = TCPState(fd); return err })
		return s == want
	})
}

func wantNotEstablished(t *testing.T, err error, state ConnState) {
	t.Helper()
	wantError(t, err, ErrNotEstablished, LeftFrozen)
	var s *StateError
	if !errors.As(err, &s) || s.State != state {
		t.Fatalf("error is %v, want state %v in it", err, state)
	}
}

func TestRefuseMPTCP(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	for _, client := range []bool{true, false} {
		var ln net.Listener
		var conn net.Conn
		r.net.Guest.Must(t, func() (err error) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(true)
			ln, err = lc.Listen(context.Background(), "tcp4", r.local.Addr().String()+":0")
			return err
		})
		t.Cleanup(func() { ln.Close() })
		r.net.Client.Must(t, func() (err error) {
			var d net.Dialer
			d.SetMultipathTCP(client)
			conn, err = d.DialContext(context.Background(), "tcp4", ln.Addr().String())
			return err
		})
		t.Cleanup(func() { conn.Close() })
		r.client = conn.(*net.TCPConn)
		r.guest = accept(t, ln.(*net.TCPListener))
		if is, err := r.guest.MultipathTCP(); is != client || err != nil {
			t.Fatalf("MultipathTCP is %v, %v, want %v", is, err, client)
		}
		r.remote = unmapped(t, r.guest.RemoteAddr())
		ka, err := r.tryExtract(t)
		if client {
			wantError(t, err, ErrNotPlainTCP, LeftLive)
			wantError(t, controlErr(t, r.guest, r.freezer.Freeze), ErrNotPlainTCP, LeftLive)
		} else {
			must(t, err) // a plain client of an MPTCP listener has a plain connection
			r.thaw(t, ka)
		}
		r.bothWays(t)
	}
}

func TestRefuseOtherSockets(t *testing.T) {
	f := newFreezer(t)
	for name, kind := range map[string][3]int{
		"UDP":  {unix.AF_INET, unix.SOCK_DGRAM, 0},
		"unix": {unix.AF_UNIX, unix.SOCK_STREAM, 0},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Socket(kind[0], kind[1]|unix.SOCK_CLOEXEC, kind[2])
			must(t, err)
			defer unix.Close(fd)
			must(t, f.Freeze(fd))
			var st tcpstate.State
			wantError(t, ReadOptions(fd, &st), ErrNotPlainTCP, LeftLive)
			wantError(t, Extract(fd, &st), ErrNotPlainTCP, LeftFrozen)
		})
	}
	t.Run("unconnected", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		var st tcpstate.State
		wantNotEstablished(t, Extract(fd, &st), Closed)
	})
	t.Run("no socket", func(t *testing.T) {
		wantError(t, f.Freeze(-1), unix.EBADF, LeftLive)
		wantError(t, ReadOptions(-1, &tcpstate.State{}), unix.EBADF, LeftLive)
		if _, err := UnackedBytes(-1); !errors.Is(err, unix.EBADF) {
			t.Errorf("UnackedBytes says %v, want EBADF", err)
		}
	})
}

// TestRefuseShrunkenWindow makes such a connection by restoring one with a closed window.
func TestRefuseShrunkenWindow(t *testing.T) {
	r := newRig(t, lanes()[0])
	for _, retracted := range []uint32{0, 100} {
		st := r.extractGuest(t)
		open := st.Window
		st.Window.RcvWnd, st.Window.RcvWup = 0, st.RecvSeq-retracted
		st.Window.SndWl1 = st.RecvSeq - retracted - 1
		host := r.restoreOnHost(t, &st)
		must(t, r.freezer.Freeze(host.fd))
		var again tcpstate.State
		wantError(t, Extract(host.fd, &again), ErrWindowShrunk, LeftRepair)
		must(t, Release(host.fd))
		must(t, host.Close())
		st.Window = open
		r.thaw(t, st.KeepAlive) // the guest's own is as it was
		r.bothWays(t)
	}
}

// TestRefuseClosedPeerWindow: likewise, with a peer that has no room for a segment.
func TestRefuseClosedPeerWindow(t *testing.T) {
	r := newRig(t, lanes()[0])
	for room, want := range map[uint32]error{0: ErrPeerWindow, 87: ErrPeerWindow, 20_000: nil} {
		st := r.extractGuest(t)
		mine := st
		st.Window.SndWnd = room
		host := r.restoreOnHost(t, &st)
		must(t, r.freezer.Freeze(host.fd))
		var again tcpstate.State
		if err := Extract(host.fd, &again); !errors.Is(err, want) {
			t.Errorf("with room for %d bytes, Extract says %v, want %v", room, err, want)
		}
		must(t, Release(host.fd))
		must(t, host.Close())
		r.thaw(t, mine.KeepAlive)
	}
}

// TestConfirm: a segment that comes in after Extract, as if it had passed the filter before.
func TestConfirm(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	control(t, r.guest, func(fd int) error {
		must(t, Confirm(fd, &st))
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
	r.client.Write([]byte("late"))
	r.waitUnread(t, 4)
	wantError(t, controlErr(t, r.guest, func(fd int) error { return Confirm(fd, &st) }), ErrUnread, LeftRepair)
	r.thaw(t, st.KeepAlive)
	if _, err := io.ReadFull(r.guest, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	r.bothWays(t)
}

// TestWithoutCapability: the error says what is missing, and the connection can be thawed.
func TestWithoutCapability(t *testing.T) {
	r := newRig(t, lanes()[0])
	ka := r.freeze(t, r.guest)
	err := controlErr(t, r.guest, func(fd int) error {
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread, which has no capabilities from here on, ends
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&head, &none[0]); err != nil {
				result <- err
				return
			}
			var st tcpstate.State
			result <- Extract(fd, &st)
		}()
		return <-result
	})
	wantError(t, err, unix.EPERM, LeftFrozen)
	if want := "setsockopt TCP_REPAIR: operation not permitted (CAP_NET_ADMIN is needed)"; !strings.Contains(err.Error(), want) {
		t.Errorf("error is %q, want %q in it", err, want)
	}
	r.thaw(t, ka)
	r.bothWays(t)
}
