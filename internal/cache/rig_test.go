package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/internal/origin"
	"spillway/internal/wire"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDir); dir != "" {
		fillUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

var modified = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// content is what files are made of; two seeds have no 8 bytes in common.
func content(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// web is a real HTTP origin, which a test can make misbehave.
type web struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	tags  map[string]string
	gets  []string // path and range of each GET
	heads int
	fault func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newWeb(t testing.TB) *web {
	s := &web{files: map[string][]byte{}, tags: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *web) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if r.Method == http.MethodGet {
		s.gets = append(s.gets, r.URL.Path[1:]+" "+r.Header.Get("Range"))
	} else {
		s.heads++
	}
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	s.mu.Lock()
	data, ok := s.files[r.URL.Path[1:]]
	tag := s.tags[r.URL.Path[1:]]
	s.mu.Unlock()
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
func (s *web) put(name string, data []byte, tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name], s.tags[name] = data, `"`+tag+`"`
}

func (s *web) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
}

func (s *web) setFault(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// requests returns what was asked for with GET, sorted, and how many other requests there were.
func (s *web) requests() (gets []string, heads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gets = slices.Clone(s.gets)
	slices.Sort(gets)
	return gets, s.heads
}

func (s *web) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets, s.heads = nil, 0
}

// clock is a time that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a cache over a web server.
type rig struct {
	*Cache
	tb    testing.TB
	web   *web
	clock *clock
	opts  Options
}

func newRig(tb testing.TB, change ...func(*Options)) *rig {
	tb.Helper()
	r := &rig{tb: tb, web: newWeb(tb), clock: &clock{now: time.Now()}}
	r.opts = Options{
		Dir: filepath.Join(tb.TempDir(), "cache"), MaxBytes: 1 << 30, MaxFiles: 10_000, TTL: time.Hour,
		Rules: []Rule{{"*.mpd", 2 * time.Second}}, NegativeTTL: 10 * time.Second, Now: r.clock.Now,
		Log: slog.New(slog.NewTextHandler(testWriter{tb}, nil)),
	}
	for _, c := range change {
		c(&r.opts)
	}
	r.open()
	tb.Cleanup(func() { r.Close() })
	return r
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func (r *rig) open() {
	r.tb.Helper()
	c, err := Open("vod", testSource(r.tb, r.web.URL), r.opts)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.Cache = c
}

func testSource(tb testing.TB, address string) *origin.Source {
	tb.Helper()
	s, err := plainSource(address)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func plainSource(address string) (*origin.Source, error) {
	o, err := origin.Open(context.Background(), address, origin.HTTPOptions{})
	if err != nil {
		return nil, err
	}
	return origin.NewSource(o, origin.Options{Backoff: time.Millisecond, Timeout: patience}), nil
}

// reopen is a restart of the daemon.
func (r *rig) reopen() {
	r.tb.Helper()
	r.Close()
	r.open()
}

func (r *rig) ref(name string) wire.FileRef {
	r.tb.Helper()
	size, mtime, err := r.Stat(context.Background(), name)
	if err != nil {
		r.tb.Fatal(err)
	}
	return wire.FileRef{Share: "vod", Path: name, Size: size, MTime: mtime}
}

func (r *rig) acquire(ref wire.FileRef) *File {
	r.tb.Helper()
	f, err := r.Acquire(context.Background(), ref, 0)
	if err != nil {
		r.tb.Fatal(err)
	}
	return f
}

// read reads a range as sendfile would, from the descriptor.
func (r *rig) read(f *File, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	for done := int64(0); done < n; {
		got, err := f.Await(context.Background(), off+done)
		if err != nil {
			return p[:done], err
		}
		if got == 0 {
			return p[:done], io.ErrUnexpectedEOF
		}
		part := p[done : done+min(got, n-done)]
		if m, err := readAt(f.Fd(), part, off+done); err != nil || m < len(part) {
			return p[:done], fmt.Errorf("%d bytes of %d: %w", m, len(part), err)
		}
		done += int64(len(part))
	}
	return p, nil
}

// get is what a client does: it gets a whole file.
func (r *rig) get(name string, want []byte) {
	r.tb.Helper()
	f := r.acquire(r.ref(name))
	defer f.Release()
	if got, err := r.read(f, 0, int64(len(want))); err != nil || !bytes.Equal(got, want) {
		r.tb.Errorf("%s: %d bytes, right: %t, %v", name, len(got), bytes.Equal(got, want), err)
	}
}

// settled waits until nothing is under way.
func (r *rig) settled() {
	r.tb.Helper()
	r.eventually("no run is under way", func() bool {
		r.lock()
		defer r.unlock()
		for _, e := range r.entries {
			if len(e.runs) > 0 {
				return false
			}
		}
		return true
	})
}

func (r *rig) eventually(what string, ok func() bool) {
	r.tb.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// dataFile is where the bytes of a file are.
func (r *rig) dataFile(name string) string {
	r.tb.Helper()
	s, ok := r.File(name)
	if !ok || s.DataFile == "" {
		r.tb.Fatalf("%s is not cached: %+v", name, s)
	}
	return filepath.Join(r.opts.Dir, dataName, s.DataFile)
}

// dataFiles counts the files on disk.
func (r *rig) dataFiles() int {
	r.tb.Helper()
	names, err := os.ReadDir(filepath.Join(r.opts.Dir, dataName))
	if err != nil {
		r.tb.Fatal(err)
	}
	return len(names)
}

// checkAccounts holds the sums against what is there.
func (r *rig) checkAccounts() {
	r.tb.Helper()
	r.settled()
	r.lock()
	defer r.unlock()
	var used int64
	for _, e := range r.entries {
		var bytes int64
		unverified, absent := 0, 0
		for b := range e.blocks {
			if e.blocks[b].state != missing {
				bytes += e.blockLen(b)
			} else {
				absent++
			}
			if e.blocks[b].state != verified {
				unverified++
			}
		}
		if e.item.Size() != bytes || e.blocks != nil && (e.unverified != unverified || e.absent != absent) || e.refs != 0 {
			r.tb.Errorf("%s: accounted %d bytes of %d, unverified %d of %d, absent %d of %d, %d users", e.path, e.item.Size(), bytes,
				e.unverified, unverified, e.absent, absent, e.refs)
		}
		used += bytes
	}
	if used != r.used {
		r.tb.Errorf("%d bytes accounted for %d", r.used, used)
	}
}
