package wire

// Header is the fixed part of a frame.
type Header struct {
	Length  uint32 // of the payload, bytes
	Type    Type
	Flags   Flags
	ID      uint32 // lease or request
	Session uint32
}

// Append appends one frame with m as its payload. It trusts the caller to keep the limits of the format, as the sender's side
// of the product does; what it encodes beyond them the other side refuses.
func Append[M Message](b []byte, session, id uint32, flags Flags, m M) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(m.Type()), byte(flags), 0, 0)
	b = le.AppendUint32(le.AppendUint32(b, id), session)
	b = m.appendTo(b)
	le.PutUint32(b[start:], uint32(len(b)-start-HeaderSize))
	return b
}

// parseHeader decodes and checks the first HeaderSize bytes of b.
func parseHeader(b []byte) (Header, error) {
	h := Header{
		Length:  le.Uint32(b),
		Type:    Type(b[4]),
		Flags:   Flags(b[5]),
		ID:      le.Uint32(b[8:]),
		Session: le.Uint32(b[12:]),
	}
	k := kindOf(h.Type)
	switch {
	case k.name == "":
		return h, badFormat("unknown %v", h.Type)
	case h.Length > MaxPayload:
		return h, badFormat("%v of %d bytes, at most %d", h.Type, h.Length, MaxPayload)
	case h.Flags&^k.flags != 0:
		return h, badFormat("%v with unknown flags %#x", h.Type, uint8(h.Flags))
	case b[6] != 0 || b[7] != 0:
		return h, badFormat("%v with reserved bytes that are not 0", h.Type)
	case k.session && h.ID != 0:
		return h, badFormat("%v with id %d", h.Type, h.ID)
	case (h.Session == 0) != (h.Type == TypeGreet):
		return h, badFormat("%v with session %#x", h.Type, h.Session)
	}
	return h, nil
}
