package cache

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"spillway/internal/origin"
)

// castagnoli is CRC-32C, for which there are instructions.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// kind is what a record of the index says.
type kind byte

const (
	kindFile   kind = 'F' // id, version, time of the last check, path: there is a data file
	kindBlocks kind = 'B' // id, first block, CRCs: these blocks have been written
	kindDrop   kind = 'D' // id: the data file is gone
	kindPin    kind = 'P' // path
	kindUnpin  kind = 'U' // path
)

func (k kind) known() bool {
	return k == kindFile || k == kindBlocks || k == kindDrop || k == kindPin || k == kindUnpin
}

// record is one line of the index.
type record struct {
	kind    kind
	id      uint64
	version origin.Version
	checked int64 // s since 1970
	path    string
	first   int
	sums    []uint32
}

// Framing of a record: length and CRC-32C of the payload, little-endian.
const (
	frameSize  = 8
	maxPayload = 1 << 20
	// maxSums of one record keep it below maxPayload.
	maxSums = 1 << 16
)

// appendRecord encodes r.
func appendRecord(b []byte, r *record) []byte {
	start := len(b)
	b = append(b, make([]byte, frameSize)...)
	b = append(b, byte(r.kind))
	switch r.kind {
	case kindFile:
		b = binary.AppendUvarint(b, r.id)
		b = binary.AppendUvarint(b, uint64(r.version.Size))
		var ns int64 // 0: not known
		if !r.version.ModTime.IsZero() {
			ns = r.version.ModTime.UnixNano()
		}
		b = binary.AppendVarint(b, ns)
		b = binary.AppendVarint(b, r.checked)
		b = appendString(b, r.version.ETag)
		b = appendString(b, r.path)
	case kindBlocks:
		b = binary.AppendUvarint(b, r.id)
		b = binary.AppendUvarint(b, uint64(r.first))
		b = binary.AppendUvarint(b, uint64(len(r.sums)))
		for _, s := range r.sums {
			b = binary.LittleEndian.AppendUint32(b, s)
		}
	case kindDrop:
		b = binary.AppendUvarint(b, r.id)
	case kindPin, kindUnpin:
		b = appendString(b, r.path)
	}
	payload := b[start+frameSize:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(payload, castagnoli))
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reader takes a payload apart. After bad everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.skip(n)
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	r.skip(n)
	return v
}

func (r *reader) skip(n int) {
	if n <= 0 || r.bad {
		r.b, r.bad = nil, true
		return
	}
	r.b = r.b[n:]
}

func (r *reader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// parseRecord decodes a payload whose checksum was right. r.sums is used again.
func parseRecord(payload []byte, r *record) bool {
	in := reader{b: payload[1:]}
	sums := r.sums[:0]
	*r = record{kind: kind(payload[0])}
	switch r.kind {
	case kindFile:
		r.id = in.uvarint()
		r.version.Size = int64(in.uvarint())
		if ns := in.varint(); ns != 0 {
			r.version.ModTime = time.Unix(0, ns)
		}
		r.checked = in.varint()
		r.version.ETag = in.string()
		r.path = in.string()
		in.bad = in.bad || r.version.Size < 0
	case kindBlocks:
		r.id = in.uvarint()
		first := in.uvarint()
		n := in.uvarint()
		if n > maxSums || n*4 > uint64(len(in.b)) || first > 1<<40 {
			return false
		}
		r.first = int(first)
		for i := range n {
			sums = append(sums, binary.LittleEndian.Uint32(in.b[4*i:]))
		}
	case kindDrop:
		r.id = in.uvarint()
	case kindPin, kindUnpin:
		r.path = in.string()
	default:
		return false
	}
	r.sums = sums
	return !in.bad
}

// parseRecords calls each for every record in b. Where there is no whole record, it looks for the next one byte by byte. It returns how much of b is done with: the
// rest is the beginning of a record, unless b is all that there is.
func parseRecords(b []byte, last bool, each func(*record)) (done int, damaged bool) {
	var r record
	for done+frameSize <= len(b) {
		n := int(binary.LittleEndian.Uint32(b[done:]))
		if n < 1 || n > maxPayload || done+frameSize < len(b) && !kind(b[done+frameSize]).known() {
			done, damaged = done+1, true
			continue
		}
		end := done + frameSize + n
		if end > len(b) {
			if !last {
				return done, damaged
			}
			done, damaged = done+1, true // a torn end, or damage that looks like a long record
			continue
		}
		payload := b[done+frameSize : end]
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[done+4:]) || !parseRecord(payload, &r) {
			done, damaged = done+1, true
			continue
		}
		each(&r)
		done = end
	}
	return done, damaged || last && done < len(b)
}
