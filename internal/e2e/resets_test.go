package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
)

// endings is a packet socket on the client's link that gets the TCP segments with FIN or RST, of both directions.
type endings struct{ fd int }

func watchEndings(t *testing.T, l *lab.Lab) endings {
	t.Helper()
	fd := -1
	must(t, l.Client.Do(func() (err error) {
		// Protocol 0: nothing comes before the filter is there.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	filter := finOrReset()
	must(t, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNetwork(unix.ETH_P_ALL)}))
	return endings{fd}
}

// next returns the next segment, if there is one by now.
func (e endings) next(t *testing.T) (from, to netip.AddrPort, flags byte, ok bool) {
	t.Helper()
	buf := make([]byte, 256)
	n, _, err := unix.Recvfrom(e.fd, buf, 0)
	if errors.Is(err, unix.EAGAIN) {
		return from, to, 0, false
	}
	must(t, err)
	from, to, flags, err = tcpFlags(buf[:n])
	must(t, err)
	return from, to, flags, true
}

// watchResets watches the client's link from now on. The returned check fails the test for each RST that crossed it, in either direction, for a
// connection that lived: one of whose ends had not sent its FIN yet.
//
// Counters of the kernel would not do. When both ends have closed, a last acknowledgement that is late meets no socket and draws a RST into
// a TIME_WAIT, with Spillway and without it.
func watchResets(t *testing.T, l *lab.Lab) (check func()) {
	t.Helper()
	watch := watchEndings(t, l)
	return func() {
		t.Helper()
		closed := map[[2]netip.AddrPort]bool{} // by sender and receiver: this direction has had its FIN
		seen := 0
		for from, to, flags, ok := watch.next(t); ok; from, to, flags, ok = watch.next(t) {
			seen++
			there, back := [2]netip.AddrPort{from, to}, [2]netip.AddrPort{to, from}
			if flags&flagFIN != 0 {
				closed[there] = true
			}
			if flags&flagRST != 0 && !(closed[there] && closed[back]) {
				t.Errorf("%v sent a RST to %v on a connection that lives (FIN from it: %v, to it: %v)", from, to, closed[there], closed[back])
			}
		}
		stats, err := unix.GetsockoptTpacketStats(watch.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		must(t, err)
		if stats.Drops > 0 || seen == 0 {
			t.Errorf("%d packets with FIN or RST seen and %d missed: the watch is blind", seen, stats.Drops)
		}
	}
}

// Flags of a TCP header (RFC 9293, section 3.1).
const (
	flagFIN = 1
	flagRST = 4
)

func hostToNetwork(v uint16) uint16 { return v<<8 | v>>8 } // the machines that this runs on are little-endian

// finOrReset is a packet filter for TCP segments with FIN or RST, of both IP versions, that begin with the IP header. Extension headers of IPv6
// are not looked behind: TCP of a lab has none.
func finOrReset() []unix.SockFilter {
	const (
		loadByte, loadByteX = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, unix.BPF_LD | unix.BPF_B | unix.BPF_IND
		equal, anyOf        = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: loadByte, K: 0},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf0},
		{Code: equal, K: 0x60, Jt: 5}, // IPv6: on to its protocol
		{Code: loadByte, K: 9},
		{Code: equal, K: unix.IPPROTO_TCP, Jf: 8},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, // X: the length of the IPv4 header
		{Code: loadByteX, K: 13},
		{Code: anyOf, K: flagFIN | flagRST, Jt: 4, Jf: 5},
		{Code: loadByte, K: 6},
		{Code: equal, K: unix.IPPROTO_TCP, Jf: 3},
		{Code: loadByte, K: 40 + 13},
		{Code: anyOf, K: flagFIN | flagRST, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 256},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// tcpFlags reads the addresses and flags of a TCP segment that begins with its IP header.
func tcpFlags(b []byte) (from, to netip.AddrPort, flags byte, err error) {
	var tcp []byte
	var source, destination netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4+20:
		tcp = b[int(b[0]&15)*4:]
		source, destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 60 && b[0]>>4 == 6:
		tcp = b[40:]
		source, destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return from, to, 0, fmt.Errorf("no TCP segment: % x", b)
	}
	return netip.AddrPortFrom(source, binary.BigEndian.Uint16(tcp)), netip.AddrPortFrom(destination, binary.BigEndian.Uint16(tcp[2:])), tcp[13], nil
}

// TestResetsAreSeen: the watch sees the RST of a client that resets, in both IP versions.
func TestResetsAreSeen(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, addr := range []string{l.Addr(lab.VM), addr6(t, l, lab.VM)} {
		watch := watchEndings(t, l)
		c := dialAddr(t, l, addr)
		c.get("4k.m4s", files.files["4k.m4s"])
		c.reset()
		eventually(t, "the RST is seen", func() bool {
			_, to, flags, ok := watch.next(t)
			return ok && flags&flagRST != 0 && to.String() == addr
		})
	}
}
