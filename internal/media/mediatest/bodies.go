package mediatest

import (
	"net/http"
	"strings"
	"testing"
)

// hidden is a request body that looks like a request: it must never be answered.
func (s *suite) hidden() string { return s.request(s.large, "") }

// testRequestBodies sends bodies that nobody wants. The connection lives on behind them or is closed, but the bytes of a body are
// never taken for a request.
func (s *suite) testRequestBodies(t *testing.T) {
	body := s.hidden()
	for _, test := range []struct {
		name, head, body string
		status           int
		want             []byte
	}{
		{"GET with a body", "GET", body, http.StatusOK, s.files[s.small]},
		{"POST", "POST", body, http.StatusMethodNotAllowed, nil},
		{"POST, large", "POST", strings.Repeat(body, 1+(4<<20)/len(body)), http.StatusMethodNotAllowed, nil},
	} {
		for _, chunked := range []bool{false, true} {
			c := s.connect(t)
			sent := make(chan struct{})
			go func() { // the server may answer and close before it has read a large body
				defer close(sent)
				_, _ = c.Write([]byte(s.withBody(test.head, test.body, chunked)))
			}()
			r := c.receive(test.head)
			if r.StatusCode != test.status {
				t.Errorf("%s: status %d, want %d", test.name, r.StatusCode, test.status)
			}
			if test.want != nil {
				r.expect(t, test.name, test.status, test.want)
			}
			if r.Close {
				// Until the server's end has come, and no longer: what is still unsent will never be read.
				c.expectClosed(test.name)
				c.close()
				<-sent
				continue
			}
			<-sent
			c.get(s.small, "")
			c.receive(http.MethodGet).expect(t, test.name+", the next request", http.StatusOK, s.files[s.small])
			c.close()
		}
	}
}

func (s *suite) withBody(method, body string, chunked bool) string {
	var b strings.Builder
	b.WriteString(method + " " + s.target(s.small) + " HTTP/1.1\r\nHost: " + s.base.Host + "\r\n")
	if chunked {
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n" + hex(len(body)) + "\r\n" + body + "\r\n0\r\n\r\n")
	} else {
		b.WriteString("Content-Length: " + decimal(len(body)) + "\r\n\r\n" + body)
	}
	return b.String()
}

func (s *suite) testExpectContinue(t *testing.T) {
	// The body is withheld until the server asks for it, which it has no reason to.
	c := s.connect(t)
	c.send("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", s.target(s.small), s.base.Host)
	r := c.receive(http.MethodPost)
	if r.StatusCode == http.StatusContinue {
		c.send("0123456789")
		r = c.receive(http.MethodPost)
	}
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d, want 405", r.StatusCode)
	}
	c.close()

	// A GET without a body has nothing to wait for.
	c = s.connect(t)
	for range 2 {
		c.get(s.large, "Expect: 100-continue\r\n")
		r = c.receive(http.MethodGet)
		if r.StatusCode == http.StatusContinue {
			r = c.receive(http.MethodGet)
		}
		r.expect(t, "GET", http.StatusOK, s.files[s.large])
	}
	c.close()

	c = s.connect(t)
	c.get(s.small, "Expect: a-miracle\r\n")
	if r := c.receive(http.MethodGet); r.StatusCode != http.StatusExpectationFailed {
		t.Errorf("unknown expectation: status %d, want 417", r.StatusCode)
	}
}

func (s *suite) testMalformed(t *testing.T) {
	host := "Host: " + s.base.Host + "\r\n"
	target := s.target(s.small)
	for _, test := range []struct {
		name, request string
		status        int
	}{
		{"no request line", "nonsense\r\n\r\n", http.StatusBadRequest},
		{"no host", "GET " + target + " HTTP/1.1\r\n\r\n", http.StatusBadRequest},
		{"two lengths", "POST " + target + " HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", http.StatusBadRequest},
		{"space in a field name", "GET " + target + " HTTP/1.1\r\n" + host + "Bad Field: 1\r\n\r\n", http.StatusBadRequest},
		{"bad escape", "GET /%zz HTTP/1.1\r\n" + host + "\r\n", http.StatusBadRequest},
		{"endless header", "GET " + target + " HTTP/1.1\r\n" + host + "A: " + strings.Repeat("a", 128<<10) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		c := s.connect(t)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = c.Write([]byte(test.request))
		}()
		r := c.receive(http.MethodGet)
		if r.StatusCode != test.status {
			t.Errorf("%s: status %d, want %d", test.name, r.StatusCode, test.status)
		}
		c.expectClosed(test.name)
		c.close()
		<-sent
	}
}
