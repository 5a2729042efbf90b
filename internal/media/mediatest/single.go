package mediatest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// checkFileHeader checks what every answer about a file must carry.
func checkFileHeader(t *testing.T, what, name string, r response, length int) {
	t.Helper()
	r.expectHeader(t, what, "Content-Type", wantContentType(name))
	r.expectHeader(t, what, "Accept-Ranges", "bytes")
	r.expectHeader(t, what, "Content-Length", strconv.Itoa(length))
	etag := r.Header.Get("ETag")
	if len(etag) < 3 || !strings.HasPrefix(etag, `"`) || !strings.HasSuffix(etag, `"`) {
		t.Errorf("%s: ETag is %q, want a strong one", what, etag)
	}
	if _, err := http.ParseTime(r.Header.Get("Last-Modified")); err != nil {
		t.Errorf("%s: Last-Modified: %v", what, err)
	}
	if _, err := http.ParseTime(r.Header.Get("Date")); err != nil {
		t.Errorf("%s: Date: %v", what, err)
	}
}

func (s *suite) testGet(t *testing.T) {
	etags := map[string]string{}
	for _, name := range s.names {
		r := s.do(t, http.MethodGet, s.target(name), nil)
		r.expect(t, name, http.StatusOK, s.files[name])
		checkFileHeader(t, name, name, r, len(s.files[name]))
		etags[name] = r.Header.Get("ETag")
		// Again, and with a query, which is not part of the name.
		again := s.do(t, http.MethodGet, s.target(name)+"?token=1", nil)
		again.expect(t, name+" again", http.StatusOK, s.files[name])
		again.expectHeader(t, name+" again", "ETag", etags[name])
	}
}

func (s *suite) testHead(t *testing.T) {
	for _, name := range s.names {
		r := s.do(t, http.MethodHead, s.target(name), nil)
		r.expect(t, name, http.StatusOK, nil)
		checkFileHeader(t, name, name, r, len(s.files[name]))
	}
	// RFC 9110, section 14.2: a range on anything but GET is ignored.
	r := s.do(t, http.MethodHead, s.target(s.large), http.Header{"Range": {"bytes=0-9"}})
	r.expect(t, "HEAD with a range", http.StatusOK, nil)
	checkFileHeader(t, "HEAD with a range", s.large, r, len(s.files[s.large]))
}

func (s *suite) testRanges(t *testing.T) {
	content := s.files[s.large]
	n := len(content)
	part := func(from, to int) (int, []byte, string) { // to is inclusive
		return http.StatusPartialContent, content[from : to+1], fmt.Sprintf("bytes %d-%d/%d", from, to, n)
	}
	whole := func() (int, []byte, string) { return http.StatusOK, content, "" }
	for _, c := range []struct {
		header string
		want   func() (int, []byte, string)
	}{
		{"bytes=0-0", func() (int, []byte, string) { return part(0, 0) }},
		{"bytes=0-499", func() (int, []byte, string) { return part(0, 499) }},
		{"bytes=500-799", func() (int, []byte, string) { return part(500, 799) }},
		{fmt.Sprintf("bytes=%d-%d", n/3, 2*n/3), func() (int, []byte, string) { return part(n/3, 2*n/3) }},
		{fmt.Sprintf("bytes=%d-", n/2), func() (int, []byte, string) { return part(n/2, n-1) }},
		{"bytes=0-", func() (int, []byte, string) { return part(0, n-1) }},
		{"bytes=-1", func() (int, []byte, string) { return part(n-1, n-1) }},
		{"bytes=-700", func() (int, []byte, string) { return part(n-700, n-1) }},
		{fmt.Sprintf("bytes=-%d", n+1000), func() (int, []byte, string) { return part(0, n-1) }},
		{fmt.Sprintf("bytes=%d-%d", n-10, n+1000), func() (int, []byte, string) { return part(n-10, n-1) }},
		// Longer than any integer: RFC 9110, section 14.1.2, sets no limit.
		{"bytes=7-99999999999999999999", func() (int, []byte, string) { return part(7, n-1) }},
		{"bytes=-99999999999999999999", func() (int, []byte, string) { return part(0, n-1) }},
		{"BYTES=0-9", func() (int, []byte, string) { return part(0, 9) }},
		{"bytes=0-9,20-29", whole},
		{"bytes=0-9,-1,5-6", whole},
		{"segments=0-9", whole},
		{"", whole},
	} {
		status, body, contentRange := c.want()
		var header http.Header
		if c.header != "" {
			header = http.Header{"Range": {c.header}}
		}
		what := fmt.Sprintf("Range %q", c.header)
		r := s.do(t, http.MethodGet, s.target(s.large), header)
		r.expect(t, what, status, body)
		r.expectHeader(t, what, "Content-Range", contentRange)
		checkFileHeader(t, what, s.large, r, len(body))
	}
	s.testUnsatisfiableRanges(t, n)
}

func (s *suite) testUnsatisfiableRanges(t *testing.T, n int) {
	for _, header := range []string{
		fmt.Sprintf("bytes=%d-", n), fmt.Sprintf("bytes=%d-%d", n+5, n+10), "bytes=-0", "bytes=99999999999999999999-",
	} {
		r := s.do(t, http.MethodGet, s.target(s.large), http.Header{"Range": {header}})
		if r.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("Range %q: status %d, want 416", header, r.StatusCode)
		}
		r.expectHeader(t, header, "Content-Range", fmt.Sprintf("bytes */%d", n))
	}
	// RFC 9110, section 14.2: what is no range may be rejected or ignored.
	for _, header := range []string{"bytes=9-0", "bytes=a-b", "bytes=-", "bytes=--5", "bytes=0x1-2", "bytes"} {
		r := s.do(t, http.MethodGet, s.target(s.large), http.Header{"Range": {header}})
		switch r.StatusCode {
		case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest:
		default:
			r.expect(t, fmt.Sprintf("Range %q", header), http.StatusOK, s.files[s.large])
		}
	}
}

func (s *suite) testConditions(t *testing.T) {
	first := s.do(t, http.MethodHead, s.target(s.large), nil)
	etag, modified := first.Header.Get("ETag"), first.Header.Get("Last-Modified")
	at, err := http.ParseTime(modified)
	if err != nil {
		t.Fatalf("Last-Modified: %v", err)
	}
	earlier, later := at.Add(-time.Hour).UTC().Format(http.TimeFormat), at.Add(time.Hour).UTC().Format(http.TimeFormat)
	const ok, same, failed = http.StatusOK, http.StatusNotModified, http.StatusPreconditionFailed
	for _, c := range []struct {
		name   string
		header http.Header
		want   int
	}{
		{"If-None-Match, same", http.Header{"If-None-Match": {etag}}, same},
		{"If-None-Match, weak", http.Header{"If-None-Match": {"W/" + etag}}, same},
		{"If-None-Match, in a list", http.Header{"If-None-Match": {`"x", ` + etag + `, "y"`}}, same},
		{"If-None-Match, any", http.Header{"If-None-Match": {"*"}}, same},
		{"If-None-Match, other", http.Header{"If-None-Match": {`"other"`}}, ok},
		{"If-None-Match before If-Modified-Since", http.Header{"If-None-Match": {`"other"`}, "If-Modified-Since": {later}}, ok},
		{"If-Modified-Since, same", http.Header{"If-Modified-Since": {modified}}, same},
		{"If-Modified-Since, later", http.Header{"If-Modified-Since": {later}}, same},
		{"If-Modified-Since, earlier", http.Header{"If-Modified-Since": {earlier}}, ok},
		{"If-Modified-Since, no date", http.Header{"If-Modified-Since": {"yesterday"}}, ok},
		{"If-Match, same", http.Header{"If-Match": {etag}}, ok},
		{"If-Match, any", http.Header{"If-Match": {"*"}}, ok},
		{"If-Match, other", http.Header{"If-Match": {`"other"`}}, failed},
		{"If-Match, weak", http.Header{"If-Match": {"W/" + etag}}, failed},
		{"If-Unmodified-Since, same", http.Header{"If-Unmodified-Since": {modified}}, ok},
		{"If-Unmodified-Since, earlier", http.Header{"If-Unmodified-Since": {earlier}}, failed},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			what := method + " " + c.name
			var body []byte
			if c.want == ok && method == http.MethodGet {
				body = s.files[s.large]
			}
			r := s.do(t, method, s.target(s.large), c.header)
			r.expect(t, what, c.want, body)
			if c.want == same {
				r.expectHeader(t, what, "ETag", etag)
			}
		}
	}
}

func (s *suite) testIfRange(t *testing.T) {
	first := s.do(t, http.MethodHead, s.target(s.large), nil)
	etag, modified := first.Header.Get("ETag"), first.Header.Get("Last-Modified")
	content := s.files[s.large]
	for _, c := range []struct {
		name, value string
		partial     bool
	}{
		{"same ETag", etag, true},
		{"other ETag", `"other"`, false},
		{"weak ETag", "W/" + etag, false},
		{"same date", modified, true},
		{"other date", "Thu, 01 Jan 1970 00:00:01 GMT", false},
		{"nonsense", "nonsense", false},
	} {
		r := s.do(t, http.MethodGet, s.target(s.large), http.Header{"Range": {"bytes=100-199"}, "If-Range": {c.value}})
		if c.partial {
			r.expect(t, c.name, http.StatusPartialContent, content[100:200])
		} else {
			r.expect(t, c.name, http.StatusOK, content)
		}
	}
	// A condition that holds stands before the range.
	r := s.do(t, http.MethodGet, s.target(s.large), http.Header{"Range": {"bytes=0-9"}, "If-None-Match": {etag}})
	r.expect(t, "range and If-None-Match", http.StatusNotModified, nil)
}

func (s *suite) testMethods(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get"} {
		r := s.do(t, method, s.target(s.small), nil)
		if r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d, want 405", method, r.StatusCode)
		}
		r.expectHeader(t, method, "Allow", "GET, HEAD")
	}
	s.do(t, http.MethodGet, s.target(s.small), nil).expect(t, "afterwards", http.StatusOK, s.files[s.small])
}
