// Package mediatest is the conformance suite of a media server over HTTP/1.1. Every arm (a server on bare metal, in a guest, with
// each response handed over, with the connection leased) must pass the same cases, because a client must not see the difference.
//
// It belongs to tests only. It needs no capability; the caller's client decides from which network it speaks.
package mediatest

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience bounds each step. It is no measure of speed: only a hang reaches it.
const patience = time.Minute

// MinLargestBytes is what the largest of the files given to [Run] must at least have, so that ranges have a middle.
const MinLargestBytes = 1000

// Run checks the server at baseURL, which must serve exactly the given files beneath it (slash-separated name → content), at least
// two of them. The client's transport must be an *http.Transport or nil; connections that the suite speaks HTTP on by itself are
// dialled with its DialContext.
func Run(t *testing.T, baseURL string, client *http.Client, files map[string][]byte) {
	t.Helper()
	s := newSuite(t, baseURL, client, files)
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"get", s.testGet},
		{"head", s.testHead},
		{"ranges", s.testRanges},
		{"conditions", s.testConditions},
		{"if-range", s.testIfRange},
		{"keep-alive", s.testKeepAlive},
		{"pipeline", s.testPipeline},
		{"pipeline in pieces", s.testPipelineInPieces},
		{"connection close", s.testConnectionClose},
		{"half-close", s.testHalfClose},
		{"HTTP 1.0", s.testHTTP10},
		{"request bodies", s.testRequestBodies},
		{"expect 100-continue", s.testExpectContinue},
		{"methods", s.testMethods},
		{"not found", s.testNotFound},
		{"encoded paths", s.testEncodedPaths},
		{"dot segments", s.testDotSegments},
		{"malformed requests", s.testMalformed},
	} {
		t.Run(c.name, c.run)
	}
}

type suite struct {
	base   *url.URL
	client *http.Client
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	files  map[string][]byte
	names  []string // sorted
	large  string   // the name of the largest file
	small  string   // the name of the smallest
}

func newSuite(t *testing.T, baseURL string, client *http.Client, files map[string][]byte) *suite {
	t.Helper()
	base, err := url.Parse(strings.TrimSuffix(baseURL, "/"))
	if err != nil || base.Scheme != "http" {
		t.Fatalf("mediatest: base URL %q is no http URL (%v)", baseURL, err)
	}
	s := &suite{base: base, client: client, files: files, names: slices.Sorted(maps.Keys(files))}
	s.dial = (&net.Dialer{Timeout: patience}).DialContext
	switch transport := client.Transport.(type) {
	case nil:
	case *http.Transport:
		if transport.DialContext != nil {
			s.dial = transport.DialContext
		}
	default:
		t.Fatalf("mediatest: the client's transport is a %T, want an *http.Transport", transport)
	}
	if len(files) < 2 {
		t.Fatal("mediatest: needs two files at least")
	}
	bySize := func(a, b string) int { return cmp.Compare(len(files[a]), len(files[b])) }
	s.large, s.small = slices.MaxFunc(s.names, bySize), slices.MinFunc(s.names, bySize)
	if len(files[s.large]) < MinLargestBytes {
		t.Fatalf("mediatest: the largest file has %d bytes, want %d at least", len(files[s.large]), MinLargestBytes)
	}
	return s
}

// target is a file's request target.
func (s *suite) target(name string) string {
	return s.base.Path + (&url.URL{Path: "/" + name}).EscapedPath()
}

// response is what came back, with the body read.
type response struct {
	*http.Response
	body []byte
}

// do sends one request through the client.
func (s *suite) do(t *testing.T, method, target string, header http.Header) response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.base.Host+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Without this the transport asks for gzip by itself.
	req.Header.Set("Accept-Encoding", "identity")
	maps.Copy(req.Header, header)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: after %d bytes of the body: %v", method, target, len(body), err)
	}
	return response{resp, body}
}

// expect checks status and body.
func (r response) expect(t *testing.T, what string, status int, body []byte) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("%s: status %d, want %d", what, r.StatusCode, status)
	}
	if !bytes.Equal(r.body, body) {
		t.Errorf("%s: %s", what, describeDifference(r.body, body))
	}
}

func (r response) expectHeader(t *testing.T, what, key, want string) {
	t.Helper()
	if got := r.Header.Get(key); got != want {
		t.Errorf("%s: %s is %q, want %q", what, key, got, want)
	}
}

func wantContentType(name string) string {
	types := map[string]string{
		".mpd":  "application/dash+xml",
		".m3u8": "application/vnd.apple.mpegurl",
		".m4s":  "video/iso.segment",
		".mp4":  "video/mp4",
		".ts":   "video/mp2t",
		".vtt":  "text/vtt; charset=utf-8",
		".aac":  "audio/aac",
		".mp3":  "audio/mpeg",
		".json": "application/json",
	}
	return cmp.Or(types[strings.ToLower(path.Ext(name))], "application/octet-stream")
}
