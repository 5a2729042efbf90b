package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/internal/wire"
)

func TestTimeToLive(t *testing.T) {
	r := newRig(t)
	r.web.put("a.mpd", []byte("abc"), "1")
	r.web.put("a.m4s", []byte("def"), "1")
	mpd, seg := r.ref("a.mpd"), r.ref("a.m4s")
	r.clock.pass(time.Second)
	r.ref("a.mpd")
	if _, heads := r.web.requests(); heads != 2 {
		t.Errorf("asked %d times while they are believed", heads)
	}
	r.clock.pass(2 * time.Second)
	if r.ref("a.mpd") != mpd || r.ref("a.m4s") != seg {
		t.Error("another version")
	}
	if _, heads := r.web.requests(); heads != 3 {
		t.Errorf("asked %d times, want once more", heads)
	}
}

// TestReplaced: who reads the old version finishes it or is cut.
func TestReplaced(t *testing.T) {
	for _, complete := range []bool{true, false} {
		r := newRig(t)
		older, newer := content(1, 20<<20), content(2, 20<<20) // of one size, and of one second
		r.web.put("f", older, "1")
		ref := r.ref("f")
		if complete {
			r.get("f", older)
			r.settled()
		}
		f := r.acquire(ref)
		if _, err := r.read(f, 0, 1<<20); err != nil {
			t.Fatal(err)
		}
		r.settled()
		r.web.put("f", newer, "2")
		got, err := r.read(f, 0, int64(len(older)))
		if !bytes.HasPrefix(older, got) {
			t.Error("a blend of two versions")
		}
		if complete && err != nil || !complete && !errors.Is(err, wire.ReasonChanged) {
			t.Errorf("complete %t: %d bytes, %v", complete, len(got), err)
		}
		r.clock.pass(2 * time.Hour)
		now := r.ref("f")
		if now.MTime == ref.MTime {
			t.Error("a guest cannot tell the versions apart")
		}
		if _, err := r.Acquire(t.Context(), ref, 0); !errors.Is(err, wire.ReasonChanged) {
			t.Errorf("the old version: %v", err)
		}
		r.get("f", newer)
		f.Release()
		r.checkAccounts()
		if n := r.dataFiles(); n != 1 {
			t.Errorf("%d data files", n)
		}
	}
}

// TestReplacedIsTold: of what the origin has replaced or removed, of what an operator evicts, and of nothing else.
func TestReplacedIsTold(t *testing.T) {
	told := make(chan string, 8)
	r := newRig(t, func(o *Options) { o.Replaced = func(p string) { told <- p } })
	expect := func(what string, want ...string) {
		t.Helper()
		for _, w := range want {
			select {
			case got := <-told:
				if got != w {
					t.Errorf("%s: told of %q, want %q", what, got, w)
				}
			case <-time.After(patience):
				t.Fatalf("%s: nobody is told of %q", what, w)
			}
		}
		select {
		case got := <-told:
			t.Errorf("%s: told of %q too", what, got)
		default:
		}
	}
	for _, name := range []string{"a.mpd", "b.mpd", "c.mpd"} {
		r.web.put(name, []byte("1"), "1")
		r.get(name, []byte("1"))
	}
	r.web.put("a.mpd", []byte("2"), "2")
	expect("nobody has asked")
	r.clock.pass(3 * time.Second)
	r.get("a.mpd", []byte("2"))
	expect("replaced", "a.mpd")
	r.get("b.mpd", []byte("1"))
	r.web.remove("c.mpd")
	if _, _, err := r.Stat(t.Context(), "c.mpd"); !errors.Is(err, wire.ReasonNotFound) {
		t.Error(err)
	}
	expect("removed", "c.mpd")
	if done := r.Evict("", true); done.Files != 2 {
		t.Errorf("%+v", done)
	}
	expect("evicted", "a.mpd", "b.mpd")

	large := content(1, 40<<20)
	r.web.put("f", large, "1")
	f := r.acquire(r.ref("f"))
	defer f.Release()
	if _, err := r.read(f, 0, 1); err != nil {
		t.Fatal(err)
	}
	r.settled()
	r.web.put("f", large, "2")
	if _, err := r.read(f, 30<<20, 1); err == nil {
		t.Error("bytes of a version that is not there any more")
	}
	expect("found by a fill", "f")
}

// TestNoBlend replaces a file all the time while clients read it, and evicts it too. Every block that comes is of the version that was asked for.
func TestNoBlend(t *testing.T) {
	r := newRig(t, func(o *Options) { o.TTL, o.MaxBytes = 0, 6<<20 })
	const size = 3<<20 + 100
	versions := [4][]byte{}
	for i := range versions {
		versions[i] = content(byte(i), size)
	}
	r.web.put("f", versions[0], "v0")
	byTime := sync.Map{} // mtime → version
	const enough = 40
	deadline := time.Now().Add(patience)
	var read atomic.Int64
	var clients, replacer sync.WaitGroup
	stop := make(chan struct{})
	replacer.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				r.web.put("f", versions[i%4], fmt.Sprint("v", i%4))
				r.Evict("f", false)
			}
		}
	})
	for c := range 8 {
		clients.Go(func() {
			for i := 0; i < 40 || read.Load() < enough && time.Now().Before(deadline); i++ { // most come too late, and meet the next version
				size, mtime, err := r.Stat(context.Background(), "f")
				if err != nil {
					t.Error(err)
					return
				}
				f, err := r.Acquire(context.Background(), wire.FileRef{Share: "vod", Path: "f", Size: size, MTime: mtime}, 0)
				if err != nil {
					if !errors.Is(err, wire.ReasonChanged) && !errors.Is(err, wire.ReasonLimit) {
						t.Error(err)
					}
					continue
				}
				off := int64(c) << 18
				got, err := r.read(f, off, size-off)
				f.Release()
				if err != nil && !errors.Is(err, wire.ReasonChanged) && !errors.Is(err, wire.ReasonLimit) {
					t.Error(err)
				}
				if len(got) == 0 {
					continue
				}
				which := -1
				for i, v := range versions {
					if bytes.HasPrefix(v[off:], got) {
						which = i
					}
				}
				if known, _ := byTime.LoadOrStore(mtime, which); which < 0 || known != which {
					t.Errorf("%d bytes of version %v are not those of version %v", len(got), which, known)
				}
				read.Add(1)
			}
		})
	}
	clients.Wait()
	close(stop)
	replacer.Wait()
	if read.Load() < enough {
		t.Errorf("only %d reads got anything", read.Load())
	}
	r.checkAccounts()
}

func TestNegative(t *testing.T) {
	r := newRig(t)
	for range 3 {
		if _, _, err := r.Stat(t.Context(), "f"); !errors.Is(err, wire.ReasonNotFound) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	}
	if _, heads := r.web.requests(); heads != 1 || !r.Known("f") {
		t.Errorf("asked %d times", heads)
	}
	r.web.put("f", []byte("abc"), "1")
	r.clock.pass(11 * time.Second)
	r.get("f", []byte("abc"))
	r.web.remove("f")
	r.clock.pass(2 * time.Hour)
	if _, _, err := r.Stat(t.Context(), "f"); !errors.Is(err, wire.ReasonNotFound) {
		t.Errorf("removed: %v", err)
	}
	if n := r.dataFiles(); n != 0 {
		t.Errorf("%d data files of a removed one", n)
	}
}

func TestStale(t *testing.T) {
	for _, stale := range []time.Duration{0, time.Hour} {
		r := newRig(t, func(o *Options) { o.Stale = stale })
		want := content(1, 100)
		r.web.put("f", want, "1")
		r.get("f", want)
		r.web.setFault(func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 503); return true })
		r.clock.pass(90 * time.Minute) // beyond its time-to-live
		_, _, err := r.Stat(t.Context(), "f")
		if (err == nil) != (stale > 0) {
			t.Errorf("stale %v: %v", stale, err)
		}
		if stale > 0 {
			r.get("f", want)
			r.clock.pass(time.Hour)
			if _, _, err := r.Stat(t.Context(), "f"); err == nil {
				t.Error("served for ever")
			}
		}
	}
}

func TestBudget(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxBytes, o.MaxFiles = 4<<20, 6 })
	want := content(1, 1<<20)
	for i := range 12 {
		r.web.put(fmt.Sprint("f", i), want, "1")
	}
	used := r.acquire(r.ref("f0"))
	if _, err := r.read(used, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	r.Pin("f1", true)
	for i := 1; i < 12; i++ {
		r.get(fmt.Sprint("f", i), want)
		if s := r.Stats(); s.Bytes > 4<<20 || s.Files > 6 {
			t.Fatalf("%+v", s)
		}
	}
	for _, name := range []string{"f0", "f1"} {
		if s, ok := r.File(name); !ok || s.CachedBytes != 1<<20 {
			t.Errorf("%s was evicted: %+v", name, s)
		}
	}
	r.eventually("no fill holds a file any more", func() bool { // it does so for a moment behind the last byte
		users := 0
		for i := 1; i < 12; i++ {
			s, _ := r.File(fmt.Sprint("f", i))
			users += s.Users
		}
		return users == 0
	})
	if got := r.Evict("f", true); got.InUse != 1 || got.Pinned != 1 || got.Files == 0 {
		t.Errorf("%+v", got)
	}
	used.Release()
	r.reopen() // pins are remembered
	if s, _ := r.File("f1"); !s.Pinned {
		t.Errorf("%+v", s)
	}
	r.Pin("f1", false)
	if got := r.Evict("f1", false); got.Files != 1 || r.dataFiles() != 1 {
		t.Errorf("%+v, %d data files", got, r.dataFiles())
	}
	r.web.put("huge", content(1, 5<<20), "1")
	if _, _, err := r.Stat(t.Context(), "huge"); !errors.Is(err, wire.ReasonLimit) {
		t.Errorf("%v", err)
	}
}

func TestNames(t *testing.T) {
	r := newRig(t)
	want := []byte("abc")
	for _, name := range []string{"ü/日本.m4s", "a b", "%2e%2e/f", "..f", "q?x=1#y", strings.Repeat("n", 1024), "lock", "index", "-rf", "a\nb"} {
		r.web.put(name, want, "1")
		r.get(name, want)
	}
	for name, reason := range map[string]wire.Reason{
		"": wire.ReasonForbidden, ".": wire.ReasonForbidden, "..": wire.ReasonForbidden, "../x": wire.ReasonForbidden, "a/../../x": wire.ReasonForbidden,
		"/etc/passwd": wire.ReasonForbidden, "a/": wire.ReasonForbidden, "a//b": wire.ReasonForbidden, "a\x00b": wire.ReasonForbidden,
		strings.Repeat("n", 1025): wire.ReasonForbidden, "none": wire.ReasonNotFound,
	} {
		if _, _, err := r.Stat(t.Context(), name); !errors.Is(err, reason) {
			t.Errorf("Stat(%.20q): %v, want %v", name, err, reason)
		}
		if _, err := r.Acquire(t.Context(), wire.FileRef{Share: "vod", Path: name, Size: 3, MTime: 1}, 0); !errors.Is(err, reason) {
			t.Errorf("Acquire(%.20q): %v, want %v", name, err, reason)
		}
	}
}

// TestManyNames: a guest's questions do not grow what is remembered.
func TestManyNames(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxFiles = 100 })
	r.web.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.HasPrefix(req.URL.Path, "/there") {
			w.Header().Set("Content-Length", "5")
			return true
		}
		return false
	})
	for i := range 1000 {
		r.ref(fmt.Sprint("there", i))
	}
	if s := r.Stats(); s.Files > 100 {
		t.Errorf("%d files are remembered", s.Files)
	}
	now := time.Now()
	for i := range 3 * maxAbsences {
		r.absent.put(fmt.Sprint(i), absence{fs.ErrNotExist, now.Add(time.Hour)})
		r.absent.put(fmt.Sprint(i), absence{fs.ErrNotExist, now.Add(time.Hour)})
	}
	if len(r.absent.until) > maxAbsences || len(r.absent.order) > maxAbsences || r.absent.get(fmt.Sprint(3*maxAbsences-1), now) == nil {
		t.Errorf("%d names are remembered", len(r.absent.until))
	}
}

// TestPlanted puts links where the cache has its files, as somebody could who writes in its directory.
func TestPlanted(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(string) error{
		"symlink":  func(p string) error { return os.Symlink(secret, p) },
		"hardlink": func(p string) error { return os.Link(secret, p) },
	} {
		r := newRig(t)
		r.web.put("f", []byte("abcdef"), "1")
		r.get("f", []byte("abcdef"))
		path := r.dataFile("f")
		r.Close()
		if err := errors.Join(os.Remove(path), plant(path)); err != nil {
			t.Skipf("%s: %v", name, err) // another file system
		}
		r.open()
		r.get("f", []byte("abcdef"))
		if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
			t.Errorf("%s: the file behind it has become %q, %v", name, got, err)
		}
	}
	r := newRig(t)
	opts := r.opts
	opts.Dir = t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(opts.Dir, dataName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("vod", testSource(t, r.web.URL), opts); err == nil {
		t.Error("a link in place of the data directory was followed")
	}
	opts.Dir = t.TempDir()
	if err := os.Chmod(opts.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("vod", testSource(t, r.web.URL), opts); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a directory that all may write: %v", err)
	}
}
