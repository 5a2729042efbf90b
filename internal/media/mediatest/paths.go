package mediatest

import (
	"bytes"
	"fmt"
	"net/http"
	"path"
	"strings"
	"testing"
)

func (s *suite) testNotFound(t *testing.T) {
	missing := []string{"/missing.m4s", "/", "", "/" + s.large + "/", "/" + s.large + "/x", "/" + s.large + ".bak", "/nul%00"}
	for _, name := range s.names {
		if dir := path.Dir(name); dir != "." {
			missing = append(missing, "/"+dir, "/"+dir+"/")
		}
	}
	for _, target := range missing {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := s.do(t, method, s.base.Path+target, nil)
			if r.StatusCode != http.StatusNotFound {
				t.Errorf("%s %q: status %d, want 404", method, target, r.StatusCode)
			}
			// The answer names neither a file nor a directory of the server.
			if bytes.ContainsAny(r.body, "/\\") || bytes.Contains(r.body, []byte(path.Base(s.large))) {
				t.Errorf("%s %q: the body leaks a path: %q", method, target, r.body)
			}
			for _, key := range []string{"ETag", "Last-Modified", "Location"} {
				r.expectHeader(t, method+" "+target, key, "")
			}
		}
	}
}

func (s *suite) testEncodedPaths(t *testing.T) {
	for _, name := range s.names {
		var encoded strings.Builder
		for _, b := range []byte(name) {
			if b == '/' {
				encoded.WriteByte(b)
				continue
			}
			fmt.Fprintf(&encoded, "%%%02x", b)
		}
		r := s.do(t, http.MethodGet, s.base.Path+"/"+encoded.String(), nil)
		r.expect(t, encoded.String(), http.StatusOK, s.files[name])
	}
}

// testDotSegments sends targets as they are: no client of the standard library would. A server may refuse them or resolve them
// inside its tree, but nothing outside may come back.
func (s *suite) testDotSegments(t *testing.T) {
	for _, target := range []string{
		"/../../../../../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
		"/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "/x/../../../../../../../../etc/passwd",
		"//etc/passwd", "/%2fetc/passwd", "/./../../../../../etc/passwd", `/..\..\..\..\etc\passwd`,
		"/....//....//....//etc/passwd", "/%252e%252e/%252e%252e/etc/passwd", "/../" + path.Base(s.large) + "/../../etc/passwd",
	} {
		c := s.connect(t)
		c.send("GET %s%s HTTP/1.1\r\nHost: %s\r\n\r\n", s.base.Path, target, s.base.Host)
		r := c.receive(http.MethodGet)
		if r.StatusCode/100 == 2 || bytes.Contains(r.body, []byte("root:")) {
			t.Errorf("%q: status %d, %d bytes came back", target, r.StatusCode, len(r.body))
		}
		c.close()
	}
}
