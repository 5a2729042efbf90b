package tcprepair

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestHold: what the client says after Seal, when the host's socket is not gone yet, is sent on to the guest. The client need not say it again.
func TestHold(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			r.holdOnce(t, noise(40_000)) // in segments that the kernel has merged; the client's loss probe may come first
			for _, size := range []int{1, 54, 1400} {
				said := noise(size)
				for try := 1; r.holdOnce(t, said) > 0; try++ {
					if try == 5 { // each of which may have been so slow that the client's timer came first
						t.Fatalf("%d bytes were sent again each time", size)
					}
				}
			}
			r.bothWays(t)
		})
	}
}

// holdOnce returns how many segments the client has sent again.
func (r *rig) holdOnce(t *testing.T, said []byte) (again uint32) {
	t.Helper()
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	must(t, Snapshot(host.fd, &st, st.RecvSeq, host.end, false, false))
	control(t, r.guest, Park)
	control(t, r.guest, func(fd int) error { return RestoreInPlace(fd, &st, st.KeepAlive) })
	late, _, err := r.holder.Seal(host.fd, &st)
	if err != nil || late != 0 {
		t.Fatalf("Seal tells of %d bytes, %v", late, err)
	}
	before := retransmissions(t, r.client)
	if _, err := r.client.Write(said); err != nil { // and all of it has been at the host's socket when this returns, as veth has no queue
		t.Fatal(err)
	}
	must(t, Park(host.fd))
	must(t, host.Close())
	defer time.Sleep(10 * resendAfter) // what is sent on twice must not meet the next round
	got := make([]byte, len(said))
	must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
	if n, err := io.ReadFull(r.guest, got); err != nil || !bytes.Equal(got, said) {
		t.Fatalf("the guest has %d of %d bytes, equal %v: %v", n, len(said), bytes.Equal(got, said), err)
	}
	return retransmissions(t, r.client) - before
}

func retransmissions(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	control(t, c, func(fd int) error {
		i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = i.Total_retrans
		}
		return err
	})
	return n
}

// TestSegments takes a merged packet apart and holds its parts against checksums that are computed in another way.
func TestSegments(t *testing.T) {
	payload := noise(3000)
	v4 := make([]byte, 20+32)
	v4[0], v4[9] = 0x45, tcpProtocol
	copy(v4[12:], []byte{10, 1, 2, 3, 10, 4, 5, 6})
	v6 := make([]byte, 40+32)
	v6[0], v6[6] = 0x60, tcpProtocol
	copy(v6[8:], net.ParseIP("2001:db8::1"))
	copy(v6[24:], net.ParseIP("2001:db8::2"))
	for name, head := range map[string][]byte{"IPv4": v4, "IPv6": v6} {
		ip := len(head) - 32
		tcp := head[ip:]
		binary.BigEndian.PutUint32(tcp[4:], 0xffff_fc00)
		tcp[12], tcp[13] = 8<<4, 0x19 // 32 bytes; FIN, PSH, ACK
		all := segments(append(append([]byte(nil), head...), payload...))
		var got []byte
		var sequences []uint32
		for i, p := range all {
			sequences = append(sequences, binary.BigEndian.Uint32(p[ip+4:]))
			if flags, want := p[ip+13], map[bool]byte{false: 0x10, true: 0x19}[i == len(all)-1]; flags != want {
				t.Errorf("%s: segment %d has flags %#x, want %#x", name, i, flags, want)
			}
			got = append(got, p[ip+32:]...)
			if sum := sumOf(p, ip); sum != 0xffff {
				t.Errorf("%s: segment %d sums up to %#x", name, i, sum)
			}
		}
		if diff := cmp.Diff([]uint32{0xffff_fc00, 0xb0, 0x560}, sequences); diff != "" || !bytes.Equal(got, payload) {
			t.Errorf("%s: sequence numbers (-want +got):\n%s\npayload equal %v", name, diff, bytes.Equal(got, payload))
		}
		if one := segments(head); len(one) != 1 || one[0][ip+13] != 0x19 {
			t.Errorf("%s: a segment without data becomes %x", name, one)
		}
	}
	for _, bad := range [][]byte{nil, {0x45}, v4[:40], append([]byte{0x4f}, v4[1:]...), {0x60}} {
		if got := segments(bad); got != nil {
			t.Errorf("%x becomes %x", bad, got)
		}
	}
}

// sumOf adds up the pseudo-header and the segment, checksum included: all ones if it is right.
func sumOf(p []byte, ip int) uint32 {
	addresses := p[12:20]
	if ip == 40 {
		addresses = p[8:40]
	}
	all := append(append([]byte{0, tcpProtocol, byte((len(p) - ip) >> 8), byte(len(p) - ip)}, addresses...), p[ip:]...)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	sum := uint32(0)
	for i := 0; i < len(all); i += 2 {
		sum += uint32(all[i])<<8 + uint32(all[i+1])
		sum = sum&0xffff + sum>>16
	}
	return sum
}

func FuzzSegments(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40})
	f.Fuzz(func(_ *testing.T, p []byte) { segments(p) })
}
