package tcprepair

import (
	"encoding/binary"
	"net/netip"
)

// Places in IP and TCP headers (RFC 791, RFC 8200, RFC 9293).
const (
	ipv4HeaderMin     = 20
	ipv6HeaderSize    = 40
	ipv4LengthPos     = 2
	ipv4IDPos         = 4
	ipv4ChecksumPos   = 10
	ipv4AddressesPos  = 12
	ipv6LengthPos     = 4
	ipv6AddressesPos  = 8
	tcpHeaderMin      = 20
	tcpSequencePos    = 4
	tcpOffsetPos      = 12
	tcpFlagsPos       = 13
	tcpFlagFIN        = 0x01
	tcpFlagPSH        = 0x08
	maxSegmentPayload = 1200 // fits every link: IPv6's smallest MTU is 1280
)

// segments returns packet, an IPv4 or IPv6 packet that the kernel has merged from several segments (GRO) and whose checksums it has not filled in, as packets
// that can be sent: short enough for any link, with checksums. It returns none for what is no TCP packet.
func segments(packet []byte) [][]byte {
	ipHeader := ipv6HeaderSize
	switch {
	case len(packet) == 0:
		return nil
	case packet[0]>>4 == 4:
		ipHeader = int(packet[0]&0xf) * 4
	}
	if len(packet) < ipHeader+tcpHeaderMin {
		return nil
	}
	tcpHeader := int(packet[ipHeader+tcpOffsetPos]>>4) * 4
	head := ipHeader + tcpHeader
	if tcpHeader < tcpHeaderMin || len(packet) < head {
		return nil
	}
	be := binary.BigEndian
	sequence := be.Uint32(packet[ipHeader+tcpSequencePos:])
	var all [][]byte
	for payload := packet[head:]; ; {
		n := min(len(payload), maxSegmentPayload)
		last := n == len(payload)
		p := append(append([]byte(nil), packet[:head]...), payload[:n]...)
		be.PutUint32(p[ipHeader+tcpSequencePos:], sequence)
		if !last {
			p[ipHeader+tcpFlagsPos] &^= tcpFlagFIN | tcpFlagPSH
		}
		finish(p, ipHeader)
		all = append(all, p)
		if last {
			return all
		}
		payload, sequence = payload[n:], sequence+uint32(n)
	}
}

// ends returns the destination and the source of a packet that segments has made.
func ends(p []byte) (local, remote netip.AddrPort) {
	ipHeader, addresses, size := ipv6HeaderSize, ipv6AddressesPos, 16
	if p[0]>>4 == 4 {
		ipHeader, addresses, size = int(p[0]&0xf)*4, ipv4AddressesPos, 4
	}
	source, _ := netip.AddrFromSlice(p[addresses : addresses+size]) // both have the right length
	destination, _ := netip.AddrFromSlice(p[addresses+size : addresses+2*size])
	be := binary.BigEndian
	return netip.AddrPortFrom(destination, be.Uint16(p[ipHeader+2:])), netip.AddrPortFrom(source, be.Uint16(p[ipHeader:]))
}

// finish fills in the length and the checksums of a packet.
func finish(p []byte, ipHeader int) {
	be := binary.BigEndian
	segment := p[ipHeader:]
	be.PutUint16(segment[probeChecksumPos:], 0)
	var pseudo []byte // RFC 9293, section 3.1; RFC 8200, section 8.1
	if p[0]>>4 == 4 {
		be.PutUint16(p[ipv4LengthPos:], uint16(len(p)))
		be.PutUint16(p[ipv4IDPos:], 0)       // the kernel chooses one (raw_send_hdrinc, net/ipv4/raw.c)
		be.PutUint16(p[ipv4ChecksumPos:], 0) // and fills this in
		pseudo = append(append(pseudo, p[ipv4AddressesPos:ipv4AddressesPos+8]...), 0, tcpProtocol)
	} else {
		be.PutUint16(p[ipv6LengthPos:], uint16(len(segment)))
		pseudo = append(append(pseudo, p[ipv6AddressesPos:ipv6AddressesPos+32]...), 0, tcpProtocol)
	}
	pseudo = be.AppendUint16(pseudo, uint16(len(segment)))
	be.PutUint16(segment[probeChecksumPos:], checksum(pseudo, segment))
}

// tcpProtocol is TCP's number in IP (RFC 9293).
const tcpProtocol = 6

// checksum is the Internet checksum over parts, all but the last of even length (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
