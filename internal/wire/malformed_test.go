package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"spillway/internal/tcpstate"
)

// Offsets in STATE, from docs/wire.md.
const (
	offFamily     = 0
	offOptions    = 1
	offShifts     = 2
	offSocket     = 3
	offLocal      = 4
	offRemote     = 20
	offLocalPort  = 36
	offRemotePort = 38
	offMSS        = 72
	offIdle       = 74
	offInterval   = 76
	offCount      = 78
	offCwnd       = 80
	offSsthresh   = 84
	offRTT        = 88
	offNameLength = 100
	offName       = 101
)

// malformed is a payload that breaks one rule. want is a part of the error, to show that this rule and no other refused it.
type malformed struct {
	name    string
	msg     Message // what was changed…
	change  func(payload []byte) []byte
	want    string
	aTypeOf Type // …or a payload of this type in its place
}

// frame gives type and payload.
func (c malformed) frame() (Type, []byte) {
	typ, payload := c.aTypeOf, []byte(nil)
	if c.msg != nil {
		typ, payload = c.msg.Type(), c.msg.appendTo(nil)
	}
	if c.change != nil {
		payload = c.change(payload)
	}
	return typ, payload
}

// put returns a change that overwrites bytes at off; a negative off counts from the end.
func put(off int, v ...byte) func([]byte) []byte {
	return func(p []byte) []byte {
		at := off
		if at < 0 {
			at += len(p)
		}
		copy(p[at:at+len(v)], v)
		return p
	}
}

// become returns a change that leaves nothing but v.
func become(v ...byte) func([]byte) []byte { return func([]byte) []byte { return v } }

func malformedCases() []malformed {
	var all []malformed
	for _, cases := range [][]malformed{
		malformedSession(), malformedFiles(), malformedPaths(), malformedLeases(), malformedStates(), malformedAddresses(),
	} {
		all = append(all, cases...)
	}
	return all
}

func malformedSession() []malformed {
	return []malformed{
		{name: "GREET without magic", msg: Greet{}, change: put(0, 's'), want: "no magic"},
		{name: "GREET with HELLO's magic", msg: Greet{}, change: put(0, []byte(magicHello)...), want: "no magic"},
		{name: "GREET too short for a magic", msg: Greet{}, change: func(p []byte) []byte { return p[:magicSize-1] }, want: "no magic"},
		{name: "HELLO with GREET's magic", msg: Hello{}, change: put(0, []byte(magicGreet)...), want: "no magic"},
		{name: "HELLO with line feed lost", msg: Hello{}, change: put(15, '\r'), want: "no magic"},
		{name: "READY with GREET's magic", msg: Ready{}, change: put(0, []byte(magicGreet)...), want: "no magic"},
		{name: "empty HELLO", aTypeOf: TypeHello, want: "no magic"},
	}
}

func malformedFiles() []malformed {
	file := FileRef{Share: "s", Path: "p", Size: 100}
	return []malformed{
		{name: "FORGET of no share", msg: Forget{Path: "p"}, want: "share name of 0 bytes"},
		{name: "FORGET with more", msg: Forget{Share: "s", Path: "p"}, change: func(p []byte) []byte { return append(p, 0) }, want: "1 bytes too many"},
		{name: "no share", msg: Stat{Share: "", Path: "p"}, want: "share name of 0 bytes"},
		{name: "share too long", msg: Stat{Share: strings.Repeat("s", MaxShare+1), Path: "p"}, want: "share name of 65 bytes"},
		{name: "longest share field", msg: Stat{Share: strings.Repeat("s", 255), Path: "p"}, want: "share name of 255 bytes"},
		{name: "share length lies", msg: Stat{Share: "s", Path: "p"}, change: put(0, 64), want: "60 bytes missing"},
		{name: "path length lies", msg: Stat{Share: "s", Path: "p"}, change: put(2, 0, 4), want: "1023 bytes missing"},
		{name: "path length lies short", msg: Stat{Share: "s", Path: "pq"}, change: put(2, 1, 0), want: "1 bytes too many"},

		{name: "ATTR with unknown reason", msg: Attr{Reason: reasonLimit}, want: "unknown reason 27"},
		{name: "ATTR with negative size", msg: Attr{Size: -1}, want: "size -1"},
		{name: "ATTR with reason and size", msg: Attr{Reason: ReasonNotFound, Size: 1}, want: "attributes"},
		{name: "ATTR with reason and mtime", msg: Attr{Reason: ReasonNotFound, MTime: -1}, want: "attributes"},

		{name: "READ of nothing", msg: Read{File: file}, want: "count 0"},
		{name: "READ of too much", msg: Read{File: file, Count: MaxRead + 1}, want: "count"},
		{name: "READ of 4 GiB", msg: Read{File: file, Count: math.MaxUint32}, want: "count 4294967295"},
		{name: "READ before the file", msg: Read{File: file, Offset: -1, Count: 1}, want: "range -1+1"},
		{name: "READ behind the file", msg: Read{File: file, Offset: 101, Count: 1}, want: "range 101+1"},
		{name: "READ of a negative file", msg: Read{File: FileRef{Share: "s", Path: "p", Size: -1}, Count: 1}, want: "file size -1"},

		{name: "BYTES with unknown reason", msg: Bytes{Reason: reasonLimit}, want: "unknown reason"},
		{name: "BYTES with reserved bytes", msg: Bytes{Data: []byte("x")}, change: put(3, 1), want: "reserved"},
		{name: "BYTES too long", msg: Bytes{Data: make([]byte, MaxRead+1)}, want: fmt.Sprintf("%d bytes, at most", MaxRead+1)},
	}
}

// malformedPaths puts every bad path into each message that has one.
func malformedPaths() []malformed {
	var all []malformed
	for name, path := range map[string]string{
		"empty":                 "",
		"dot":                   ".",
		"dot dot":               "..",
		"absolute":              "/etc/passwd",
		"only a slash":          "/",
		"escapes":               "../x",
		"escapes in the middle": "a/../b",
		"escapes at the end":    "a/..",
		"dot at the beginning":  "./a",
		"dot in the middle":     "a/./b",
		"dot at the end":        "a/.",
		"empty element":         "a//b",
		"slash at the end":      "a/",
		"NUL":                   "a\x00b",
		"only NUL":              "\x00",
		"not UTF-8":             "a\xffb",
	} {
		f := FileRef{Share: "s", Path: path, Size: 1}
		want := fmt.Sprintf("path %q", path)
		all = append(all,
			malformed{name: "STAT path " + name, msg: Stat{Share: "s", Path: path}, want: want},
			malformed{name: "FORGET path " + name, msg: Forget{Share: "s", Path: path}, want: want},
			malformed{name: "READ path " + name, msg: Read{File: f, Count: 1}, want: want},
			malformed{name: "SEND path " + name, msg: Send{File: f, Count: 1}, want: want},
		)
	}
	for _, n := range []int{MaxPath + 1, math.MaxUint16} {
		all = append(all, malformed{
			name: fmt.Sprintf("path of %d", n), msg: Stat{Share: "s", Path: strings.Repeat("p", n)},
			want: fmt.Sprintf("path of %d bytes", n),
		})
	}
	return all
}

func malformedLeases() []malformed {
	file := FileRef{Share: "s", Path: "p", Size: 100}
	all := []malformed{
		{name: "DATA without data", aTypeOf: TypeData, want: "no data"},
		{name: "DATA too long", msg: Data{Data: make([]byte, MaxData+1)}, want: "65537 bytes of data"},

		{name: "SEND before the file", msg: Send{File: file, Offset: -1, Count: 1}, want: "range -1+1"},
		{name: "SEND far before the file", msg: Send{File: file, Offset: math.MinInt64}, want: "range"},
		{name: "SEND behind the file", msg: Send{File: file, Offset: 101}, want: "range 101+0"},
		{name: "SEND past the end", msg: Send{File: file, Offset: 99, Count: 2}, want: "range 99+2"},
		{name: "SEND of a negative count", msg: Send{File: file, Count: -1}, want: "range 0+-1"},
		{name: "SEND whose range overflows", msg: Send{File: file, Offset: 1, Count: math.MaxInt64}, want: "range"},
		{
			name: "SEND whose range overflows both ways",
			msg:  Send{File: FileRef{Share: "s", Path: "p", Size: math.MaxInt64}, Offset: math.MinInt64, Count: math.MaxInt64},
			want: "range",
		},
		{name: "SEND of a negative file", msg: Send{File: FileRef{Share: "s", Path: "p", Size: -1}}, want: "file size -1"},
		{name: "SEND without share", msg: Send{File: FileRef{Path: "p"}}, want: "share name"},
		{name: "RELEASED with more than its maximum window", msg: Released{Window: tcpstate.PeerWindow{SndWnd: 2, MaxWindow: 1}}, want: "window 2 exceeds"},
		{name: "HANDBACK with sent below -1", msg: Handback{State: stateIPv4(), Sent: -2}, want: "-2 bytes sent"},
		{name: "HANDBACK with too much said", msg: Handback{State: stateIPv4(), Said: make([]byte, MaxSaid+1)}, want: "32769 bytes of the client's"},
		{name: "SEND header too long", msg: Send{File: file, Header: make([]byte, MaxSendHeader+1)}, want: "16385 header bytes"},

		{name: "SENT with unknown reason", msg: Sent{Reason: reasonLimit}, want: "unknown reason"},
		{name: "SENT with first reserved byte", msg: Sent{}, change: put(2, 1), want: "reserved"},
		{name: "SENT with second reserved byte", msg: Sent{}, change: put(3, 0x80), want: "reserved"},
		{name: "SENT of negative bytes", msg: Sent{Bytes: -1}, want: "-1 bytes sent"},
	}
	for _, typ := range []Type{TypeRefused, TypeClosed, TypeKeep} {
		all = append(all,
			malformed{name: typ.String() + " with unknown reason", aTypeOf: typ, change: become(byte(reasonLimit), 0), want: "unknown reason 27"},
			malformed{name: typ.String() + " with high reason", aTypeOf: typ, change: become(0, 1), want: "unknown reason 256"},
		)
	}
	for _, typ := range []Type{TypeDrain, TypeGranted, TypeEnd, TypeClose, TypeTaken} {
		all = append(all, malformed{
			name: typ.String() + " with payload", aTypeOf: typ, change: become(0), want: "where none may be",
		})
	}
	return all
}

// malformedStates changes one field of a good STATE, in HANDOVER and in HANDBACK.
func malformedStates() []malformed {
	name := func(s string) func([]byte) []byte {
		return func(p []byte) []byte { return append(append(p[:offNameLength], byte(len(s))), s...) }
	}
	var all []malformed
	for _, c := range []malformed{
		{name: "unknown option", change: put(offOptions, 8), want: "unknown options 0x8"},
		{name: "all options", change: put(offOptions, 0xff), want: "unknown options 0xff"},
		{name: "client's shift", change: put(offShifts, 0x0f), want: "window shifts 15/0"},
		{name: "our shift", change: put(offShifts, 0xf0), want: "window shifts 0/15"},
		{name: "unknown socket flag", change: put(offSocket, 4), want: "unknown socket flags 0x4"},
		{name: "highest socket flag", change: put(offSocket, 0x83), want: "unknown socket flags 0x83"},
		{name: "local port 0", change: put(offLocalPort, 0, 0), want: "local address"},
		{name: "remote port 0", change: put(offRemotePort, 0, 0), want: "remote address"},
		{name: "window above its maximum", change: put(56, 0, 0, 1, 0, 255, 255, 0, 0), want: "window 65536 exceeds its maximum 65535"},
		{name: "MSS 0", change: put(offMSS, 0, 0), want: "MSS 0"},
		{name: "MSS too small", change: put(offMSS, tcpstate.MinMSS-1, 0), want: "MSS 87"},
		{name: "MSS too large", change: put(offMSS, 0, 0x80), want: "MSS 32768"},
		{name: "keepalive idle", change: put(offIdle, 0, 0x80), want: "keepalive"},
		{name: "keepalive interval", change: put(offInterval, 0xff, 0xff), want: "keepalive"},
		{name: "congestion window", change: put(offCwnd, 1, 0, 1, 0), want: "window of 65537 segments"},
		{name: "slow start threshold", change: put(offSsthresh, 1, 0, 1, 0), want: "threshold of 65537"},
		{name: "round trip", change: put(offRTT, 0xff, 0xff, 0xff, 0xff), want: "round trip"},
		{name: "keepalive count", change: put(offCount, 128), want: "keepalive"},
		{name: "congestion control too long", change: name("sixteen-letters_"), want: "name of 16 bytes"},
		{name: "congestion control with longest field", change: name(strings.Repeat("a", 255)), want: "name of 255 bytes"},
		{name: "congestion control with NUL", change: name("cubic\x00"), want: "name \"cubic\\x00\""},
		{name: "congestion control with slash", change: name("../cubic"), want: "name \"../cubic\""},
		{name: "congestion control in capitals", change: name("CUBIC"), want: "name \"CUBIC\""},
		{name: "name length lies", change: put(offNameLength, 6), want: "1 bytes missing"},
		{name: "name cut", change: func(p []byte) []byte { return p[:offName+2] }, want: "3 bytes missing"},
		{name: "fixed part cut", change: func(p []byte) []byte { return p[:stateFixedSize-1] }, want: "1 bytes missing"},
		{name: "name missing", change: func(p []byte) []byte { return p[:offNameLength] }, want: "1 bytes missing"},
	} {
		c.name, c.msg = "STATE "+c.name, Handover{State: stateIPv4()}
		all = append(all, c)
	}
	return all
}

func malformedAddresses() []malformed {
	all := []malformed{
		{name: "IPv4 local with bytes behind", msg: Handover{State: stateIPv4()}, change: put(offLocal+4, 1), want: "address family 4"},
		{name: "IPv4 local with a last byte", msg: Handover{State: stateIPv4()}, change: put(offLocal+15, 1), want: "address family 4"},
		{name: "IPv4 remote with bytes behind", msg: Handover{State: stateIPv4()}, change: put(offRemote+15, 1), want: "address family 4"},
		{name: "IPv6 read as IPv4", msg: Handover{State: stateIPv6()}, change: put(offFamily, familyIPv4), want: "address family 4"},
	}
	for _, family := range []byte{0, 1, 2, 3, 5, 7, 10, 46, 255} { // AF_INET and AF_INET6 among them
		all = append(all, malformed{
			name: fmt.Sprintf("family %d", family), msg: Handover{State: stateIPv6()},
			change: put(offFamily, family), want: fmt.Sprintf("address family %d", family),
		})
	}
	for _, ip := range []string{"0.0.0.0", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.1.2.3", "::", "::1", "ff02::1", "::ffff:192.0.2.1"} {
		s := stateIPv4()
		if addr := netip.MustParseAddr(ip); addr.Is6() {
			s = stateIPv6()
		}
		addr := netip.MustParseAddr(ip)
		local, remote := s, s
		local.Local = netip.AddrPortFrom(addr, 80)
		remote.Remote = netip.AddrPortFrom(addr, 80)
		all = append(all,
			malformed{name: "local address " + ip, msg: Handover{State: local}, want: "local address"},
			malformed{name: "remote address " + ip, msg: Handback{State: remote}, want: "remote address"},
		)
	}
	return all
}

func TestMalformedPayload(t *testing.T) {
	for _, c := range malformedCases() {
		t.Run(c.name, func(t *testing.T) {
			typ, payload := c.frame()
			m, err := Parse(typ, payload)
			switch {
			case !errors.Is(err, ErrFormat):
				t.Fatalf("Parse gives %T, %v", m, err)
			case m != nil:
				t.Errorf("a message beside the error: %T", m)
			case !strings.Contains(err.Error(), c.want):
				t.Errorf("error %q does not tell of %q", err, c.want)
			case !strings.Contains(err.Error(), typ.String()):
				t.Errorf("error %q does not name the type", err)
			}
		})
	}
}

func TestUnknownType(t *testing.T) {
	known := map[Type]bool{}
	for _, c := range messageCases() {
		known[c.msg.Type()] = true
	}
	for typ := range 256 {
		if known[Type(typ)] {
			continue
		}
		want := fmt.Sprintf("unknown type %d", typ)
		if _, err := Parse(Type(typ), nil); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse of type %d: %v", typ, err)
		}
		frame := Append(nil, testSession, testLease, 0, End{})
		frame[4] = byte(typ)
		wantHeaderError(t, frame, want)
	}
}

// TestMalformedHeader breaks each rule of the header for each type.
func TestMalformedHeader(t *testing.T) {
	for _, c := range messageCases() {
		name := c.msg.Type().String()
		change := func(f func(frame []byte)) []byte {
			frame := c.frame()
			f(frame)
			return frame
		}
		for _, n := range []uint32{MaxPayload + 1, 1 << 24, 1 << 31, math.MaxUint32} {
			wantHeaderError(t, change(func(b []byte) { le.PutUint32(b, n) }), fmt.Sprintf("%s of %d bytes, at most 65536", name, n))
		}
		for bit := range 8 {
			flag := Flags(1) << bit
			if flag&kindOf(c.msg.Type()).flags == 0 {
				wantHeaderError(t, change(func(b []byte) { b[5] |= byte(flag) }), name+" with unknown flags")
			}
		}
		wantHeaderError(t, change(func(b []byte) { b[6] = 1 }), name+" with reserved bytes")
		wantHeaderError(t, change(func(b []byte) { b[7] = 0x80 }), name+" with reserved bytes")
		if c.id() == 0 {
			wantHeaderError(t, change(func(b []byte) { b[8] = 1 }), name+" with id 1")
			wantHeaderError(t, change(func(b []byte) { b[11] = 1 }), name+" with id 16777216")
		}
		if c.session() == 0 {
			wantHeaderError(t, change(func(b []byte) { b[12] = 1 }), name+" with session 0x1")
		} else {
			wantHeaderError(t, change(func(b []byte) { clear(b[12:16]) }), name+" with session 0x0")
		}
	}
}

// wantHeaderError shows that both readers refuse the frame's header, before its payload has come.
func wantHeaderError(t *testing.T, frame []byte, want string) {
	t.Helper()
	for _, r := range []*Reader{NewHostReader(bytes.NewReader(frame[:HeaderSize])), NewGuestReader(bytes.NewReader(frame))} {
		_, payload, err := r.Next()
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) || payload != nil {
			t.Errorf("Next gives %d bytes, error %v; want one that tells of %q", len(payload), err, want)
		}
	}
}

// TestEncoderTrustsItsCaller shows what becomes of a state outside the format: the other side refuses it, and no field runs into the next.
func TestEncoderTrustsItsCaller(t *testing.T) {
	mixed := stateIPv4()
	mixed.Remote = stateIPv6().Remote
	for name, s := range map[string]tcpstate.State{
		"zero":           {},
		"mixed families": mixed,
		"long keepalive": func() tcpstate.State { s := stateIPv4(); s.KeepAlive.Idle = 40000 * time.Second; return s }(),
	} {
		if _, err := ParseHandover(Handover{State: s}.appendTo(nil)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestValidNames is for those who check a share or a path before they send it.
func TestValidNames(t *testing.T) {
	for n, want := range map[int]bool{0: false, 1: true, MaxShare: true, MaxShare + 1: false} {
		if got := ValidShare(strings.Repeat("s", n)); got != want {
			t.Errorf("share of %d bytes: %t", n, got)
		}
	}
	for n, want := range map[int]bool{0: false, 1: true, MaxPath: true, MaxPath + 1: false} {
		if got := ValidPath(strings.Repeat("p", n)); got != want {
			t.Errorf("path of %d bytes: %t", n, got)
		}
	}
}
