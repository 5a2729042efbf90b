package mediatest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// testKeepAlive sends all kinds of requests over one connection.
func (s *suite) testKeepAlive(t *testing.T) {
	c := s.connect(t)
	for round := range 3 {
		for _, name := range s.names {
			what := fmt.Sprintf("round %d, %s", round, name)
			c.get(name, "")
			whole := c.receive(http.MethodGet)
			whole.expect(t, what, http.StatusOK, s.files[name])

			c.get(name, "If-None-Match: "+whole.Header.Get("ETag")+"\r\n")
			c.receive(http.MethodGet).expect(t, what+" unchanged", http.StatusNotModified, nil)

			c.send("HEAD %s HTTP/1.1\r\nHost: %s\r\n\r\n", s.target(name), s.base.Host)
			c.receive(http.MethodHead).expect(t, what+" HEAD", http.StatusOK, nil)
		}
		c.get(s.large, "Range: bytes=300-\r\n")
		c.receive(http.MethodGet).expect(t, "range", http.StatusPartialContent, s.files[s.large][300:])

		c.get("missing", "")
		if r := c.receive(http.MethodGet); r.StatusCode != http.StatusNotFound || r.Close {
			t.Errorf("missing file: status %d, connection closed: %v", r.StatusCode, r.Close)
		}
		c.get(s.large, "Range: bytes=99999999999-\r\n")
		if r := c.receive(http.MethodGet); r.StatusCode != http.StatusRequestedRangeNotSatisfiable || r.Close {
			t.Errorf("range beyond the end: status %d, connection closed: %v", r.StatusCode, r.Close)
		}
	}
}

// pipelined is a series of requests and what must come back, in the same order.
func (s *suite) pipelined() (requests string, check func(c *rawConn)) {
	var b strings.Builder
	const rounds = 3
	for range rounds {
		for _, name := range s.names {
			b.WriteString(s.request(name, ""))
		}
		b.WriteString(s.request(s.large, "Range: bytes=10-509\r\n"))
		b.WriteString(s.request("missing", ""))
	}
	return b.String(), func(c *rawConn) {
		c.t.Helper()
		for round := range rounds {
			for _, name := range s.names {
				c.receive(http.MethodGet).expect(c.t, fmt.Sprintf("round %d, %s", round, name), http.StatusOK, s.files[name])
			}
			c.receive(http.MethodGet).expect(c.t, "range", http.StatusPartialContent, s.files[s.large][10:510])
			if r := c.receive(http.MethodGet); r.StatusCode != http.StatusNotFound {
				c.t.Errorf("missing file: status %d", r.StatusCode)
			}
		}
	}
}

func (s *suite) testPipeline(t *testing.T) {
	requests, check := s.pipelined()
	c := s.connect(t)
	c.send("%s", requests)
	check(c)
	c.get(s.small, "")
	c.receive(http.MethodGet).expect(t, "after the pipeline", http.StatusOK, s.files[s.small])
}

// testPipelineInPieces cuts the requests where no request ends, while responses are under way.
func (s *suite) testPipelineInPieces(t *testing.T) {
	requests, check := s.pipelined()
	c := s.connect(t)
	sent := make(chan error, 1)
	go func() {
		const pieceBytes = 37
		for len(requests) > 0 {
			n := min(pieceBytes, len(requests))
			if _, err := io.WriteString(c.Conn, requests[:n]); err != nil {
				sent <- err
				return
			}
			requests = requests[n:]
		}
		sent <- nil
	}()
	check(c)
	if err := <-sent; err != nil {
		t.Errorf("send: %v", err)
	}
}

func (s *suite) testConnectionClose(t *testing.T) {
	for _, name := range []string{s.small, s.large} {
		c := s.connect(t)
		c.get(name, "Connection: close\r\n")
		r := c.receive(http.MethodGet)
		r.expect(t, name, http.StatusOK, s.files[name])
		if !r.Close {
			t.Errorf("%s: no Connection: close in the answer", name)
		}
		c.expectClosed(name)
	}
}

// testHalfClose sends FIN behind the request: the answer must come whole all the same.
func (s *suite) testHalfClose(t *testing.T) {
	for _, name := range []string{s.small, s.large} {
		c := s.connect(t)
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok {
			t.Fatalf("mediatest: the client's connections (%T) cannot be half-closed", c.Conn)
		}
		c.get(name, "")
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.receive(http.MethodGet).expect(t, name, http.StatusOK, s.files[name])
		c.expectClosed(name)
	}
}

func (s *suite) testHTTP10(t *testing.T) {
	for _, name := range []string{s.small, s.large} {
		c := s.connect(t)
		c.send("GET %s HTTP/1.0\r\n\r\n", s.target(name))
		r := c.receive(http.MethodGet)
		r.expect(t, name, http.StatusOK, s.files[name])
		if len(r.TransferEncoding) != 0 {
			t.Errorf("%s: transfer encoding %v for an HTTP/1.0 client", name, r.TransferEncoding)
		}
		c.expectClosed(name)

		c = s.connect(t)
		for range 3 {
			c.send("GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", s.target(name))
			r := c.receive(http.MethodGet)
			r.expect(t, name+" keep-alive", http.StatusOK, s.files[name])
			if got := r.Header.Get("Connection"); !strings.EqualFold(got, "keep-alive") {
				t.Fatalf("%s: Connection is %q, want keep-alive", name, got)
			}
		}
		c.close()
	}
}
