package neighbor

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// announce tells everybody on a link that addr is at this hardware address.
func announce(addr netip.Addr, link int, mac net.HardwareAddr) error {
	frame, protocol := arpAnnouncement(addr, mac), unix.ETH_P_ARP
	if addr.Is6() {
		frame, protocol = advertisement(addr, mac), unix.ETH_P_IPV6
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: it receives nothing
	if err != nil {
		return fmt.Errorf("announce %v: socket: %w", addr, err)
	}
	// The close waits for an RCU grace period (packet_release, net/packet/af_packet.c), and the VM's clients would, too.
	defer func() { go unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(protocol))), Ifindex: link, Halen: 6}
	copy(to.Addr[:], frame[:6])
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	return nil
}

// ethernet begins a frame.
func ethernet(to, from net.HardwareAddr, protocol uint16) []byte {
	return binary.BigEndian.AppendUint16(append(append(make([]byte, 0, 128), to...), from...), protocol)
}

// arpAnnouncement is the ARP request for one's own address of RFC 5227, section 2.3.
func arpAnnouncement(addr netip.Addr, mac net.HardwareAddr) []byte {
	f := ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, unix.ETH_P_ARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths, request (RFC 826)
	f = append(append(f, mac...), addr.AsSlice()...)
	return append(append(f, make([]byte, 6)...), addr.AsSlice()...)
}

// Numbers of an unsolicited neighbor advertisement: RFC 4861, sections 4.4 and 7.2.6.
const (
	neighborAdvertisement = 136
	flagRouter            = 0x80 // the host forwards
	flagOverride          = 0x20
	targetLinkAddress     = 2 // option
	ndpHopLimit           = 255
)

// advertisement is the unsolicited neighbor advertisement to all nodes.
func advertisement(addr netip.Addr, mac net.HardwareAddr) []byte {
	allNodes := netip.MustParseAddr("ff02::1")
	message := append([]byte{neighborAdvertisement, 0, 0, 0, flagRouter | flagOverride, 0, 0, 0}, addr.AsSlice()...)
	message = append(append(message, targetLinkAddress, 1), mac...)
	binary.BigEndian.PutUint16(message[2:], checksum(addr, allNodes, message))

	f := ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(message)))
	f = append(f, unix.IPPROTO_ICMPV6, ndpHopLimit)
	f = append(append(f, addr.AsSlice()...), allNodes.AsSlice()...)
	return append(f, message...)
}

// checksum is ICMPv6's, over the message and the pseudo-header of RFC 8200, section 8.1. The message has an even length.
func checksum(from, to netip.Addr, message []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(message)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6)
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, message} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
