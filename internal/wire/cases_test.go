package wire

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"spillway/internal/tcpstate"
)

const (
	testSession = 0x5e551047
	testLease   = 0x1ea5e
	testRequest = 0x4e9
)

// messageCase is one frame. The table of all of them feeds the encoder, the decoder, the golden files, the readers and the fuzz targets.
type messageCase struct {
	name  string // also of the golden file
	flags Flags
	msg   Message
}

func (c messageCase) id() uint32 {
	switch t := c.msg.Type(); {
	case t < TypeStat:
		return 0
	case t < TypeHandover:
		return testRequest
	}
	return testLease
}

func (c messageCase) session() uint32 {
	if c.msg.Type() == TypeGreet {
		return 0
	}
	return testSession
}

func (c messageCase) header() Header {
	return Header{
		Length:  uint32(len(c.payload())),
		Type:    c.msg.Type(),
		Flags:   c.flags,
		ID:      c.id(),
		Session: c.session(),
	}
}

func (c messageCase) payload() []byte { return c.msg.appendTo(nil) }

func (c messageCase) frame() []byte { return Append(nil, c.session(), c.id(), c.flags, c.msg) }

func messageCases() []messageCase {
	file := FileRef{Share: "media", Path: "bbb/seg-1.m4s", Size: 10_500_000, MTime: 1_700_000_000_123_456_789}
	empty := FileRef{Share: "m", Path: "x"}
	longest := FileRef{
		Share: strings.Repeat("s", MaxShare), Path: strings.Repeat("p", MaxPath),
		Size: math.MaxInt64, MTime: math.MinInt64,
	}
	before1970 := FileRef{Share: "média", Path: "a/..b/c d/…", Size: 1, MTime: -1}
	return []messageCase{
		{"greet", 0, Greet{Version: Version}},
		{"greet-max", 0, Greet{Version: math.MaxUint16}},
		{"hello", 0, Hello{Version: Version, Window: 256 << 10, MaxLeases: 4096}},
		{"hello-zero", 0, Hello{}},
		{"hello-max", 0, Hello{Version: math.MaxUint16, Window: math.MaxUint32, MaxLeases: math.MaxUint32}},
		{"ready", 0, Ready{Version: Version}},
		{"ready-max", 0, Ready{Version: math.MaxUint16}},
		{"ping", 0, Ping{Token: 0x0123456789abcdef}},
		{"ping-zero", 0, Ping{}},
		{"pong", 0, Pong{Token: 0x0123456789abcdef}},
		{"pong-max", 0, Pong{Token: math.MaxUint64}},
		{"drain", 0, Drain{}},
		{"drain-move", FlagMove, Drain{}},
		{"forget", 0, Forget{Share: file.Share, Path: file.Path}},
		{"forget-longest", 0, Forget{Share: longest.Share, Path: longest.Path}},

		{"stat", 0, Stat{Share: file.Share, Path: file.Path}},
		{"stat-shortest", 0, Stat{Share: "m", Path: "x"}},
		{"stat-longest", 0, Stat{Share: longest.Share, Path: longest.Path}},
		{"attr", 0, Attr{Size: file.Size, MTime: file.MTime}},
		{"attr-max", 0, Attr{Size: math.MaxInt64, MTime: math.MinInt64}},
		{"attr-not-found", 0, Attr{Reason: ReasonNotFound}},
		{"read", 0, Read{File: file, Offset: 4096, Count: 1500}},
		{"read-max", 0, Read{File: longest, Offset: math.MaxInt64, Count: MaxRead}},
		{"read-min", 0, Read{File: empty, Count: 1}},
		{"bytes", 0, Bytes{Data: []byte("moov")}},
		{"bytes-end", 0, Bytes{}},
		{"bytes-max", 0, Bytes{Data: bytes.Repeat([]byte{'b'}, MaxRead)}},
		{"bytes-changed", 0, Bytes{Reason: ReasonChanged}},

		{"handover-ipv4", 0, Handover{State: stateIPv4()}},
		{"handover-ipv6", 0, Handover{State: stateIPv6()}},
		{"handover-min", 0, Handover{State: stateMin()}},
		{"handover-max", 0, Handover{State: stateMax()}},
		{"granted", 0, Granted{}},
		{"refused", 0, Refused{Reason: ReasonAddress}},
		{"refused-last-reason", 0, Refused{Reason: reasonLimit - 1}},
		{"data", 0, Data{Data: []byte("GET /bbb/seg-1.m4s HTTP/1.1\r\n\r\n")}},
		{"data-more", FlagMore, Data{Data: []byte{0}}},
		{"data-max", FlagMore, Data{Data: bytes.Repeat([]byte{'d'}, MaxData)}},
		{"data-magic", 0, Data{Data: []byte(magicGreet + magicHello + magicReady)}},
		{"credit", 0, Credit{Bytes: 64 << 10}},
		{"credit-max", 0, Credit{Bytes: math.MaxUint32}},
		{"send", 0, Send{File: file, Offset: 500, Count: 10_499_500, Header: []byte("HTTP/1.1 206 Partial Content\r\n\r\n")}},
		{"send-return", FlagReturn, Send{File: before1970, Count: 1}},
		{"send-nothing", 0, Send{File: empty}},
		{"send-max", FlagReturn, Send{
			File: longest, Offset: math.MaxInt64 - 1, Count: 1, Header: bytes.Repeat([]byte{'h'}, MaxSendHeader),
		}},
		{"sent", FlagStarted, Sent{Bytes: 10_499_500}},
		{"sent-truncated", FlagStarted, Sent{Reason: ReasonTruncated, Bytes: math.MaxInt64}},
		{"sent-not-started", 0, Sent{Reason: ReasonNotFound}},
		{"end", 0, End{}},
		{"close", 0, Close{}},
		{"close-abort", FlagAbort, Close{}},
		{"closed", 0, Closed{Reason: ReasonClientGone}},
		{"closed-ok", 0, Closed{}},
		{"handback-ipv4", 0, Handback{State: stateIPv4(), Data: 77, Sent: 10_499_500, Said: []byte("GET / HTTP/1.1\r\n\r\n")}},
		{"handback-ipv6", 0, Handback{State: stateIPv6(), Sent: -1}},
		{"handback-max", 0, Handback{State: stateMax(), Data: math.MaxUint64, Sent: math.MaxInt64, Said: bytes.Repeat([]byte{'s'}, MaxSaid)}},
		{"handback-min", 0, Handback{State: stateMin()}},
		{"taken", 0, Taken{}},
		{"keep", 0, Keep{Reason: ReasonKernel}},
		{"released", 0, Released{Window: tcpstate.PeerWindow{SndWl1: 0x55667788, SndWnd: 64256, MaxWindow: 65535}, Leased: 1_900_000}},
		{"released-max", 0, Released{Window: tcpstate.PeerWindow{SndWl1: math.MaxUint32, SndWnd: math.MaxUint32, MaxWindow: math.MaxUint32}, Leased: math.MaxUint64}},
	}
}

func stateIPv4() tcpstate.State {
	return tcpstate.State{
		Local:      netip.MustParseAddrPort("192.0.2.10:8080"),
		Remote:     netip.MustParseAddrPort("198.51.100.7:54321"),
		SendSeq:    0x11223344,
		RecvSeq:    0x55667788,
		MSS:        1448,
		Options:    tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale,
		SendWScale: 7,
		RecvWScale: 10,
		Timestamp:  0x99aabbcc,
		Window:     tcpstate.Window{SndWl1: 0x55667787, SndWnd: 64256, MaxWindow: 65535, RcvWnd: 65160, RcvWup: 0x55667786},
		Cwnd:       345,
		Ssthresh:   321,
		RTT:        40123 * time.Microsecond,
		NoDelay:    true,
		TOS:        0xb8,
		KeepAlive:  tcpstate.KeepAlive{Enabled: true, Idle: 15 * time.Second, Interval: 75 * time.Second, Count: 9},
		Congestion: "cubic",
	}
}

func stateIPv6() tcpstate.State {
	return tcpstate.State{
		Local:      netip.MustParseAddrPort("[2001:db8::a]:443"),
		Remote:     netip.MustParseAddrPort("[2001:db8:1:2:3:4:5:6]:49152"),
		SendSeq:    1,
		RecvSeq:    math.MaxUint32,
		MSS:        1428,
		Options:    tcpstate.OptSACK,
		Window:     tcpstate.Window{SndWl1: 2, SndWnd: 3, MaxWindow: 4, RcvWnd: 5, RcvWup: 6},
		KeepAlive:  tcpstate.KeepAlive{Idle: 7200 * time.Second, Interval: 75 * time.Second, Count: 9},
		Congestion: "bbr",
	}
}

func stateMin() tcpstate.State {
	return tcpstate.State{
		Local:  netip.MustParseAddrPort("0.0.0.1:1"),
		Remote: netip.MustParseAddrPort("192.0.2.1:1"),
		MSS:    tcpstate.MinMSS,
	}
}

func stateMax() tcpstate.State {
	return tcpstate.State{
		Local:      netip.MustParseAddrPort("[feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
		Remote:     netip.MustParseAddrPort("[fe80::ffff]:65535"),
		SendSeq:    math.MaxUint32,
		RecvSeq:    math.MaxUint32,
		MSS:        tcpstate.MaxMSS,
		Options:    tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale,
		SendWScale: tcpstate.MaxWScale,
		RecvWScale: tcpstate.MaxWScale,
		Timestamp:  math.MaxUint32,
		Window: tcpstate.Window{
			SndWl1: math.MaxUint32, SndWnd: math.MaxUint32, MaxWindow: math.MaxUint32, RcvWnd: math.MaxUint32, RcvWup: math.MaxUint32,
		},
		Cwnd:       tcpstate.MaxCwnd,
		Ssthresh:   tcpstate.MaxCwnd,
		RTT:        time.Hour,
		NoDelay:    true,
		TOS:        math.MaxUint8,
		MaxPacing:  math.MaxUint64,
		KeepAlive:  tcpstate.KeepAlive{Enabled: true, Idle: 32767 * time.Second, Interval: 32767 * time.Second, Count: 127},
		Congestion: strings.Repeat("z", tcpstate.MaxCongestionName),
	}
}

// diffMessage compares two messages; an empty byte field equals an absent one.
func diffMessage(want, got Message) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty())
}

// knownTypes lists the types that the format knows.
func knownTypes() []Type {
	var types []Type
	for t := range 256 {
		if kindOf(Type(t)).name != "" {
			types = append(types, Type(t))
		}
	}
	return types
}

// TestCasesAreComplete keeps the table honest: a type or a flag that is added to the format needs a case.
func TestCasesAreComplete(t *testing.T) {
	names := map[string]bool{}
	flags := map[Type]Flags{}
	without := map[Type]bool{}
	for _, c := range messageCases() {
		if names[c.name] {
			t.Errorf("two cases are named %s", c.name)
		}
		names[c.name] = true
		flags[c.msg.Type()] |= c.flags
		without[c.msg.Type()] = without[c.msg.Type()] || c.flags == 0
	}
	for _, typ := range knownTypes() {
		if got, want := flags[typ], kindOf(typ).flags; got != want || !without[typ] {
			t.Errorf("%v: cases with flags %#x (and one without: %t), the format knows %#x", typ, got, without[typ], want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, c := range messageCases() {
		t.Run(c.name, func(t *testing.T) {
			before := []byte("before")
			b := Append(before, c.session(), c.id(), c.flags, c.msg)
			if !bytes.HasPrefix(b, before) {
				t.Fatal("Append changed what was there")
			}
			frame := b[len(before):]
			if n := len(frame); n > HeaderSize+MaxPayload {
				t.Fatalf("frame of %d bytes", n)
			}
			got, err := Parse(c.msg.Type(), frame[HeaderSize:])
			if err != nil {
				t.Fatal(err)
			}
			if diff := diffMessage(c.msg, got); diff != "" {
				t.Errorf("decoded message (-want +got):\n%s", diff)
			}
			h, err := parseHeader(frame)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.header(), h); diff != "" {
				t.Errorf("decoded header (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEveryLength takes bytes from and adds one to the payload of every case. What is not an error must be a message whose last field
// may have any length, and must encode to just these bytes.
func TestEveryLength(t *testing.T) {
	shortest := map[Type]int{ // the payloads that end in a field of free length, without it
		TypeBytes: len(Bytes{}.appendTo(nil)),
		TypeData:  1,
	}
	for _, c := range messageCases() {
		t.Run(c.name, func(t *testing.T) {
			free, open := shortest[c.msg.Type()]
			switch m := c.msg.(type) {
			case Send:
				free, open = len(c.payload())-len(m.Header), true
			case Handback:
				free, open = len(c.payload())-len(m.Said), true
			}
			longer := append(c.payload(), 't')
			for n := range longer {
				if n > 2048 && n < len(longer)-64 { // nothing but data
					continue
				}
				testLength(t, c.msg.Type(), longer[:n], n == len(longer)-1 || open && n >= free)
			}
			switch {
			case strings.HasSuffix(c.name, "-max"):
				testLength(t, c.msg.Type(), longer, false) // at the limit
			default:
				testLength(t, c.msg.Type(), longer, open)
			}
		})
	}
}

func testLength(t *testing.T, typ Type, payload []byte, valid bool) {
	t.Helper()
	m, err := Parse(typ, payload)
	switch {
	case err != nil && !errors.Is(err, ErrFormat):
		t.Fatalf("%d bytes: %v is no ErrFormat", len(payload), err)
	case (err == nil) != valid:
		t.Fatalf("%d bytes: error %v, valid should be %t", len(payload), err, valid)
	case valid && !bytes.Equal(m.appendTo(nil), payload):
		t.Fatalf("%d bytes: encoded again they differ", len(payload))
	}
}

// TestAliases shows that the hot path copies no bytes: what a message holds is a part of the payload, and appending to it leaves the
// payload as it is.
func TestAliases(t *testing.T) {
	data := func(m Message) []byte {
		switch m := m.(type) {
		case Data:
			return m.Data
		case Bytes:
			return m.Data
		case Send:
			return m.Header
		case Handback:
			return m.Said
		}
		return nil
	}
	for _, c := range messageCases() {
		if len(data(c.msg)) == 0 {
			continue
		}
		payload := c.payload()
		m, err := Parse(c.msg.Type(), payload)
		if err != nil {
			t.Fatal(err)
		}
		got := data(m)
		if &got[len(got)-1] != &payload[len(payload)-1] {
			t.Errorf("%s: the bytes were copied", c.name)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{TypeHandover.String(), "HANDOVER"},
		{Type(12).String(), "type 12"},
		{ReasonOK.String(), "ok"},
		{ReasonSession.Error(), "session"},
		{reasonLimit.String(), "reason-27"},
		{Reason(math.MaxUint16).String(), "reason-65535"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	var err error = ReasonChanged
	if r, ok := errors.AsType[Reason](err); !ok || r != ReasonChanged {
		t.Errorf("a Reason as an error is %v, %t", r, ok)
	}
	all := Reasons()
	if len(all) != int(reasonLimit)-1 || all[0] != ReasonOff || all[len(all)-1] != ReasonCostly {
		t.Errorf("Reasons gives %v", all)
	}
}
