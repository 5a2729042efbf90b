package dataset

import "encoding/binary"

// box is an ISO base media file format box (ISO/IEC 14496-12): size, type, payload.
func box(kind string, payload ...[]byte) []byte {
	b := make([]byte, 4, 64)
	b = append(b, kind...)
	for _, p := range payload {
		b = append(b, p...)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// fullBox is a box with a version and flags.
func fullBox(kind string, version byte, flags uint32, payload ...[]byte) []byte {
	head := u32(uint32(version)<<24 | flags)
	return box(kind, append([][]byte{head}, payload...)...)
}

func u16(values ...uint16) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func u32(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func zeros(n int) []byte { return make([]byte, n) }
