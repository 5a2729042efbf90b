package guest

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestHeadBody(t *testing.T) {
	const missing = -1 // not a head that is worth holding back
	head := func(lines ...string) string {
		return strings.Join(append([]string{"HTTP/1.1 200 OK"}, lines...), "\r\n") + "\r\n\r\n"
	}
	for _, c := range []struct {
		name string
		in   string
		want int64
	}{
		{"length declared", head("Content-Length: 1000"), 1000},
		{"other headers around it", head("Date: now", "Content-Length: 7", "X: y"), 7},
		{"any case, any space", head("content-LENGTH:\t 12 "), 12},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 5},
		{"no reason phrase", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", 5},
		{"a part of the body is in it", head("Content-Length: 10") + "0123", 6},
		{"the whole body is in it", head("Content-Length: 4") + "0123", missing},
		{"more than the body is in it", head("Content-Length: 3") + "0123", missing},
		{"huge", head("Content-Length: 9223372036854775807"), 9223372036854775807},
		{"beyond int64", head("Content-Length: 9223372036854775808"), missing},
		{"zero", head("Content-Length: 0"), missing},
		{"negative", head("Content-Length: -5"), missing},
		{"empty value", head("Content-Length:"), missing},
		{"no number", head("Content-Length: 5, 5"), missing},
		{"twice", head("Content-Length: 5", "Content-Length: 5"), missing},
		{"chunked", head("Transfer-Encoding: chunked"), missing},
		{"no header at all", "HTTP/1.1 200 OK\r\n\r\n", missing},
		{"100 Continue", "HTTP/1.1 100 Continue\r\n\r\n", missing},
		{"103 Early Hints", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", missing},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", missing},
		{"304", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", missing},
		{"partial", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", missing},
		{"line feeds only", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", missing},
		{"a request", "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", missing},
		{"HTTP/2", "HTTP/2 200\r\nContent-Length: 5\r\n\r\n", missing},
		{"the length is in the body", head("Date: now") + "Content-Length: 5\r\n\r\n", missing},
		{"a name that ends like it", head("X-Content-Length: 5"), missing},
		{"as long as can be held", head("Content-Length: 100000", "X: "+strings.Repeat("x", maxHead-len(head("Content-Length: 100000", "X: ")))), 100000},
		{"too long to be held", head("Content-Length: 100000", "X: "+strings.Repeat("x", 1+maxHead-len(head("Content-Length: 100000", "X: ")))), missing},
		{"media", "a body that begins like HTTP/1.1", missing},
		{"empty", "", missing},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := headBody([]byte(c.in))
			if ok != (c.want != missing) || ok && got != c.want {
				t.Errorf("headBody = %d, %v, want %d", got, ok, c.want)
			}
		})
	}
}

// FuzzHeadBody holds headBody against net/http's parser: whatever it takes for the head of a response must be one with this length, since its bytes
// are held back until the body comes.
func FuzzHeadBody(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\n\r\n0123", "HTTP/1.0 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		missing, ok := headBody(b)
		if !ok {
			return
		}
		if missing <= 0 || len(b) > maxHead {
			t.Fatalf("%d bytes, of which %d are missing", len(b), missing)
		}
		_, body, _ := bytes.Cut(b, []byte("\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(b))), nil)
		if err != nil {
			return // a server may write what a client refuses
		}
		if resp.ContentLength >= 0 && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusNotModified &&
			resp.StatusCode/100 != 1 && resp.ContentLength != int64(len(body))+missing {
			t.Fatalf("net/http reads a length of %d, headBody of %d", resp.ContentLength, int64(len(body))+missing)
		}
	})
}
