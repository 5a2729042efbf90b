package wire

import (
	"encoding/binary"
	"net/netip"
	"time"

	"spillway/internal/tcpstate"
)

var le = binary.LittleEndian

func appendInt64(b []byte, v int64) []byte { return le.AppendUint64(b, uint64(v)) }

func appendFile(b []byte, share, path string) []byte {
	b = append(append(b, byte(len(share))), share...)
	return append(le.AppendUint16(b, uint16(len(path))), path...)
}

func appendRef(b []byte, f FileRef) []byte {
	return appendInt64(appendInt64(appendFile(b, f.Share, f.Path), f.Size), f.MTime)
}

// decoder takes fields off a payload and remembers the first thing that was wrong.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.b) {
		d.err = badFormat("%d bytes missing", n-len(d.b))
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return le.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return le.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return le.Uint64(p)
	}
	return 0
}

func (d *decoder) i64() int64 { return int64(d.u64()) }

// zero takes n reserved bytes.
func (d *decoder) zero(n int) {
	for _, c := range d.take(n) {
		if c != 0 {
			d.err = badFormat("reserved bytes are not 0")
		}
	}
}

func (d *decoder) rest() []byte { return d.take(len(d.b)) }

// end reports the first error, or bytes that nobody took.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = badFormat("%d bytes too many", len(d.b))
	}
	return d.err
}

const (
	familyIPv4 = 4
	familyIPv6 = 6

	socketNoDelay   = 1 << 0
	socketKeepAlive = 1 << 1
)

func appendState(b []byte, s *tcpstate.State) []byte {
	family, socket := byte(familyIPv4), byte(0)
	if s.Local.Addr().Is6() {
		family = familyIPv6
	}
	if s.NoDelay {
		socket |= socketNoDelay
	}
	if s.KeepAlive.Enabled {
		socket |= socketKeepAlive
	}
	b = append(b, family, s.Options, s.SendWScale&15|s.RecvWScale<<4, socket)
	for _, a := range [2]netip.Addr{s.Local.Addr(), s.Remote.Addr()} {
		var field [16]byte
		copy(field[:], a.AsSlice())
		b = append(b, field[:]...)
	}
	b = le.AppendUint16(le.AppendUint16(b, s.Local.Port()), s.Remote.Port())
	w := &s.Window
	for _, v := range [8]uint32{s.SendSeq, s.RecvSeq, s.Timestamp, w.SndWl1, w.SndWnd, w.MaxWindow, w.RcvWnd, w.RcvWup} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint16(b, s.MSS)
	b = le.AppendUint16(b, uint16(s.KeepAlive.Idle/time.Second))
	b = le.AppendUint16(b, uint16(s.KeepAlive.Interval/time.Second))
	b = append(b, byte(s.KeepAlive.Count), s.TOS)
	for _, v := range [3]uint32{s.Cwnd, s.Ssthresh, uint32(s.RTT / time.Microsecond)} {
		b = le.AppendUint32(b, v)
	}
	b = append(le.AppendUint64(b, s.MaxPacing), byte(len(s.Congestion)))
	return append(b, s.Congestion...)
}

func (d *decoder) state() tcpstate.State {
	var s tcpstate.State
	p := d.take(stateFixedSize)
	if p == nil {
		return s
	}
	f := decoder{b: p}
	family := f.u8()
	s.Options = f.u8()
	shifts, socket := f.u8(), f.u8()
	s.SendWScale, s.RecvWScale = shifts&15, shifts>>4
	s.NoDelay, s.KeepAlive.Enabled = socket&socketNoDelay != 0, socket&socketKeepAlive != 0
	local, okLocal := addr(family, f.take(16))
	remote, okRemote := addr(family, f.take(16))
	s.Local = netip.AddrPortFrom(local, f.u16())
	s.Remote = netip.AddrPortFrom(remote, f.u16())
	s.SendSeq, s.RecvSeq, s.Timestamp = f.u32(), f.u32(), f.u32()
	s.Window = tcpstate.Window{SndWl1: f.u32(), SndWnd: f.u32(), MaxWindow: f.u32(), RcvWnd: f.u32(), RcvWup: f.u32()}
	s.MSS = f.u16()
	s.KeepAlive.Idle = time.Duration(f.u16()) * time.Second
	s.KeepAlive.Interval = time.Duration(f.u16()) * time.Second
	s.KeepAlive.Count = int(f.u8())
	s.TOS, s.Cwnd, s.Ssthresh, s.RTT, s.MaxPacing = f.u8(), f.u32(), f.u32(), time.Duration(f.u32())*time.Microsecond, f.u64()
	s.Congestion = string(d.take(int(f.u8())))
	switch {
	case d.err != nil:
	case !okLocal || !okRemote:
		d.err = badFormat("address family %d", family)
	case socket&^(socketNoDelay|socketKeepAlive) != 0:
		d.err = badFormat("unknown socket flags %#x", socket)
	default:
		if err := s.Check(); err != nil {
			d.err = badFormat("%v", err)
		}
	}
	return s
}

// addr decodes an address field; the bytes behind an IPv4 address must be 0.
func addr(family byte, p []byte) (netip.Addr, bool) {
	switch family {
	case familyIPv4:
		return netip.AddrFrom4([4]byte(p)), [12]byte(p[4:]) == [12]byte{}
	case familyIPv6:
		return netip.AddrFrom16([16]byte(p)), true
	}
	return netip.Addr{}, false
}
