package delayline

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// superPacket is what a TUN device gives: virtio_net_hdr, IP and TCP headers of these sizes, payload.
func superPacket(gsoType byte, gsoSize, ip, tcp, payload int) []byte {
	p := make([]byte, headerBytes+ip+tcp+payload)
	p[offGSOType] = gsoType
	binary.NativeEndian.PutUint16(p[offGSOSize:], uint16(gsoSize))
	binary.NativeEndian.PutUint16(p[offCsumStart:], uint16(ip))
	if tcp > 0 {
		p[headerBytes+ip+12] = byte(tcp / 4 << 4)
	}
	return p
}

func TestOnLine(t *testing.T) {
	const none, tcp4, tcp6 = unix.VIRTIO_NET_HDR_GSO_NONE, unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6
	for _, c := range []struct {
		name           string
		packet         []byte
		packets, bytes int64
	}{
		{"ordinary", superPacket(none, 0, 20, 32, 1448), 1, 1500},
		{"three, IPv4", superPacket(tcp4, 1448, 20, 32, 3*1448), 3, 4500},
		{"three and a byte", superPacket(tcp4, 1448, 20, 32, 3*1448+1), 4, 4500 + 53},
		{"with ECN", superPacket(tcp4|unix.VIRTIO_NET_HDR_GSO_ECN, 1448, 20, 32, 2*1448), 2, 3000},
		{"IPv6", superPacket(tcp6, 1428, 40, 32, 2*1428), 2, 3000},
		{"one, though it could be more", superPacket(tcp4, 1448, 20, 32, 1448), 1, 1500},
		{"no payload", superPacket(tcp4, 1448, 20, 32, 0), 1, 52},
		{"cut off", superPacket(tcp4, 1448, 20, 0, 5), 1, 25},
		{"empty", superPacket(none, 0, 0, 0, 0), 1, 0},
	} {
		if packets, bytes := onLine(c.packet); packets != c.packets || bytes != c.bytes {
			t.Errorf("%s: %d packets of %d bytes, want %d of %d", c.name, packets, bytes, c.packets, c.bytes)
		}
	}
}

// TestFIFO: packets come out as they went in, also when blocks are used again, and blocks do not grow in number without need.
func TestFIFO(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var f fifo
	var model [][]byte
	var held, mostHeld int64
	for i := range 40_000 {
		arriving := 3 - i/1000%2*2 // 3 of 4 in one phase, 1 of 4 in the next, which empties it
		if rng.IntN(4) < arriving && held < 8<<20 {
			space := f.space()
			n := 1 + rng.IntN(len(space))
			if rng.IntN(4) > 0 {
				n = 1 + rng.IntN(1510)
			}
			for i := 0; i < n; i += 64 {
				space[i] = byte(rng.Uint32())
			}
			model = append(model, bytes.Clone(space[:n]))
			f.push(pending{bytes: space[:n:n], packets: int64(n)})
			held += int64(n)
			mostHeld = max(mostHeld, held)
		} else if p, ok := f.first(); ok != (len(model) > 0) {
			t.Fatalf("first says %v with %d packets inside", ok, len(model))
		} else if ok {
			if !bytes.Equal(p.bytes, model[0]) || p.packets != int64(len(model[0])) {
				t.Fatalf("a packet of %d bytes came out as another one of %d", len(model[0]), len(p.bytes))
			}
			held -= int64(len(model[0]))
			model = model[1:]
			f.drop()
		}
		if f.held != held {
			t.Fatalf("%d bytes are said to be inside, want %d", f.held, held)
		}
	}
	// A block wastes less than the largest packet at its end; two may be partly used.
	if limit := int(mostHeld/(blockBytes-headerBytes-maxPacket)) + 2; len(f.blocks)+len(f.free) > limit {
		t.Errorf("%d blocks for %d bytes at most, want %d", len(f.blocks)+len(f.free), mostHeld, limit)
	}
	for range model {
		f.drop()
	}
	// Then it has one block, also when that has no more room.
	for range 40 {
		if _, ok := f.first(); ok || f.held != 0 || len(f.blocks) != 1 {
			t.Fatalf("empty, it holds %d bytes in %d blocks", f.held, len(f.blocks))
		}
		f.push(pending{bytes: f.space()})
		f.drop()
	}
}
