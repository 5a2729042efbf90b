package wire

import (
	"fmt"

	"spillway/internal/tcpstate"
)

// Each ParseX decodes the payload of a frame of type X. They are exported so that the hot path needs no Message interface.

func parseEmpty(p []byte) error {
	if len(p) != 0 {
		return badFormat("%d bytes of payload where none may be", len(p))
	}
	return nil
}

func parseReason(p []byte) (Reason, error) {
	d := decoder{b: p}
	r := d.reason()
	return r, d.end()
}

func parseMagic(p []byte, magic string) (uint16, decoder, error) {
	d := decoder{b: p}
	if string(d.take(magicSize)) != magic {
		return 0, d, badFormat("no magic")
	}
	version := d.u16() // before d is copied
	return version, d, nil
}

// ParseGreet decodes GREET.
func ParseGreet(p []byte) (Greet, error) {
	v, d, err := parseMagic(p, magicGreet)
	if err != nil {
		return Greet{}, err
	}
	return Greet{v}, d.end()
}

// ParseReady decodes READY.
func ParseReady(p []byte) (Ready, error) {
	v, d, err := parseMagic(p, magicReady)
	if err != nil {
		return Ready{}, err
	}
	return Ready{v}, d.end()
}

// ParseHello decodes HELLO.
func ParseHello(p []byte) (Hello, error) {
	v, d, err := parseMagic(p, magicHello)
	if err != nil {
		return Hello{}, err
	}
	m := Hello{Version: v, Window: d.u32(), MaxLeases: d.u32()}
	return m, d.end()
}

// ParsePing decodes PING.
func ParsePing(p []byte) (Ping, error) {
	d := decoder{b: p}
	m := Ping{d.u64()}
	return m, d.end()
}

// ParsePong decodes PONG.
func ParsePong(p []byte) (Pong, error) {
	d := decoder{b: p}
	m := Pong{d.u64()}
	return m, d.end()
}

// ParseForget decodes FORGET.
func ParseForget(p []byte) (Forget, error) {
	d := decoder{b: p}
	m := Forget{Share: d.share(), Path: d.path()}
	return m, d.end()
}

// ParseStat decodes STAT.
func ParseStat(p []byte) (Stat, error) {
	d := decoder{b: p}
	m := Stat{Share: d.share(), Path: d.path()}
	return m, d.end()
}

// ParseAttr decodes ATTR.
func ParseAttr(p []byte) (Attr, error) {
	d := decoder{b: p}
	m := Attr{Reason: d.reason(), Size: d.i64(), MTime: d.i64()}
	switch {
	case d.err != nil:
	case m.Size < 0:
		return m, badFormat("size %d", m.Size)
	case m.Reason != ReasonOK && (m.Size != 0 || m.MTime != 0):
		return m, badFormat("attributes beside the reason %v", m.Reason)
	}
	return m, d.end()
}

// ParseRead decodes READ.
func ParseRead(p []byte) (Read, error) {
	d := decoder{b: p}
	m := Read{File: d.ref(), Offset: d.i64(), Count: d.u32()}
	if err := d.end(); err != nil {
		return m, err
	}
	if m.Count == 0 || m.Count > MaxRead {
		return m, badFormat("count %d is outside 1…%d", m.Count, MaxRead)
	}
	return m, checkRange(m.File, m.Offset, int64(m.Count))
}

// ParseBytes decodes BYTES. Data aliases p.
func ParseBytes(p []byte) (Bytes, error) {
	d := decoder{b: p}
	m := Bytes{Reason: d.reason()}
	d.zero(2)
	m.Data = d.rest()
	if len(m.Data) > MaxRead {
		return m, badFormat("%d bytes, at most %d", len(m.Data), MaxRead)
	}
	return m, d.err
}

// ParseHandover decodes HANDOVER; the state is checked (tcpstate.Check).
func ParseHandover(p []byte) (Handover, error) {
	d := decoder{b: p}
	m := Handover{State: d.state()}
	return m, d.end()
}

// ParseRefused decodes REFUSED.
func ParseRefused(p []byte) (Refused, error) {
	r, err := parseReason(p)
	return Refused{r}, err
}

// ParseData decodes DATA. Data aliases p.
func ParseData(p []byte) (Data, error) {
	switch {
	case len(p) == 0:
		return Data{}, badFormat("no data")
	case len(p) > MaxData:
		return Data{}, badFormat("%d bytes of data, at most %d", len(p), MaxData)
	}
	return Data{p}, nil
}

// ParseCredit decodes CREDIT.
func ParseCredit(p []byte) (Credit, error) {
	d := decoder{b: p}
	m := Credit{d.u32()}
	return m, d.end()
}

// ParseSend decodes SEND. Header aliases p.
func ParseSend(p []byte) (Send, error) {
	d := decoder{b: p}
	m := Send{File: d.ref(), Offset: d.i64(), Count: d.i64(), Header: d.rest()}
	if d.err != nil {
		return m, d.err
	}
	if len(m.Header) > MaxSendHeader {
		return m, badFormat("%d header bytes, at most %d", len(m.Header), MaxSendHeader)
	}
	if m.Count < 0 || m.Count > m.File.Size-m.Offset {
		return m, badFormat("range %d+%d is outside the file's %d bytes", m.Offset, m.Count, m.File.Size)
	}
	return m, checkRange(m.File, m.Offset, m.Count)
}

// ParseSent decodes SENT.
func ParseSent(p []byte) (Sent, error) {
	d := decoder{b: p}
	m := Sent{Reason: d.reason()}
	d.zero(2)
	m.Bytes = d.i64()
	if d.err == nil && m.Bytes < 0 {
		return m, badFormat("%d bytes sent", m.Bytes)
	}
	return m, d.end()
}

// ParseClosed decodes CLOSED.
func ParseClosed(p []byte) (Closed, error) {
	r, err := parseReason(p)
	return Closed{r}, err
}

// ParseHandback decodes HANDBACK; the state is checked. Said aliases p.
func ParseHandback(p []byte) (Handback, error) {
	d := decoder{b: p}
	m := Handback{State: d.state(), Data: d.u64(), Sent: d.i64(), Said: d.rest()}
	switch {
	case d.err != nil:
		return m, d.err
	case m.Sent < -1:
		return m, badFormat("%d bytes sent", m.Sent)
	case len(m.Said) > MaxSaid:
		return m, badFormat("%d bytes of the client's, at most %d", len(m.Said), MaxSaid)
	}
	return m, nil
}

// ParseKeep decodes KEEP.
func ParseKeep(p []byte) (Keep, error) {
	r, err := parseReason(p)
	return Keep{r}, err
}

// ParseReleased decodes RELEASED.
func ParseReleased(p []byte) (Released, error) {
	d := decoder{b: p}
	m := Released{tcpstate.PeerWindow{SndWl1: d.u32(), SndWnd: d.u32(), MaxWindow: d.u32()}, d.u64()}
	if w := &m.Window; d.err == nil && w.MaxWindow < w.SndWnd {
		return m, badFormat("window %d exceeds its maximum %d", w.SndWnd, w.MaxWindow)
	}
	return m, d.end()
}

func checkRange(f FileRef, off, count int64) error {
	if f.Size < 0 || off < 0 || count < 0 || off > f.Size {
		return badFormat("range %d+%d of a file of %d bytes", off, count, f.Size)
	}
	return nil
}

func (d *decoder) ref() FileRef {
	f := FileRef{Share: d.share(), Path: d.path(), Size: d.i64(), MTime: d.i64()}
	if d.err == nil && f.Size < 0 {
		d.err = badFormat("file size %d", f.Size)
	}
	return f
}

func (d *decoder) share() string {
	s := string(d.take(int(d.u8())))
	if d.err == nil && !ValidShare(s) {
		d.err = badFormat("share name of %d bytes, 1…%d", len(s), MaxShare)
	}
	return s
}

func (d *decoder) path() string {
	n := int(d.u16())
	if d.err == nil && n > MaxPath {
		d.err = badFormat("path of %d bytes, at most %d", n, MaxPath)
	}
	s := string(d.take(n))
	if d.err == nil && !ValidPath(s) {
		d.err = fmt.Errorf("%w: path %q is not relative and clean", ErrFormat, s)
	}
	return s
}

func (d *decoder) reason() Reason {
	r := Reason(d.u16())
	if d.err == nil && r >= reasonLimit {
		d.err = badFormat("unknown reason %d", r)
	}
	return r
}
