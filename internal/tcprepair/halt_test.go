package tcprepair

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

const haltRounds = 10

// TestHalt gives a connection back in the middle of a transfer, with megabytes in the host's send queue, at a point that the test does not choose,
// many times: the guest goes on at the byte that the snapshot tells, and the client gets the stream whole.
func TestHalt(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			h := newHalter(t)
			for range haltRounds {
				r.haltOnce(t, h)
			}
		})
	}
}

func newHalter(t *testing.T) *Halter {
	t.Helper()
	h, err := NewHalter()
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

// noise is a stream of random bytes.
func noise(size int) []byte {
	var seed [32]byte
	binary.NativeEndian.PutUint64(seed[:], rand.Uint64())
	p := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(p) // it never fails
	return p
}

func (r *rig) haltOnce(t *testing.T, h *Halter) {
	t.Helper()
	stream := noise(24 << 20)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	start, ka := st.SendSeq, st.KeepAlive
	got := r.clientGets(t, len(stream))
	must(t, host.SetWriteDeadline(time.Now().Add(time.Duration(rand.IntN(4000))*time.Microsecond)))
	queued, _ := host.Write(stream) // until the deadline, most likely

	must(t, h.Halt(host.fd, host.end))
	r.settle(t, host)
	must(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, true, false))
	sent := int(st.SendSeq - start)
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, ka) })
	late, _, err := r.holder.Seal(host.fd, &st)
	if err != nil || late != 0 {
		t.Fatalf("Seal tells of %d bytes, %v", late, err)
	}
	must(t, Park(host.fd))
	h.Resume(host.fd)
	must(t, host.Close())

	must(t, r.guest.SetWriteDeadline(time.Now().Add(patience)))
	if n, err := r.guest.Write(stream[sent:]); err != nil {
		t.Fatalf("%d bytes were written on the host, %d sent there, the guest wrote %d: %v", queued, sent, n, err)
	}
	if p := <-got; !bytes.Equal(p, stream) {
		t.Fatalf("the client's stream is wrong; %d bytes were written on the host, %d sent there", queued, sent)
	}
	t.Logf("%d bytes were written on the host, %d sent there", queued, sent)
}

// clientGets reads n bytes at the client.
func (r *rig) clientGets(t *testing.T, n int) <-chan []byte {
	t.Helper()
	must(t, r.client.SetReadDeadline(time.Now().Add(patience)))
	got := make(chan []byte, 1)
	go func() {
		p := make([]byte, n)
		n, err := io.ReadFull(r.client, p)
		if err != nil {
			t.Errorf("the client has %d of %d bytes: %v", n, len(p), err)
		}
		got <- p[:n]
	}()
	return got
}

// settle waits until nothing is under way.
func (r *rig) settle(t *testing.T, host *leased) {
	t.Helper()
	eventually(t, "what was on the wire is acknowledged", func() bool {
		unacked, err1 := UnackedBytes(host.fd)
		unsent, err2 := UnsentBytes(host.fd)
		return err1 == nil && err2 == nil && unacked == unsent
	})
}

// TestHaltUndone: a connection that was not taken back goes on, and nothing of its send queue is lost. The program goes with the last halted socket.
func TestHaltUndone(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	h := newHalter(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	stream := noise(8 << 20)
	got := r.clientGets(t, len(stream))
	written := 0
	for range 5 {
		must(t, host.SetWriteDeadline(time.Now().Add(time.Duration(rand.IntN(2000))*time.Microsecond)))
		n, _ := host.Write(stream[written:])
		written += n
		must(t, h.Halt(host.fd, host.end))
		r.settle(t, host)
		again := st
		must(t, Snapshot(host.fd, &again, st.RecvSeq, host.end, true, false))
		must(t, Thaw(host.fd, st.KeepAlive))
		h.Resume(host.fd)
		if h.attached != nil {
			t.Error("the program is still attached")
		}
	}
	must(t, host.SetWriteDeadline(time.Now().Add(patience)))
	if _, err := host.Write(stream[written:]); err != nil {
		t.Fatal(err)
	}
	if p := <-got; !bytes.Equal(p, stream) {
		t.Fatal("the client's stream is wrong")
	}
}

// TestHaltLasts: however long it takes, no timer makes a halted socket send, and what it has sent is still acknowledged and sent again where it was lost.
func TestHaltLasts(t *testing.T) {
	r := newRig(t, lanes()[0])
	h := newHalter(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, host.SetWriteDeadline(time.Now().Add(time.Millisecond)))
	stream := noise(8 << 20)
	queued, _ := host.Write(stream)
	must(t, h.Halt(host.fd, host.end))
	unsent, err := UnsentBytes(host.fd)
	must(t, err)
	time.Sleep(1500 * time.Millisecond) // several timers of loss probe, retransmission and window probe
	if now, err := UnsentBytes(host.fd); err != nil || now != unsent {
		t.Errorf("%d bytes were unsent, now it is %d, %v", unsent, now, err)
	}
	h.Resume(host.fd)
	if p := <-r.clientGets(t, queued); !bytes.Equal(p, stream[:queued]) {
		t.Error("the client's stream is wrong")
	}
}

// TestSnapshotHaltedRefuses: bytes that are under way must be acknowledged first.
func TestSnapshotHaltedRefuses(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, r.freezer.Freeze(host.fd)) // no acknowledgement comes in
	if _, err := host.Write([]byte("unacknowledged")); err != nil {
		t.Fatal(err)
	}
	h := newHalter(t)
	must(t, h.Halt(host.fd, host.end))
	var again tcpstate.State
	wantError(t, Snapshot(host.fd, &again, st.RecvSeq, host.end, true, false), ErrUnacked, LeftLive)
	h.Resume(host.fd)

	var none *Halter
	if err := none.Halt(host.fd, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no Halter: %v", err)
	}
}

// TestSnapshotHaltedHears: each segment of the peer makes the kernel look at the send queue, also during a snapshot, and none of it may then be taken for sent.
func TestSnapshotHaltedHears(t *testing.T) {
	r := newRig(t, lanes()[0])
	h := newHalter(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, h.Halt(host.fd, host.end)) // as if the window had been closed before
	stream := noise(20_000)
	if _, err := host.Write(stream); err != nil {
		t.Fatal(err)
	}
	stop := r.clientAcknowledges(t, &st)
	for range 2000 {
		again := st
		must(t, Snapshot(host.fd, &again, st.RecvSeq, host.end, true, false))
		unsent, err := UnsentBytes(host.fd)
		must(t, err)
		must(t, Thaw(host.fd, st.KeepAlive))
		if again.SendSeq != st.SendSeq || unsent != len(stream) {
			t.Fatalf("of %d bytes that wait, the snapshot takes %d for sent, the kernel %d", len(stream), int32(again.SendSeq-st.SendSeq), len(stream)-unsent)
		}
	}
	stop()
	h.Resume(host.fd)
	if p := <-r.clientGets(t, len(stream)); !bytes.Equal(p, stream) {
		t.Error("the client's stream is wrong")
	}
}

// clientAcknowledges sends empty segments to the connection of st, as fast as it can, until the function that it returns is called.
func (r *rig) clientAcknowledges(t *testing.T, st *tcpstate.State) (stop func()) {
	t.Helper()
	var fd int
	r.net.Client.Must(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	packet := make([]byte, ipv4HeaderMin+tcpHeaderMin)
	packet[0], packet[8], packet[9] = 0x45, 64, tcpProtocol
	from, to := st.Remote.Addr().As4(), st.Local.Addr().As4()
	copy(packet[ipv4AddressesPos:], from[:])
	copy(packet[ipv4AddressesPos+len(from):], to[:])
	be, segment := binary.BigEndian, packet[ipv4HeaderMin:]
	be.PutUint16(segment, st.Remote.Port())
	be.PutUint16(segment[2:], st.Local.Port())
	be.PutUint32(segment[tcpSequencePos:], st.RecvSeq)
	be.PutUint32(segment[8:], st.SendSeq)
	segment[tcpOffsetPos], segment[tcpFlagsPos] = tcpHeaderMin/4<<4, 0x10 // ACK
	be.PutUint16(segment[14:], 500)                                       // the window
	finish(packet, ipv4HeaderMin)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				_ = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to}) // a full queue drops some
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		unix.Close(fd)
	}
}
