package mediatest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// rawConn is one TCP connection on which the suite writes its requests byte for byte.
type rawConn struct {
	net.Conn
	t *testing.T
	s *suite
	r *bufio.Reader
}

func (s *suite) connect(t *testing.T) *rawConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addr := s.base.Host
	if s.base.Port() == "" {
		addr = net.JoinHostPort(s.base.Hostname(), "80")
	}
	conn, err := s.dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &rawConn{Conn: conn, t: t, s: s, r: bufio.NewReader(conn)}
}

func (c *rawConn) close() { c.Conn.Close() }

func (c *rawConn) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.Conn, format, args...); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// get sends a GET; fields are complete header lines, each with its CRLF.
func (c *rawConn) get(name, fields string) { c.t.Helper(); c.send("%s", c.s.request(name, fields)) }

func (s *suite) request(name, fields string) string {
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", s.target(name), s.base.Host, fields)
}

func (c *rawConn) receive(method string) response {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read body after %d bytes: %v", len(body), err)
	}
	return response{resp, body}
}

// expectClosed checks that the server sends no more bytes and closes.
func (c *rawConn) expectClosed(what string) {
	c.t.Helper()
	n, err := io.Copy(io.Discard, c.r)
	if n != 0 {
		c.t.Errorf("%s: %d bytes behind the last response", what, n)
	}
	// A server that closes with unread input resets the connection.
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		c.t.Errorf("%s: the connection was not closed: %v", what, err)
	}
}
