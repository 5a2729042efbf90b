package media_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/loglimit"
	"spillway/internal/media"
	"spillway/internal/media/mediatest"
	"spillway/internal/mediafs"
)

// sampleFiles has every content type, names that need encoding, an empty file, and sizes around net/http's buffers (512 bytes of
// sniffing, 4 KiB of write buffer) and the default threshold of a handover (64 KiB).
func sampleFiles() map[string][]byte {
	random := rand.NewChaCha8([32]byte{1})
	files := map[string][]byte{}
	for name, size := range map[string]int{
		"manifest.mpd": 1500, "live.m3u8": 511, "tv/init.mp4": 512, "tv/1.m4s": 65_535, "tv/2.m4s": 65_536, "tv/3.M4S": 65_537,
		"tv/large.m4s": 1_400_000, "audio.aac": 4096, "audio.mp3": 4097, "sub.vtt": 513, "old.ts": 188 * 100, "info.json": 2,
		"no-extension": 10, "empty.m4s": 0, "with space, ü & 100% #1?.m4s": 100,
	} {
		b := make([]byte, size)
		random.Read(b)
		files[name] = b
	}
	return files
}

func writeTree(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func newDir(t *testing.T, dir string) *mediafs.Dir {
	t.Helper()
	d, err := mediafs.NewDir("vod", dir, mediafs.Options{AttributeTTL: time.Hour}) // whatever the machine's speed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// listen returns a TCP listener on loopback.
func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// serve runs a media server on ln and returns its URL.
func serve(t *testing.T, ln net.Listener, handler http.Handler) string {
	t.Helper()
	srv := media.NewServer(handler, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + ln.Addr().String()
}

func TestConformance(t *testing.T) {
	files := sampleFiles()
	dir := t.TempDir()
	writeTree(t, dir, files)
	pooled := newDir(t, dir)
	for _, test := range []struct {
		name    string
		handler http.Handler
		path    string
	}{
		{"pooled directory", media.Handler(pooled, media.Options{}), ""},
		{"plain directory", media.Handler(os.DirFS(dir), media.Options{}), ""},
		{"mount", media.Handler(nil, media.Options{Mounts: []media.Mount{{Prefix: "/vod/hd", FS: pooled}}}), "/vod/hd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			transport := &http.Transport{}
			t.Cleanup(transport.CloseIdleConnections)
			url := serve(t, listen(t), test.handler)
			mediatest.Run(t, url+test.path, &http.Client{Transport: transport}, files)
		})
	}
	if got := pooled.Counters(); got.Opened > got.Reused {
		t.Errorf("the suite opened files per request: %+v", got)
	}
}

// recordingListener notes how the server writes to its connections.
type recordingListener struct {
	net.Listener
	mu     sync.Mutex // guards events
	events []string
}

func (l *recordingListener) note(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *recordingListener) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.events
	l.events = nil
	return events
}

func (l *recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordingConn{TCPConn: c.(*net.TCPConn), l: l}, nil
}

type recordingConn struct {
	*net.TCPConn
	l *recordingListener
}

func (c *recordingConn) Write(b []byte) (int, error) {
	switch {
	case !bytes.HasPrefix(b, []byte("HTTP/1.1 ")):
		c.l.note("other bytes")
	case bytes.HasSuffix(b, []byte("\r\n\r\n")):
		c.l.note("header")
	default:
		c.l.note("header and body")
	}
	return c.TCPConn.Write(b)
}

func (c *recordingConn) ReadFrom(r io.Reader) (int64, error) {
	event := "read from something"
	if limited, ok := r.(*io.LimitedReader); ok {
		if f, ok := limited.R.(*mediafs.File); ok {
			_, offset, _ := f.HostFile()
			event = "file from " + ranged(offset, limited.N)
		}
	}
	c.l.note(event)
	return c.TCPConn.ReadFrom(r)
}

func ranged(offset, n int64) string { return fmt.Sprintf("offset %d, %d bytes", offset, n) }

// TestConnectionGetsTheFile proves what offloading and sendfile(2) rest on: one write with the header and nothing else, then the file
// itself, at the right position, and no read of the file before that.
func TestConnectionGetsTheFile(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string][]byte{"f.m4s": make([]byte, 100_000), "small.m4s": make([]byte, 10)})
	ln := &recordingListener{Listener: listen(t)}
	fsys := newDir(t, dir)
	url := serve(t, ln, media.Handler(fsys, media.Options{}))
	etag := ""
	for _, test := range []struct {
		method, name string
		header       map[string]string
		want         []string
	}{
		{"GET", "/f.m4s", nil, []string{"header", "file from " + ranged(0, 100_000)}},
		{"GET", "/small.m4s", nil, []string{"header", "file from " + ranged(0, 10)}},
		{"GET", "/f.m4s", map[string]string{"Range": "bytes=70000-70099"}, []string{"header", "file from " + ranged(70_000, 100)}},
		{"GET", "/f.m4s", map[string]string{"Range": "bytes=0-1,5-6"}, []string{"header", "file from " + ranged(0, 100_000)}},
		{"HEAD", "/f.m4s", nil, []string{"header"}},
		{"GET", "/f.m4s", map[string]string{"If-None-Match": "*"}, []string{"header"}},
	} {
		reused := fsys.Counters().Reused
		req, err := http.NewRequestWithContext(t.Context(), test.method, url+test.name, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range test.header {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		etag = resp.Header.Get("ETag")
		if diff := cmp.Diff(test.want, ln.take()); diff != "" {
			t.Errorf("%s %s %v (-want +got):\n%s", test.method, test.name, test.header, diff)
		}
		if len(test.want) == 1 && fsys.Counters().Reused != reused {
			t.Errorf("%s %v: a descriptor was needed for an answer without a body", test.method, test.header)
		}
	}
	if etag == "" {
		t.Error("no ETag")
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestTruncatedFileClosesTheConnection(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.m4s")
	writeTree(t, dir, map[string][]byte{"f.m4s": make([]byte, 1000)})
	fsys := newDir(t, dir)
	if f, err := fsys.Open("f.m4s"); err != nil {
		t.Fatal(err)
	} else {
		f.Close() // the size is remembered now
	}
	if err := os.Truncate(path, 400); err != nil {
		t.Fatal(err)
	}
	url := serve(t, listen(t), media.Handler(fsys, media.Options{}))
	resp, err := http.Get(url + "/f.m4s")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) > 400 {
		t.Errorf("%d bytes, %v; want at most 400 and an unexpected end", len(body), err)
	}
}

func TestETagFollowsTheFile(t *testing.T) {
	at := time.Unix(1_700_000_000, 1)
	fsys := fstest.MapFS{"f": {Data: []byte("abc"), ModTime: at}}
	h := media.Handler(fsys, media.Options{})
	etag := func() string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/f", nil))
		if w.Body.String() != string(fsys["f"].Data) {
			t.Errorf("body %q", w.Body)
		}
		return w.Header().Get("ETag")
	}
	first := etag()
	if again := etag(); again != first {
		t.Errorf("the same file has the ETags %s and %s", first, again)
	}
	fsys["f"].ModTime = at.Add(time.Nanosecond)
	touched := etag()
	fsys["f"].Data = []byte("abcd")
	grown := etag()
	if first == touched || touched == grown {
		t.Errorf("ETags %s, %s, %s: want three", first, touched, grown)
	}
}

func TestCacheControlAndMounts(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	h := media.Handler(fstest.MapFS{"a.m4s": file("root"), "vod/a.m4s": file("shadowed")}, media.Options{
		ManifestMaxAge: 2 * time.Second,
		SegmentMaxAge:  time.Hour,
		Mounts: []media.Mount{
			{Prefix: "vod", FS: fstest.MapFS{"a.m4s": file("vod"), "a.mpd": file("mpd"), "a.m3u8": file("m3u8")}},
			{Prefix: "/vod/live/", FS: fstest.MapFS{"a.m4s": file("live")}},
		},
	})
	for _, test := range []struct {
		path, body, control string
		status              int
	}{
		{"/a.m4s", "root", "public, max-age=3600", 200},
		{"/vod/a.m4s", "vod", "public, max-age=3600", 200},
		{"/vod/live/a.m4s", "live", "public, max-age=3600", 200},
		{"/vod/a.mpd", "mpd", "public, max-age=2", 200},
		{"/vod/a.m3u8", "m3u8", "public, max-age=2", 200},
		{"/vod/b.m4s", "not found\n", "", 404},
		{"/vod", "not found\n", "", 404},
		{"/vod/", "not found\n", "", 404},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", test.path, nil))
		if w.Code != test.status || w.Body.String() != test.body || w.Header().Get("Cache-Control") != test.control {
			t.Errorf("%s: %d %q, Cache-Control %q", test.path, w.Code, w.Body, w.Header().Get("Cache-Control"))
		}
	}
}

// failingFS opens nothing.
type failingFS struct{ err error }

func (f failingFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: f.err}
}

func TestFailuresOfTheFileSystem(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		logged bool
	}{
		{fs.ErrNotExist, 404, false}, {fs.ErrPermission, 404, false}, {mediafs.ErrEscapes, 404, false},
		{mediafs.ErrNotRegular, 404, false}, {syscall.ENOTDIR, 404, false}, {syscall.ENAMETOOLONG, 404, false},
		{syscall.EMFILE, 503, true}, {syscall.EIO, 503, true}, {fs.ErrClosed, 503, true},
	} {
		var log bytes.Buffer
		h := media.Handler(failingFS{test.err}, media.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/secret/name", nil))
		if w.Code != test.status || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%v: status %d, body %q; want %d and no path", test.err, w.Code, w.Body, test.status)
		}
		if (log.Len() > 0) != test.logged {
			t.Errorf("%v: log %q", test.err, log.String())
		}
	}
}

// TestFailuresAreLoggedSeldom: a client that asks for a broken file again and again does not fill the log.
func TestFailuresAreLoggedSeldom(t *testing.T) {
	var log bytes.Buffer
	h := media.Handler(failingFS{syscall.EIO}, media.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	began := time.Now()
	const requests = 50
	for range requests {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/file", nil))
	}
	lines := strings.Count(log.String(), "cannot open a media file")
	if most := 1 + int(time.Since(began)/loglimit.Interval); lines < 1 || lines > most {
		t.Errorf("%d lines of %d failures, want 1 to %d", lines, requests, most)
	}
}

func TestFIFOIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.m4s"), 0o644); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	media.Handler(os.DirFS(dir), media.Options{}).ServeHTTP(w, httptest.NewRequest("GET", "/fifo.m4s", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("status %d, want 404", w.Code)
	}
}

func TestServerLogsToSlog(t *testing.T) {
	var log bytes.Buffer
	srv := media.NewServer(http.NotFoundHandler(), slog.New(slog.NewTextHandler(&log, nil)))
	srv.ErrorLog.Print("accept failed")
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "accept failed") {
		t.Errorf("log: %q", got)
	}
	if srv.ReadHeaderTimeout <= 0 || srv.IdleTimeout <= 0 || srv.MaxHeaderBytes <= 0 || srv.WriteTimeout != 0 {
		t.Errorf("time-outs: %+v", srv)
	}
}

// TestRangesBeyondIntegers: what RFC 9110 allows and net/http does not understand by itself.
func TestRangesBeyondIntegers(t *testing.T) {
	handler := media.Handler(fstest.MapFS{"ten": {Data: []byte("0123456789")}, "empty": {}}, media.Options{})
	const huge = "99999999999999999999"
	for _, tt := range []struct {
		file, ranges, wantRange, wantBody string
		want                              int
	}{
		{"ten", "bytes=-0", "bytes */10", "", http.StatusRequestedRangeNotSatisfiable},
		{"ten", "bytes=-00", "bytes */10", "", http.StatusRequestedRangeNotSatisfiable},
		{"ten", "bytes=" + huge + "-", "bytes */10", "", http.StatusRequestedRangeNotSatisfiable},
		{"ten", "bytes=" + huge + "-" + huge, "bytes */10", "", http.StatusRequestedRangeNotSatisfiable},
		{"ten", "bytes=8-" + huge, "bytes 8-9/10", "89", http.StatusPartialContent},
		{"ten", "Bytes=8-" + huge, "bytes 8-9/10", "89", http.StatusPartialContent},
		{"ten", "bytes=-" + huge, "bytes 0-9/10", "0123456789", http.StatusPartialContent},
		{"empty", "bytes=-0", "", "", http.StatusOK}, // no range fits an empty file: net/http ignores them all
	} {
		r := httptest.NewRequest(http.MethodGet, "/"+tt.file, nil)
		r.Header.Set("Range", tt.ranges)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != tt.want || w.Header().Get("Content-Range") != tt.wantRange {
			t.Errorf("%s of %s: status %d, Content-Range %q, want %d, %q",
				tt.ranges, tt.file, w.Code, w.Header().Get("Content-Range"), tt.want, tt.wantRange)
		}
		if body := w.Body.String(); tt.want != http.StatusRequestedRangeNotSatisfiable && body != tt.wantBody {
			t.Errorf("%s of %s: body %q, want %q", tt.ranges, tt.file, body, tt.wantBody)
		}
	}
}
