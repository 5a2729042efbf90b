package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Opcodes of RFC 6455, section 5.2.
const (
	wsContinuation = 0x0
	wsText         = 0x1
	wsBinary       = 0x2
	wsClose        = 0x8
	wsPing         = 0x9
	wsPong         = 0xa
)

// wsKey is a client's Sec-WebSocket-Key; any 16 bytes would do.
var wsKey = base64.StdEncoding.EncodeToString([]byte("sixteen bytes of"))

// wsAccept is the server's answer to a key (section 4.2.2).
func wsAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// wsFrame is one frame.
type wsFrame struct {
	final   bool
	opcode  byte
	payload []byte
}

// maxWSFrame bounds what a test receives. Bytes.
const maxWSFrame = 8 << 20

// wsRead reads a frame, masked or not (section 5.2).
func wsRead(r io.Reader) (f wsFrame, err error) {
	var head [2]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	f.final, f.opcode = head[0]&0x80 != 0, head[0]&0x0f
	length := uint64(head[1] & 0x7f)
	if more := map[uint64]int{126: 2, 127: 8}[length]; more > 0 {
		var long [8]byte
		if _, err = io.ReadFull(r, long[8-more:]); err != nil {
			return f, err
		}
		length = binary.BigEndian.Uint64(long[:])
	}
	if length > maxWSFrame {
		return f, fmt.Errorf("a frame of %d bytes", length)
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err = io.ReadFull(r, mask[:]); err != nil {
			return f, err
		}
	}
	f.payload = make([]byte, length)
	_, err = io.ReadFull(r, f.payload)
	for i := range f.payload {
		f.payload[i] ^= mask[i%4]
	}
	return f, err
}

// wsAppend encodes a frame; a client's is masked.
func wsAppend(b []byte, f wsFrame, masked bool) []byte {
	first, mask := f.opcode, byte(0)
	if f.final {
		first |= 0x80
	}
	if masked {
		mask = 0x80
	}
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, first, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, first, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, first, mask|127), uint64(n))
	}
	if !masked {
		return append(b, f.payload...)
	}
	key := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, key[:]...)
	for i, c := range f.payload {
		b = append(b, c^key[i%4])
	}
	return b
}

// serveWebSocket echoes messages, answers pings, and closes when it is asked to.
func (s *trafficServer) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		wsAccept(r.Header.Get("Sec-WebSocket-Key")))
	if err := rw.Flush(); err != nil {
		return
	}
	for {
		f, err := wsRead(rw)
		if err != nil {
			s.note(r.URL.Query().Get("note"), "read: %s", kindOf(err))
			return
		}
		if f.opcode == wsPing {
			f.opcode = wsPong
		}
		if _, err := conn.Write(wsAppend(nil, f, false)); err != nil || f.opcode == wsClose {
			s.note(r.URL.Query().Get("note"), "opcode %d, write: %s", f.opcode, kindOf(err))
			return
		}
	}
}

// webSocketScenario: messages of all lengths, in fragments, pings between them, one after the other and all at once, and a close.
func webSocketScenario(e *exchange) {
	c := e.connect()
	c.send("GET /websocket?note=" + e.key + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: " + wsKey + "\r\n\r\n")
	resp, err := c.header(http.MethodGet)
	if err != nil {
		e.saw("no upgrade: %s", kindOf(err))
		return
	}
	e.saw("%s, right accept: %v", resp.Status, resp.Header.Get("Sec-WebSocket-Accept") == wsAccept(wsKey))
	frames := []wsFrame{
		{true, wsText, []byte("hello")},
		{true, wsPing, []byte("are you there?")},
		{false, wsBinary, bytes.Repeat([]byte("part 1 "), 1000)},
		{true, wsPing, nil},
		{true, wsContinuation, bytes.Repeat([]byte("part 2 "), 50_000)},
		{true, wsText, bytes.Repeat([]byte("m"), 125)},
		{true, wsText, bytes.Repeat([]byte("n"), 126)},
		{true, wsBinary, bytes.Repeat([]byte("big "), 1<<18)},
	}
	for _, f := range frames {
		c.sendFrames(f)
		e.saw("%s", c.takeFrame(f))
	}
	go c.sendFrames(frames...)
	for _, f := range frames {
		e.saw("%s", c.takeFrame(f))
	}
	last := wsFrame{true, wsClose, []byte{0x03, 0xe8}} // 1000, section 7.4.1
	c.sendFrames(last)
	e.saw("%s", c.takeFrame(last))
	c.expectClosed()
	e.sawNotes(1)
}

func (c *client) sendFrames(frames ...wsFrame) {
	w := bufio.NewWriterSize(c.TCPConn, 64<<10)
	for _, f := range frames {
		_, _ = w.Write(wsAppend(nil, f, true)) // Flush has the error
	}
	if err := w.Flush(); err != nil {
		c.t.Errorf("send frames: %v", err)
	}
}

// takeFrame reads the echo of a frame.
func (c *client) takeFrame(sent wsFrame) string {
	f, err := wsRead(c.r)
	var wrong []string
	if !bytes.Equal(f.payload, sent.payload) {
		wrong = append(wrong, "wrong bytes")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		wrong = append(wrong, kindOf(err))
	}
	return fmt.Sprintf("opcode %d, %d bytes %s", f.opcode, len(f.payload), strings.Join(wrong, ", "))
}
