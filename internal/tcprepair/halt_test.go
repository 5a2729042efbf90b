package tcprepair

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"time"

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
			for range haltRounds {
				r.haltOnce(t)
			}
		})
	}
}

func (r *rig) haltOnce(t *testing.T) {
	t.Helper()
	stream := make([]byte, 24<<20)
	for i := 0; i < len(stream); i += 8 {
		for j, v := 0, rand.Uint64(); j < 8; j++ {
			stream[i+j] = byte(v >> (8 * j))
		}
	}
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	start := st.SendSeq

	must(t, r.client.SetReadDeadline(time.Now().Add(patience)))
	got := make(chan []byte, 1)
	go func() {
		p := make([]byte, len(stream))
		n, err := io.ReadFull(r.client, p)
		if err != nil {
			t.Errorf("the client has %d of %d bytes: %v", n, len(stream), err)
		}
		got <- p[:n]
	}()
	must(t, host.SetWriteDeadline(time.Now().Add(time.Duration(rand.IntN(4000))*time.Microsecond)))
	queued, _ := host.Write(stream) // until the deadline, most likely

	must(t, Halt(host.fd))
	eventually(t, "what was on the wire is acknowledged", func() bool {
		p, err := ProgressOf(host.fd)
		return err == nil && p.Sent == p.Acked
	})
	ka := st.KeepAlive
	must(t, SnapshotHalted(host.fd, &st, st.RecvSeq, start))
	sent := int(st.SendSeq - start)
	if sent > queued {
		t.Fatalf("%d bytes of %d that were written have been on the wire", sent, queued)
	}
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, ka) })
	must(t, Hide(host.fd, &st))
	late, _, err := r.freezer.Seal(host.fd, &st)
	if err != nil || late != 0 {
		t.Fatalf("Seal tells of %d bytes, %v", late, err)
	}
	must(t, Park(host.fd))
	must(t, host.Close())

	must(t, r.guest.SetWriteDeadline(time.Now().Add(patience)))
	if _, err := r.guest.Write(stream[sent:]); err != nil {
		t.Fatal(err)
	}
	if p := <-got; !bytes.Equal(p, stream) {
		t.Fatalf("the client's stream is wrong; %d bytes were written on the host, %d sent there", queued, sent)
	}
	t.Logf("%d bytes were written on the host, %d sent there", queued, sent)
}

// TestHaltUndone: a connection that was not taken back goes on, and nothing of its send queue is lost.
func TestHaltUndone(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	stream := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, host.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	queued, _ := host.Write(stream)
	must(t, Halt(host.fd))
	must(t, Thaw(host.fd, st.KeepAlive))
	must(t, host.SetWriteDeadline(time.Time{}))
	go func() { _, _ = host.Write(stream[queued:]) }()
	must(t, r.client.SetReadDeadline(time.Now().Add(patience)))
	got := make([]byte, len(stream))
	if n, err := io.ReadFull(r.client, got); err != nil || !bytes.Equal(got, stream) {
		t.Fatalf("the client has %d of %d bytes, equal %v: %v", n, len(stream), bytes.Equal(got, stream), err)
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
	must(t, Halt(host.fd))
	var again tcpstate.State
	wantError(t, SnapshotHalted(host.fd, &again, st.RecvSeq, st.SendSeq), ErrUnacked, LeftRepair)
}
