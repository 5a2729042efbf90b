// Package wire is the byte format of the channel between a guest's media server and the host daemon, as docs/wire.md
// specifies it: frames, messages, limits, and a Reader that finds the start of a session in a stream of unknown history.
//
// It gives the bytes no meaning (package lease does) and touches no file and no socket. Every value that it decodes is within the
// limits of the specification; everything else is an error, never a panic.
package wire

import (
	"errors"
	"fmt"
)

// Version of the protocol. Both sides must speak the same.
const Version = 4

// Limits of docs/wire.md.
const (
	HeaderSize     = 16
	MaxPayload     = 64 << 10
	MaxData        = MaxPayload
	MaxRead        = MaxPayload - 8
	MaxSendHeader  = 16 << 10
	MaxSaid        = 32 << 10
	MaxShare       = 64
	MaxPath        = 1024
	magicSize      = 16
	stateFixedSize = 101
)

// Type of a frame.
type Type uint8

// Frame types. The groups and directions are in docs/wire.md.
const (
	TypeGreet Type = 1
	TypeHello Type = 2
	TypeReady Type = 3
	TypePing  Type = 4
	TypePong  Type = 5
	TypeDrain Type = 6
	// FORGET is about a file, but answers nothing: so it has no id, and its number is one of the session's.
	TypeForget Type = 7

	TypeStat  Type = 8
	TypeAttr  Type = 9
	TypeRead  Type = 10
	TypeBytes Type = 11

	TypeHandover Type = 16
	TypeGranted  Type = 17
	TypeRefused  Type = 18
	TypeData     Type = 19
	TypeCredit   Type = 20
	TypeSend     Type = 21
	TypeSent     Type = 22
	TypeEnd      Type = 23
	TypeClose    Type = 24
	TypeClosed   Type = 25
	TypeHandback Type = 26
	TypeTaken    Type = 27
	TypeKeep     Type = 28
	TypeReleased Type = 29
)

// Flags of a frame; their meaning depends on the type.
type Flags uint8

// The one flag that each of these types knows.
const (
	FlagMore    Flags = 1 // DATA: more follows at once, do not push yet
	FlagReturn  Flags = 1 // SEND: hand the connection back afterwards
	FlagStarted Flags = 1 // SENT: bytes of the SEND have reached the socket
	FlagAbort   Flags = 1 // CLOSE: reset the connection now
	FlagMove    Flags = 1 // DRAIN: the VM is about to move to another host
)

// kind is what the format says of one frame type.
type kind struct {
	name    string
	session bool  // id must be 0
	flags   Flags // the flags that may be set
	parse   func([]byte) (Message, error)
}

// kindOf is the table of the format. An empty name marks an unknown type.
func kindOf(t Type) kind {
	switch t {
	case TypeGreet:
		return kind{"GREET", true, 0, func(p []byte) (Message, error) { return ParseGreet(p) }}
	case TypeHello:
		return kind{"HELLO", true, 0, func(p []byte) (Message, error) { return ParseHello(p) }}
	case TypeReady:
		return kind{"READY", true, 0, func(p []byte) (Message, error) { return ParseReady(p) }}
	case TypePing:
		return kind{"PING", true, 0, func(p []byte) (Message, error) { return ParsePing(p) }}
	case TypePong:
		return kind{"PONG", true, 0, func(p []byte) (Message, error) { return ParsePong(p) }}
	case TypeDrain:
		return kind{"DRAIN", true, FlagMove, func(p []byte) (Message, error) { return Drain{}, parseEmpty(p) }}
	case TypeForget:
		return kind{"FORGET", true, 0, func(p []byte) (Message, error) { return ParseForget(p) }}
	case TypeStat:
		return kind{"STAT", false, 0, func(p []byte) (Message, error) { return ParseStat(p) }}
	case TypeAttr:
		return kind{"ATTR", false, 0, func(p []byte) (Message, error) { return ParseAttr(p) }}
	case TypeRead:
		return kind{"READ", false, 0, func(p []byte) (Message, error) { return ParseRead(p) }}
	case TypeBytes:
		return kind{"BYTES", false, 0, func(p []byte) (Message, error) { return ParseBytes(p) }}
	case TypeHandover:
		return kind{"HANDOVER", false, 0, func(p []byte) (Message, error) { return ParseHandover(p) }}
	case TypeGranted:
		return kind{"GRANTED", false, 0, func(p []byte) (Message, error) { return Granted{}, parseEmpty(p) }}
	case TypeRefused:
		return kind{"REFUSED", false, 0, func(p []byte) (Message, error) { return ParseRefused(p) }}
	case TypeData:
		return kind{"DATA", false, FlagMore, func(p []byte) (Message, error) { return ParseData(p) }}
	case TypeCredit:
		return kind{"CREDIT", false, 0, func(p []byte) (Message, error) { return ParseCredit(p) }}
	case TypeSend:
		return kind{"SEND", false, FlagReturn, func(p []byte) (Message, error) { return ParseSend(p) }}
	case TypeSent:
		return kind{"SENT", false, FlagStarted, func(p []byte) (Message, error) { return ParseSent(p) }}
	case TypeEnd:
		return kind{"END", false, 0, func(p []byte) (Message, error) { return End{}, parseEmpty(p) }}
	case TypeClose:
		return kind{"CLOSE", false, FlagAbort, func(p []byte) (Message, error) { return Close{}, parseEmpty(p) }}
	case TypeClosed:
		return kind{"CLOSED", false, 0, func(p []byte) (Message, error) { return ParseClosed(p) }}
	case TypeHandback:
		return kind{"HANDBACK", false, 0, func(p []byte) (Message, error) { return ParseHandback(p) }}
	case TypeTaken:
		return kind{"TAKEN", false, 0, func(p []byte) (Message, error) { return Taken{}, parseEmpty(p) }}
	case TypeKeep:
		return kind{"KEEP", false, 0, func(p []byte) (Message, error) { return ParseKeep(p) }}
	case TypeReleased:
		return kind{"RELEASED", false, 0, func(p []byte) (Message, error) { return ParseReleased(p) }}
	}
	return kind{}
}

func (t Type) String() string {
	if k := kindOf(t); k.name != "" {
		return k.name
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ErrFormat is matched by every error about bytes that break the format.
var ErrFormat = errors.New("wire: bad format")

func badFormat(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Parse decodes the payload of a frame of type t. Byte slices in the message alias payload.
func Parse(t Type, payload []byte) (Message, error) {
	k := kindOf(t)
	if k.name == "" {
		return nil, badFormat("unknown %v", t)
	}
	m, err := k.parse(payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.name, err)
	}
	return m, nil
}

// Reason says why something was refused, failed or ended. docs/wire.md has the table.
type Reason uint16

// Reasons, in the order of their codes.
const (
	ReasonOK Reason = iota
	ReasonOff
	ReasonSmall
	ReasonNotHostFile
	ReasonMPTCP
	ReasonNotEstablished
	ReasonUnreadInput
	ReasonUnacked
	ReasonWindow
	ReasonHostAway
	ReasonDraining
	ReasonLimit
	ReasonAddress
	ReasonShareUnknown
	ReasonNotFound
	ReasonForbidden
	ReasonNotRegular
	ReasonChanged
	ReasonTruncated
	ReasonClientGone
	ReasonClientStalled
	ReasonKernel
	ReasonInvalid
	ReasonClosed
	ReasonSession
	ReasonPath
	ReasonCostly
	reasonLimit
)

var reasonNames = [reasonLimit]string{
	"ok", "off", "small", "not-host-file", "mptcp", "not-established", "unread-input", "unacked", "window", "host-away", "draining", "limit",
	"address", "share-unknown", "not-found", "forbidden", "not-regular", "changed", "truncated", "client-gone", "client-stalled", "kernel",
	"invalid", "closed", "session", "path", "costly",
}

// String is the reason's name in metrics, logs and JSON.
func (r Reason) String() string {
	if r < reasonLimit {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason-%d", uint16(r))
}

// Error makes a Reason usable as an error.
func (r Reason) Error() string { return r.String() }

// Reasons lists every reason but ReasonOK, for a metric that shows them all from the start.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonLimit-1)
	for r := ReasonOK + 1; r < reasonLimit; r++ {
		all = append(all, r)
	}
	return all
}
