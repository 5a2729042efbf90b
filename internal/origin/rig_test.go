package origin

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

// content is what files are made of.
func content(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

var modified = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// server is a real HTTP server of files with ETags, which a test can make misbehave.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	etags    map[string]string
	requests []*http.Request
	fault    func(n int, w http.ResponseWriter, r *http.Request) bool // request n, from 1; true: it has answered
}

func newServer(t *testing.T) *server {
	s := &server{files: map[string][]byte{}, etags: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	n, fault := len(s.requests), s.fault
	data, ok := s.files[r.URL.Path]
	tag := s.etags[r.URL.Path]
	s.mu.Unlock()
	if fault != nil && fault(n, w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	if tag != "" {
		w.Header().Set("ETag", tag)
	}
	http.ServeContent(w, r, r.URL.Path, modified, bytes.NewReader(data))
}

// put makes a file, or another version of it.
func (s *server) put(path string, data []byte, tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path], s.etags[path] = data, tag
}

// ranges returns what GET requests have asked for.
func (s *server) ranges() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.Method == http.MethodGet {
			all = append(all, r.Header.Get("Range"))
		}
	}
	return all
}

// source opens an origin with little patience.
func source(t *testing.T, address string, change ...func(*Options, *HTTPOptions)) *Source {
	t.Helper()
	opts, httpOpts := Options{Backoff: time.Millisecond, Timeout: patience}, HTTPOptions{}
	for _, c := range change {
		c(&opts, &httpOpts)
	}
	o, err := Open(t.Context(), address, httpOpts)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSource(o, opts)
	t.Cleanup(func() { s.Close() })
	return s
}

func stat(t *testing.T, s *Source, name string) Version {
	t.Helper()
	v, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func fetch(ctx context.Context, s *Source, name string, v Version, off, n int64) ([]byte, error) {
	var got []byte
	err := s.Fetch(ctx, name, v, off, n, func(p []byte) error {
		got = append(got, p...)
		return nil
	})
	return got, err
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
