package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
)

// originFault is what an origin does wrong with a file, whose path begins with the fault's name.
type originFault struct {
	name string
	// answer is request n of the path with this method, from 1; true: it has answered.
	answer func(n int, w http.ResponseWriter, r *http.Request, content []byte) bool
	mended bool // clients get the file nevertheless
}

// originFaults are what clients must not suffer from.
var originFaults = []originFault{
	{"500-once", func(n int, w http.ResponseWriter, r *http.Request, _ []byte) bool { return n == 1 && refuse(w, 500) }, true},
	{"500-always", func(_ int, w http.ResponseWriter, r *http.Request, _ []byte) bool {
		return r.Method == http.MethodGet && refuse(w, 500)
	}, false},
	{"500-version", func(_ int, w http.ResponseWriter, _ *http.Request, _ []byte) bool { return refuse(w, 500) }, false},
	{"forbidden", func(_ int, w http.ResponseWriter, _ *http.Request, _ []byte) bool { return refuse(w, 403) }, false},
	{"reset", func(n int, w http.ResponseWriter, r *http.Request, content []byte) bool {
		return r.Method == http.MethodGet && n == 1 && cutAnswer(w, content, true)
	}, true},
	{"short", func(n int, w http.ResponseWriter, r *http.Request, content []byte) bool {
		return r.Method == http.MethodGet && n == 1 && cutAnswer(w, content, false)
	}, true},
	{"short-always", func(_ int, w http.ResponseWriter, r *http.Request, content []byte) bool {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(content[:1000])
		}
		return r.Method == http.MethodGet
	}, false},
	{"long", func(_ int, w http.ResponseWriter, r *http.Request, content []byte) bool {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
			w.WriteHeader(http.StatusPartialContent) // chunked
			_, _ = w.Write(append(bytes.Clone(content), "more"...))
		}
		return r.Method == http.MethodGet
	}, true}, // what is too much is not taken
	{"another-size", func(_ int, w http.ResponseWriter, r *http.Request, content []byte) bool {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)+1))
		}
		return r.Method == http.MethodHead
	}, false},
	{"redirect", func(_ int, w http.ResponseWriter, r *http.Request, _ []byte) bool {
		http.Redirect(w, r, "/good"+r.URL.Path, http.StatusFound)
		return true
	}, true},
	{"loop", func(_ int, w http.ResponseWriter, r *http.Request, _ []byte) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}, false},
	{"etags", func(n int, w http.ResponseWriter, r *http.Request, _ []byte) bool { // each request another one
		w.Header().Set("ETag", fmt.Sprintf(`"%s%d"`, r.Method, n))
		r.Header.Del("If-Match")
		return false
	}, false},
	{"same-etag", func(_ int, w http.ResponseWriter, r *http.Request, content []byte) bool { // of a file that has grown
		w.Header().Set("ETag", `"same"`)
		if r.Method == http.MethodGet {
			http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(append(bytes.Clone(content), "more"...)))
		}
		return r.Method == http.MethodGet
	}, false},
}

func refuse(w http.ResponseWriter, status int) bool {
	http.Error(w, "no", status)
	return true
}

// cutAnswer announces all of a file and sends the first half.
func cutAnswer(w http.ResponseWriter, content []byte, reset bool) bool {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return false
	}
	fmt.Fprintf(conn, "HTTP/1.1 206 Partial Content\r\nETag: \"1\"\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n%s",
		len(content)-1, len(content), len(content), content[:len(content)/2])
	if reset {
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
	conn.Close()
	return true
}

// faulty is an origin with faults. It has every file, with the same content.
type faulty struct {
	content []byte
	server  *http.Server
	down    atomic.Bool // it closes each connection without an answer

	mu    sync.Mutex
	asked map[string]int // by method and path
	done  sync.WaitGroup
}

// start serves on the loopback of a lab's host until the test ends.
func (o *faulty) start(t *testing.T, l *lab.Lab) {
	t.Helper()
	var listener net.Listener
	must(t, l.Host.Do(func() (err error) {
		listener, err = net.Listen("tcp", originAddr)
		return err
	}))
	o.asked = map[string]int{}
	o.server = &http.Server{Handler: o}
	o.done.Go(func() { _ = o.server.Serve(listener) })
	t.Cleanup(func() { o.server.Close(); o.done.Wait() })
}

// requests is how often a path was asked for.
func (o *faulty) requests(method, path string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[method+path]
}

func (o *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if o.down.Load() {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			conn.Close()
		}
		return
	}
	o.mu.Lock()
	o.asked[r.Method+r.URL.Path]++
	n := o.asked[r.Method+r.URL.Path]
	o.mu.Unlock()
	if strings.HasPrefix(r.URL.Path, "/none") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"1"`)
	for _, f := range originFaults {
		if strings.HasPrefix(r.URL.Path, "/"+f.name+".") && f.answer(n, w, r, o.content) {
			return
		}
	}
	http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(o.content))
}

// faultLab is a lab whose cache is filled from a faulty origin.
func faultLab(t *testing.T) (*lab.Lab, *faulty) {
	files := newMedia(t)
	l := newLab(t, files, func(o *lab.Options) {
		o.Origin = "http://" + originAddr + "/"
		o.CacheConfig = "stale = \"1h\"\nnegative_ttl = \"1h\"\nmax_lookups = 50\n[[share.cache.rule]]\npattern = \"brief-*\"\nttl = \"1ms\"\n"
	})
	o := &faulty{content: files.fresh(1_400_003)}
	o.start(t, l)
	return l, o
}

// refused asks for a file that cannot be had: the answer is an error, or a body that is cut, with no wrong byte.
func refused(t *testing.T, l *lab.Lab, arm lab.Arm, name string, content []byte) {
	t.Helper()
	c := dial(t, l, arm)
	defer c.Close()
	resp, got, err := c.fetchAny(name)
	switch {
	case err == nil && resp.StatusCode >= 400:
	case err == nil:
		t.Errorf("%s: status %d and %d bytes", name, resp.StatusCode, len(got))
	case !closedByPeer(err) || !bytes.HasPrefix(content, got):
		t.Errorf("%s: %d bytes, %v; want an error, or a body that is cut", name, len(got), err)
	}
}

// TestCacheFaults: what an origin does wrong is mended, or the client is refused; he never gets a wrong byte, and others are served meanwhile.
func TestCacheFaults(t *testing.T) {
	l, o := faultLab(t)
	for _, arm := range offloading {
		for _, f := range originFaults {
			t.Run(f.name+", "+string(arm), func(t *testing.T) {
				name := f.name + "." + string(arm)
				if f.mended {
					fetch(t, l, arm, name, o.content)
				} else {
					refused(t, l, arm, name, o.content)
				}
				fetch(t, l, arm, "good."+string(arm), o.content)
			})
		}
	}
	noLeases(t, l)
	if n := o.requests(http.MethodGet, "/good.lease"); n != 1 {
		t.Errorf("the file without faults was fetched %d times", n)
	}
}

// TestCacheOriginAway: what is cached is served on when the origin does not answer, for the time that the configuration says, and what is not cached is refused.
func TestCacheOriginAway(t *testing.T) {
	l, o := faultLab(t)
	for _, name := range []string{"brief-1", "long-lived"} {
		fetch(t, l, lab.Lease, name, o.content)
	}
	o.down.Store(true)
	for range 2 {
		for _, name := range []string{"brief-1", "long-lived"} {
			fetch(t, l, lab.Lease, name, o.content)
		}
		time.Sleep(1100 * time.Millisecond) // the guest's attributes are old
	}
	if s := cacheStats(t, l).Cache; s.Stale == 0 || s.Fills != 2 {
		t.Errorf("%+v; want answers from before, and no more fills", s)
	}
	refused(t, l, lab.Lease, "not-cached", o.content)
	o.down.Store(false)
	eventually(t, "the origin is asked again", func() bool {
		c := dial(t, l, lab.Lease)
		defer c.Close()
		resp, got, err := c.fetchAny("not-cached-either")
		return err == nil && resp.StatusCode == http.StatusOK && bytes.Equal(got, o.content)
	})
}

// TestCacheKilledWhileItFills: kill -9 in the middle of a fill. The client is cut, and the next daemon serves the file, whole and right.
func TestCacheKilledWhileItFills(t *testing.T) {
	const sentAtFirst = 5_000_000
	files := newMedia(t)
	want := files.files["10m.mp4"]
	o := &slowOrigin{content: want, stopAt: sentAtFirst, goOn: make(chan struct{})}
	l := newLab(t, files, func(opts *lab.Options) { opts.Origin = "http://" + originAddr + "/vod/" })
	o.start(t, l)
	c := dial(t, l, lab.Lease)
	c.begin("seg-1.m4s", want, 3_000_000)
	stopHost(t, l, syscall.SIGKILL)
	c.takeCut(want[3_000_000:])
	must(t, c.Close())
	close(o.goOn)
	startHost(t, l)
	for _, arm := range offloading {
		fetch(t, l, arm, "seg-1.m4s", want)
	}
	if s := cacheStats(t, l).Cache; s.FillBytes > uint64(len(want)) || s.FillFailures != 0 {
		t.Errorf("%+v; want at most the file to be fetched again", s)
	}
}

// TestCacheNames: names that lead elsewhere or are none reach neither the origin nor the disk, and those that only look odd are served.
func TestCacheNames(t *testing.T) {
	l, o := faultLab(t)
	for _, name := range []string{"ü/日本.m4s", "a b", "..f", "%2e%2e%2ff", "lock", "index", "data/0000000000000001", "-rf", "a\nb", strings.Repeat("n", 1000)} {
		fetch(t, l, lab.Lease, name, o.content)
	}
	heads := cacheStats(t, l).Cache.Lookups
	for _, target := range []string{"/media/../x", "/media/a/../../x", "/media/%2e%2e/x", "/media/%2e%2e%2fx", "/media/a%00b", "/media/a/", "/media/a//b", "/media//etc/passwd",
		"/media/" + strings.Repeat("n", 1025), "/media/%ff", "/media/"} {
		c := dial(t, l, lab.Lease)
		if status, _ := c.getStatus(target); status != http.StatusNotFound && status != http.StatusBadRequest && status != http.StatusMovedPermanently {
			t.Errorf("%.40s: status %d", target, status)
		}
		must(t, c.Close())
	}
	if now := cacheStats(t, l).Cache.Lookups; now != heads {
		t.Errorf("the origin was asked %d times for names that are none", now-heads)
	}
}

// TestCacheManyNames: clients that ask for names that do not exist cost the origin no more than was configured, and the daemon no memory.
func TestCacheManyNames(t *testing.T) {
	l, _ := faultLab(t)
	const names, perSecond = 20_000, 50
	before := residentBytes(t, l)
	began := time.Now()
	c := dial(t, l, lab.Lease)
	for i := range names {
		if status, _ := c.getStatus(fmt.Sprintf("/media/none-%0900d", i)); status < 400 {
			t.Fatalf("status %d", status)
		}
	}
	must(t, c.Close())
	s := cacheStats(t, l).Cache
	if most := uint64(time.Since(began).Seconds()+2) * perSecond; s.Lookups == 0 || s.Lookups > most || s.Files != 0 {
		t.Errorf("%+v after %v; want at most %d questions, and no file", s, time.Since(began), most)
	}
	const most = 64 << 20 // 16,384 names of 1,024 bytes, and what the garbage collector leaves
	if grown := residentBytes(t, l) - before; grown > most {
		t.Errorf("the daemon has grown by %d bytes", grown)
	}
}

// TestCacheDisk: a daemon on a cache directory that another one has, that it cannot write, or in which others may, does not start and says why; on a disk that is
// full it refuses what does not fit and serves the rest.
func TestCacheDisk(t *testing.T) {
	l, o := faultLab(t)
	dir := t.TempDir()
	second := func(cacheDir string) string {
		return secondDaemon(t, l, fmt.Sprintf("origin = \"http://%s/\"\n[share.cache]\ndir = %q\nmax_size = \"64MiB\"", originAddr, cacheDir), filepath.Join(dir, "second.toml"),
			map[string]string{"admin": filepath.Join(dir, "admin.sock"), "table": "second", "mark": "0x54", "route": "5384", "rule": "84", "channel": filepath.Join(dir, "vm0.sock")})
	}
	fetch(t, l, lab.Lease, "good", o.content)
	own := filepath.Join(l.Dir, "cache")
	readOnly, shared := filepath.Join(dir, "ro"), filepath.Join(dir, "shared")
	must(t, os.Mkdir(readOnly, 0o700))
	must(t, os.Mkdir(shared, 0o700))
	must(t, os.Chmod(shared, 0o777))
	mountSmall(t, readOnly, "1m", unix.MS_RDONLY)
	for cacheDir, want := range map[string][]string{
		own:      {"locked", fmt.Sprintf("process %d uses", l.PIDs()["host"])},
		readOnly: {"read-only file system", readOnly},
		shared:   {"chmod", shared},
	} {
		said := second(cacheDir)
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("%s: it does not say %q: %s", cacheDir, w, said)
			}
		}
		t.Log(strings.TrimSpace(said))
	}
	fetch(t, l, lab.Lease, "good", o.content) // the first daemon goes on

	stopHost(t, l, syscall.SIGTERM)
	must(t, os.RemoveAll(own))
	must(t, os.Mkdir(own, 0o700))
	mountSmall(t, own, "6m", 0)
	startHost(t, l)
	fetch(t, l, lab.Lease, "good", o.content)
	must(t, l.HostAdmin(context.Background(), http.MethodPost, "/cache/pin?share=media&path=good", nil))
	filler, err := os.Create(filepath.Join(own, "filler"))
	must(t, err)
	_, err = io.Copy(filler, io.LimitReader(zeros{}, 8<<20)) // until the disk is full
	if err == nil {
		t.Error("the disk is not full")
	}
	must(t, filler.Close())
	refused(t, l, lab.Lease, "does-not-fit", o.content)
	fetch(t, l, lab.Lease, "good", o.content)
	must(t, os.Remove(filler.Name()))
	eventually(t, "there is room again", func() bool {
		c := dial(t, l, lab.Lease)
		defer c.Close()
		_, got, err := c.fetchAny("fits-now")
		return err == nil && bytes.Equal(got, o.content)
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// mountSmall mounts a file system of so many bytes until the test ends.
func mountSmall(t *testing.T, dir, size string, flags uintptr) {
	t.Helper()
	must(t, unix.Mount("spillway-test", dir, "tmpfs", flags, "mode=700,size="+size))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
