package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/ulikunitz/xz/lzma"
)

// The xz container, as far as the kernel's build uses it: one stream, one block, the filters LZMA2 and, for the x86 kernel
// image, BCJ x86 before it, a CRC32 (scripts/xz_wrap.sh). The xz library's own container reader refuses the BCJ
// filter; its LZMA2 decoder is used here. Section numbers are those of the .xz file format, version 1.2.1.
const (
	xzStreamHeaderBytes = 12   // section 2.1.1
	xzFilterX86         = 0x04 // section 5.3.2
	xzFilterLZMA2       = 0x21 // section 5.3.1
	xzCheckCRC32        = 0x01 // section 2.1.1.2
	xzMaxDictBits       = 30   // 128 MiB, the largest that scripts/xz_wrap.sh asks for
)

var errXZShort = errors.New("xz: the data ends too early")

// xzBlockHeader is what a block header says (section 3.1).
type xzBlockHeader struct {
	bytes     int  // its own length
	x86       bool // the BCJ x86 filter follows LZMA2
	dictBytes int  // capacity of LZMA2's dictionary
}

// decompressXZ decompresses the first block of an xz stream and verifies its CRC32. The hint is the expected size.
func decompressXZ(data []byte, hint int) ([]byte, error) {
	if len(data) < xzStreamHeaderBytes || string(data[:len(xzMagic)]) != xzMagic {
		return nil, errors.New("xz: no stream header")
	}
	if check := data[len(xzMagic)+1]; check != xzCheckCRC32 {
		return nil, fmt.Errorf("xz: check type %#x; only CRC32 is supported", check)
	}
	block := data[xzStreamHeaderBytes:]
	header, err := parseXZBlockHeader(block)
	if err != nil {
		return nil, err
	}
	// The LZMA2 reader takes no byte more than its data, since a bytes.Reader hands out single bytes.
	compressed := bytes.NewReader(block[header.bytes:])
	lz, err := lzma.Reader2Config{DictCap: header.dictBytes}.NewReader2(compressed)
	if err != nil {
		return nil, fmt.Errorf("xz: %w", err)
	}
	plain, err := readBounded(lz, hint)
	if err != nil {
		return nil, fmt.Errorf("xz: %w", err)
	}
	if header.x86 {
		decodeBCJx86(plain)
	}
	end := len(block) - compressed.Len()
	end += -end & 3 // block padding, section 3.3; the block starts at a multiple of four
	if end+crc32.Size > len(block) {
		return nil, errXZShort
	}
	if want, got := binary.LittleEndian.Uint32(block[end:]), crc32.ChecksumIEEE(plain); want != got {
		return nil, fmt.Errorf("xz: checksum %08x, not %08x: the data is damaged", got, want)
	}
	return plain, nil
}

func parseXZBlockHeader(block []byte) (xzBlockHeader, error) {
	var h xzBlockHeader
	if len(block) == 0 {
		return h, errXZShort
	}
	h.bytes = (int(block[0]) + 1) * 4 // section 3.1.1
	if block[0] == 0 || len(block) < h.bytes {
		return h, errXZShort
	}
	crcAt := h.bytes - crc32.Size
	if crc32.ChecksumIEEE(block[:crcAt]) != binary.LittleEndian.Uint32(block[crcAt:]) {
		return h, errors.New("xz: the block header is damaged")
	}
	flags, fields := block[1], block[2:crcAt] // section 3.1.2
	if flags&0x3c != 0 {
		return h, fmt.Errorf("xz: reserved block flags %#x", flags)
	}
	for _, sizeField := range []byte{0x40, 0x80} { // compressed and uncompressed size: not needed
		if flags&sizeField != 0 {
			_, n := binary.Uvarint(fields)
			if n <= 0 {
				return h, errXZShort
			}
			fields = fields[n:]
		}
	}
	for last := int(flags & 3); last >= 0; last-- {
		// Filter flags, section 3.1.5: identifier, size of properties, properties; all of one byte for our two filters.
		if len(fields) < 2 {
			return h, errXZShort
		}
		id, props := fields[0], fields[1]
		switch {
		case id == xzFilterX86 && props == 0 && last > 0:
			h.x86 = true
		case id == xzFilterLZMA2 && props == 1 && last == 0 && len(fields) > 2 && fields[2] <= xzMaxDictBits:
			bits := fields[2]
			h.dictBytes = int(2|bits&1) << (bits/2 + 11)
		default:
			return h, fmt.Errorf("xz: filter %#x is not supported here", id)
		}
		fields = fields[min(len(fields), 2+int(props)):]
	}
	return h, nil
}

// decodeBCJx86 undoes the BCJ x86 filter in place. The filter turned the relative operands of CALL (E8) and JMP (E9) into
// absolute ones, which compress better; it has no formal specification, the reference is lib/xz/xz_dec_bcj.c in the
// kernel. mask remembers which of the last three bytes looked like such an opcode, so that operands that overlap
// are left alone exactly where the encoder left them alone.
func decodeBCJx86(buf []byte) {
	const operandBytes = 4
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	bitNumber := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	signByte := func(b byte) bool { return b == 0x00 || b == 0xff }

	var mask uint32
	previous := -1
	for i := 0; i+operandBytes < len(buf); i++ {
		if buf[i]&0xfe != 0xe8 {
			continue
		}
		if distance := i - previous; distance > 3 {
			mask = 0
		} else if mask = mask << (distance - 1) & 7; mask != 0 {
			if !allowed[mask] || signByte(buf[i+operandBytes-int(bitNumber[mask])]) {
				previous = i
				mask = mask<<1 | 1
				continue
			}
		}
		previous = i
		if !signByte(buf[i+operandBytes]) {
			mask = mask<<1 | 1
			continue
		}
		operand := buf[i+1 : i+1+operandBytes]
		relative := bcjRelative(binary.LittleEndian.Uint32(operand), uint32(i)+1+operandBytes, mask, bitNumber[mask])
		binary.LittleEndian.PutUint32(operand, relative)
		i += operandBytes
	}
}

// bcjRelative turns an absolute operand back into a relative one, sign-extended from 25 bits.
func bcjRelative(absolute, next, mask uint32, bitNumber uint) uint32 {
	relative := absolute - next
	for mask != 0 {
		shift := bitNumber * 8
		if b := byte(relative >> (24 - shift)); b != 0x00 && b != 0xff {
			break
		}
		relative = (relative ^ (1<<(32-shift) - 1)) - next
	}
	relative &= 0x01ffffff
	return relative | -(relative & 0x01000000)
}
