package delayline

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// headerBytes is what the kernel puts before each packet (struct virtio_net_hdr, include/uapi/linux/virtio_net.h).
	headerBytes = 10
	// maxPacket is the largest IP packet (GSO_LEGACY_MAX_SIZE, include/linux/netdevice.h).
	maxPacket = 64 << 10
)

// Offsets in struct virtio_net_hdr. A TUN device speaks it in the machine's byte order, unless told otherwise.
const (
	offGSOType   = 1
	offGSOSize   = 4
	offCsumStart = 6
)

// onLine tells what a packet, behind its virtio_net_hdr, is on the line: a TCP super-packet is as many packets as its payload fills, each with the headers.
func onLine(p []byte) (packets, bytes int64) {
	packet := p[headerBytes:]
	size := int64(binary.NativeEndian.Uint16(p[offGSOSize:]))
	if p[offGSOType] == unix.VIRTIO_NET_HDR_GSO_NONE || size == 0 {
		return 1, int64(len(packet))
	}
	transport := int(binary.NativeEndian.Uint16(p[offCsumStart:])) // a super-packet's checksum is always open
	const dataOffset = 12                                          // of the TCP header, in words of 4 bytes: RFC 9293, section 3.1
	if transport+dataOffset >= len(packet) {
		return 1, int64(len(packet))
	}
	headers := int64(transport) + int64(packet[transport+dataOffset]>>4)*4
	payload := int64(len(packet)) - headers
	if payload <= size {
		return 1, int64(len(packet))
	}
	packets = (payload + size - 1) / size
	return packets, payload + packets*headers
}

// pending is a packet under way, with its virtio_net_hdr.
type pending struct {
	due     time.Duration
	bytes   []byte
	packets int64 // on the line
	onLine  int64 // bytes
}

// fifo keeps packets under way. They lie behind each other in blocks, which are used again: a path allocates nothing once it has carried as much as it can hold.
type fifo struct {
	waiting []pending
	head    int   // of waiting
	held    int64 // bytes under way
	room    []byte
	blocks  [][]byte // under way, oldest first; the last one is being filled
	left    []int    // packets under way in each of blocks
	free    [][]byte
}

// blockBytes is the size of a block: many super-packets.
const blockBytes = 1 << 20

// space returns where the next packet can be read to.
func (f *fifo) space() []byte {
	if len(f.room) < headerBytes+maxPacket {
		f.room = f.block()
	}
	return f.room[:headerBytes+maxPacket]
}

// block returns a block to fill.
func (f *fifo) block() []byte {
	last := len(f.blocks) - 1
	if last >= 0 && f.left[last] == 0 {
		return f.blocks[last] // nothing is under way
	}
	var block []byte
	if n := len(f.free); n > 0 {
		block, f.free = f.free[n-1], f.free[:n-1]
	} else {
		block = make([]byte, blockBytes)
	}
	f.blocks, f.left = append(f.blocks, block), append(f.left, 0)
	return block
}

// push adds the packet that was read to the start of space.
func (f *fifo) push(p pending) {
	f.room, f.held = f.room[len(p.bytes):], f.held+int64(len(p.bytes))
	f.left[len(f.left)-1]++
	if f.head > len(f.waiting)/2 { // so each packet is moved once, on average
		f.waiting = append(f.waiting[:0], f.waiting[f.head:]...)
		f.head = 0
	}
	f.waiting = append(f.waiting, p)
}

// first is the oldest packet.
func (f *fifo) first() (p pending, ok bool) {
	if f.head == len(f.waiting) {
		return pending{}, false
	}
	return f.waiting[f.head], true
}

// drop removes the oldest packet, whose bytes are then no longer valid.
func (f *fifo) drop() {
	f.held -= int64(len(f.waiting[f.head].bytes))
	f.head++
	f.left[0]--
	if f.left[0] == 0 && len(f.blocks) > 1 { // the last one still has room
		f.free = append(f.free, f.blocks[0])
		f.blocks, f.left = f.blocks[1:], f.left[1:]
	}
}
