package tcprepair

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// The TCP header that Probe sends (RFC 9293, section 3.1), without options.
const (
	probeSize        = 20
	probeFlagACK     = 0x10
	probeWindow      = 0xffff
	probeChecksumPos = 16 // offset of the checksum
)

// Probe makes the peer of a connection say where it is, by an acknowledgement that lies before its window and changes nothing for it (RFC 9293,
// section 3.10.7.4). The answer goes to whoever has the connection. If that is nobody any more, the kernel of st's local address
// resets the connection, exactly because it has no socket for it.
//
// It is for the side that has given the connection away, after its own socket has been closed silently, when the other side may have died
// with a held socket. st is what Extract gave. It needs CAP_NET_RAW.
func Probe(st *tcpstate.State) error {
	segment := make([]byte, probeSize)
	be := binary.BigEndian
	be.PutUint16(segment[0:], st.Local.Port())
	be.PutUint16(segment[2:], st.Remote.Port())
	be.PutUint32(segment[4:], st.SendSeq-1)
	be.PutUint32(segment[8:], st.RecvSeq)
	segment[12] = probeSize / 4 << 4
	segment[13] = probeFlagACK
	be.PutUint16(segment[14:], probeWindow)

	family := unix.AF_INET
	local, remote := rawAddress(st, false), rawAddress(st, true)
	if st.Local.Addr().Is6() {
		family = unix.AF_INET6
	} else {
		local, remote := st.Local.Addr().As4(), st.Remote.Addr().As4()
		pseudo := append(append(local[:], remote[:]...), 0, tcpProtocol, 0, byte(len(segment)))
		be.PutUint16(segment[probeChecksumPos:], checksum(pseudo, segment))
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("tcprepair: probe (CAP_NET_RAW is needed): %w", err)
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 { // for IPv6 the kernel computes it, raw(7) and ipv6(7)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, probeChecksumPos); err != nil {
			return fmt.Errorf("tcprepair: probe: IPV6_CHECKSUM: %w", err)
		}
	}
	if err := unix.Bind(fd, local); err != nil {
		return fmt.Errorf("tcprepair: probe from %v: %w", st.Local.Addr(), err)
	}
	if err := unix.Sendto(fd, segment, 0, remote); err != nil {
		return fmt.Errorf("tcprepair: probe %v: %w", st.Remote, err)
	}
	return nil
}

// rawAddress is an address of st as a raw socket wants it: without a port.
func rawAddress(st *tcpstate.State, remote bool) unix.Sockaddr {
	a := st.Local.Addr()
	if remote {
		a = st.Remote.Addr()
	}
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}
