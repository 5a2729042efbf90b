package wire

import (
	"io/fs"
	"strings"

	"spillway/internal/tcpstate"
)

// Message is the payload of a frame. The types below are all there are.
type Message interface {
	Type() Type
	appendTo(b []byte) []byte
}

// FileRef names a file on the host and says what the guest believes of it: a host that finds anything else refuses (Changed).
type FileRef struct {
	Share string
	Path  string // fs.ValidPath
	Size  int64  // bytes
	MTime int64  // ns since 1970, as stat(2) gives it
}

// Session messages.
type (
	// Greet opens the channel from the guest's side.
	Greet struct{ Version uint16 }
	// Hello offers a session.
	Hello struct {
		Version   uint16
		Window    uint32 // bytes of DATA that each side may send on a lease before the first CREDIT
		MaxLeases uint32
	}
	// Ready accepts a session.
	Ready struct{ Version uint16 }
	// Ping asks for a Pong with the same Token.
	Ping struct{ Token uint64 }
	// Pong answers a Ping.
	Pong struct{ Token uint64 }
	// Drain announces that the daemon stops, or (FlagMove) that the VM moves.
	Drain struct{}
	// Forget tells that what the guest has kept of a file is not true any more.
	Forget struct{ Share, Path string }
)

// File messages.
type (
	// Stat asks for the attributes of a file.
	Stat struct{ Share, Path string }
	// Attr answers Stat.
	Attr struct {
		Reason Reason
		Size   int64 // bytes
		MTime  int64 // ns since 1970
	}
	// Read asks for a few bytes of a file.
	Read struct {
		File   FileRef
		Offset int64
		Count  uint32 // bytes, 1…MaxRead
	}
	// Bytes answers Read.
	Bytes struct {
		Reason Reason
		Data   []byte
	}
)

// Lease messages.
type (
	// Handover gives the host a frozen connection.
	Handover struct{ State tcpstate.State }
	// Granted accepts it.
	Granted struct{}
	// Refused declines it.
	Refused struct{ Reason Reason }
	// Data carries the client's bytes, or bytes for the client.
	Data struct{ Data []byte }
	// Credit allows more Data.
	Credit struct{ Bytes uint32 }
	// Send orders header bytes and a range of a file.
	Send struct {
		File   FileRef
		Offset int64
		Count  int64
		Header []byte
	}
	// Sent reports the end of a Send.
	Sent struct {
		Reason Reason
		Bytes  int64 // of the file
	}
	// End tells that no more bytes come in this direction.
	End struct{}
	// Close asks the host to close the connection.
	Close struct{}
	// Closed tells that the host has no socket for the connection any more.
	Closed struct{ Reason Reason }
	// Handback gives the connection back to the guest, maybe in the middle of a Send. The client has acknowledged all that was sent.
	Handback struct {
		State tcpstate.State
		Data  uint64 // all Data bytes that the host has taken from the guest on this lease
		Sent  int64  // file bytes that were sent of the Send under way, which ends with them; -1: none is under way
		Said  []byte // what the client has said before, for the guest's server
	}
	// Taken accepts a Handback.
	Taken struct{}
	// Keep declines a Handback.
	Keep struct{ Reason Reason }
	// Released ends a lease after Taken. Data and End before it are what the client said while the connection changed hands.
	Released struct {
		Window tcpstate.PeerWindow // as the client has told it last
		Leased uint64              // ns from GRANTED, or the last KEEP, to HANDBACK: what the change of hands itself did not cost
	}
)

// Magics, one for each direction and step, so that a search never takes one for the other.
const (
	magicGreet = "SPILLWAY GREET\r\n"
	magicHello = "SPILLWAY HELLO\r\n"
	magicReady = "SPILLWAY READY\r\n"

	// magicPrefix begins all of them: a search for it is one pass over the bytes, whatever a hostile side fills them with.
	magicPrefix = "SPILLWAY "
	// maxOpening is the longest payload with a magic, HELLO's. A search waits for no more bytes than these.
	maxOpening = magicSize + 10
)

func (Greet) Type() Type    { return TypeGreet }
func (Hello) Type() Type    { return TypeHello }
func (Ready) Type() Type    { return TypeReady }
func (Ping) Type() Type     { return TypePing }
func (Pong) Type() Type     { return TypePong }
func (Drain) Type() Type    { return TypeDrain }
func (Forget) Type() Type   { return TypeForget }
func (Stat) Type() Type     { return TypeStat }
func (Attr) Type() Type     { return TypeAttr }
func (Read) Type() Type     { return TypeRead }
func (Bytes) Type() Type    { return TypeBytes }
func (Handover) Type() Type { return TypeHandover }
func (Granted) Type() Type  { return TypeGranted }
func (Refused) Type() Type  { return TypeRefused }
func (Data) Type() Type     { return TypeData }
func (Credit) Type() Type   { return TypeCredit }
func (Send) Type() Type     { return TypeSend }
func (Sent) Type() Type     { return TypeSent }
func (End) Type() Type      { return TypeEnd }
func (Close) Type() Type    { return TypeClose }
func (Closed) Type() Type   { return TypeClosed }
func (Handback) Type() Type { return TypeHandback }
func (Taken) Type() Type    { return TypeTaken }
func (Keep) Type() Type     { return TypeKeep }
func (Released) Type() Type { return TypeReleased }

func (m Greet) appendTo(b []byte) []byte { return le.AppendUint16(append(b, magicGreet...), m.Version) }
func (m Ready) appendTo(b []byte) []byte { return le.AppendUint16(append(b, magicReady...), m.Version) }
func (m Hello) appendTo(b []byte) []byte {
	b = le.AppendUint16(append(b, magicHello...), m.Version)
	return le.AppendUint32(le.AppendUint32(b, m.Window), m.MaxLeases)
}
func (m Ping) appendTo(b []byte) []byte   { return le.AppendUint64(b, m.Token) }
func (m Pong) appendTo(b []byte) []byte   { return le.AppendUint64(b, m.Token) }
func (Drain) appendTo(b []byte) []byte    { return b }
func (m Forget) appendTo(b []byte) []byte { return appendFile(b, m.Share, m.Path) }
func (m Stat) appendTo(b []byte) []byte   { return appendFile(b, m.Share, m.Path) }
func (m Attr) appendTo(b []byte) []byte {
	b = le.AppendUint16(b, uint16(m.Reason))
	return appendInt64(appendInt64(b, m.Size), m.MTime)
}
func (m Read) appendTo(b []byte) []byte {
	return le.AppendUint32(appendInt64(appendRef(b, m.File), m.Offset), m.Count)
}
func (m Bytes) appendTo(b []byte) []byte {
	b = append(le.AppendUint16(b, uint16(m.Reason)), 0, 0)
	return append(b, m.Data...)
}
func (m Handover) appendTo(b []byte) []byte { return appendState(b, &m.State) }
func (Granted) appendTo(b []byte) []byte    { return b }
func (m Refused) appendTo(b []byte) []byte  { return le.AppendUint16(b, uint16(m.Reason)) }
func (m Data) appendTo(b []byte) []byte     { return append(b, m.Data...) }
func (m Credit) appendTo(b []byte) []byte   { return le.AppendUint32(b, m.Bytes) }
func (m Send) appendTo(b []byte) []byte {
	b = appendInt64(appendInt64(appendRef(b, m.File), m.Offset), m.Count)
	return append(b, m.Header...)
}
func (m Sent) appendTo(b []byte) []byte {
	return appendInt64(append(le.AppendUint16(b, uint16(m.Reason)), 0, 0), m.Bytes)
}
func (End) appendTo(b []byte) []byte      { return b }
func (Close) appendTo(b []byte) []byte    { return b }
func (m Closed) appendTo(b []byte) []byte { return le.AppendUint16(b, uint16(m.Reason)) }
func (m Handback) appendTo(b []byte) []byte {
	return append(appendInt64(le.AppendUint64(appendState(b, &m.State), m.Data), m.Sent), m.Said...)
}
func (Taken) appendTo(b []byte) []byte  { return b }
func (m Keep) appendTo(b []byte) []byte { return le.AppendUint16(b, uint16(m.Reason)) }
func (m Released) appendTo(b []byte) []byte {
	for _, v := range [3]uint32{m.Window.SndWl1, m.Window.SndWnd, m.Window.MaxWindow} {
		b = le.AppendUint32(b, v)
	}
	return le.AppendUint64(b, m.Leased)
}

// ValidShare reports whether s can name a share.
func ValidShare(s string) bool { return len(s) > 0 && len(s) <= MaxShare }

// ValidPath reports whether p can name a file beneath a share.
func ValidPath(p string) bool {
	return len(p) > 0 && len(p) <= MaxPath && p != "." && fs.ValidPath(p) && strings.IndexByte(p, 0) < 0
}
