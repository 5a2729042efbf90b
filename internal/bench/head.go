package bench

import (
	"bytes"
	"fmt"
	"strconv"
)

// head is what a client must know of a response's header.
type head struct {
	status  int
	length  int64 // of the body
	closing bool  // the server closes the connection behind the body
}

// readHead reads up to the end of a final response's header; informational responses (1xx) are skipped.
func (x *exchange) readHead() (head, error) {
	c := x.c
	for {
		end := bytes.Index(c.buf[c.begin:c.end], []byte("\r\n\r\n"))
		if end < 0 {
			if err := x.fill(); err != nil {
				return head{}, err
			}
			continue
		}
		h, err := parseHead(c.buf[c.begin : c.begin+end])
		c.begin += end + len("\r\n\r\n")
		if err != nil || h.status >= 200 {
			return h, err
		}
	}
}

// parseHead reads a status line and fields, without the empty line behind them (RFC 9112, sections 4 and 5).
func parseHead(b []byte) (head, error) {
	line, fields, _ := bytes.Cut(b, []byte("\r\n"))
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	status, err := strconv.Atoi(string(code))
	if !bytes.HasPrefix(version, []byte("HTTP/1.")) || err != nil || len(code) != 3 {
		return head{}, fmt.Errorf("%w: status line %.80q", ErrMalformed, line)
	}
	h := head{status: status, length: -1, closing: string(version) == "HTTP/1.0"}
	for len(fields) > 0 {
		line, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return head{}, fmt.Errorf("%w: field %.80q", ErrMalformed, line)
		}
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || n < 0 || (h.length >= 0 && h.length != n) {
				return head{}, fmt.Errorf("%w: Content-Length %.80q", ErrMalformed, value)
			}
			h.length = n
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			return head{}, fmt.Errorf("%w but with Transfer-Encoding %.80q", ErrNoLength, value)
		case bytes.EqualFold(name, []byte("Connection")):
			h.closing = bytes.EqualFold(value, []byte("close"))
		}
	}
	const noContent, notModified = 204, 304
	switch {
	case status < 200 || status == noContent || status == notModified:
		h.length = 0
	case h.length < 0:
		return head{}, ErrNoLength
	}
	return h, nil
}
