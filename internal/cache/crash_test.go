package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// Environment of the process that is killed.
const (
	killedDir    = "SPILLWAY_TEST_CACHE_DIR"
	killedOrigin = "SPILLWAY_TEST_CACHE_ORIGIN"
)

// fillUntilKilled is a daemon that fills a cache with two files, and says so when it has begun and how far it is.
func fillUntilKilled(dir string) {
	var c *Cache
	s, err := plainSource(os.Getenv(killedOrigin))
	if err == nil {
		c, err = Open("vod", s, Options{Dir: dir, MaxBytes: 1 << 30, MaxFiles: 100, TTL: time.Hour})
	}
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	for _, name := range []string{"a", "b"} {
		_ = c.Warm(context.Background(), name, func(int64, int64) { os.Stdout.WriteString(".") })
	}
	os.Stdout.WriteString("all\n")
	select {} // until the kill
}

// killedAfter runs that daemon and kills it when it has reported progress so often.
func (r *rig) killedAfter(reports int) {
	r.tb.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), killedDir+"="+r.opts.Dir, killedOrigin+"="+r.web.URL)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.tb.Fatal(err)
	}
	said := make([]byte, 1)
	for range reports {
		if _, err := out.Read(said); err != nil {
			r.tb.Fatal(err)
		}
		if said[0] == '\n' {
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestKill ends a daemon at many points of its work. What the next one serves is right, and it does not begin anew.
func TestKill(t *testing.T) {
	r := newRig(t)
	a, b := content(1, segment), content(2, 5<<20)
	r.web.put("a", a, "1")
	r.web.put("b", b, "2")
	kept := 0
	for _, reports := range []int{1, 5, 20, 40, 80, 1 << 20} {
		r.Close()
		if err := os.RemoveAll(r.opts.Dir); err != nil {
			t.Fatal(err)
		}
		r.killedAfter(reports)
		r.web.forget()
		r.open()
		r.get("a", a)
		r.get("b", b)
		if s := r.Stats(); s.Damaged != 0 || s.FillBytes > segment+5<<20 {
			t.Errorf("%+v", s)
		} else {
			kept += segment + 5<<20 - int(s.FillBytes)
		}
		r.checkAccounts()
	}
	if kept < 5<<20 {
		t.Errorf("only %d bytes of what six daemons have fetched were of use to their successors", kept)
	}
}

// TestRestart serves what was there before, without the origin.
func TestRestart(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("f", want, "1")
	r.web.put("part", content(2, 40<<20), "2")
	r.get("f", want)
	part := r.acquire(r.ref("part"))
	if _, err := r.read(part, 20<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	part.Release()
	r.settled()
	before := r.Stats()
	r.web.forget()
	r.reopen()
	if s := r.Stats(); s.Bytes != before.Bytes || s.Files != 2 {
		t.Errorf("%+v, was %+v", s, before)
	}
	r.get("f", want)
	r.get("f", want)
	if gets, heads := r.web.requests(); len(gets) != 0 || heads != 0 {
		t.Errorf("the origin saw %q and %d more", gets, heads)
	}
	f := r.acquire(r.ref("f"))
	if !f.Complete() {
		t.Error("not complete after all blocks were checked")
	}
	f.Release()
	r.checkAccounts()
}

// TestDamage: whatever happens to a data file while the daemon is down is found, and costs what it must.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(path string) error
		blocks int64 // that are fetched again
	}{
		{"flipped bit", func(p string) error {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var one [1]byte
			_, err = f.ReadAt(one[:], 3<<20+17)
			one[0] ^= 0x10
			_, err2 := f.WriteAt(one[:], 3<<20+17)
			return errors.Join(err, err2)
		}, 1},
		{"truncated", func(p string) error { return os.Truncate(p, 5<<20) }, 6},
		{"longer", func(p string) error { return os.Truncate(p, 1<<30) }, 0},
		{"emptied", func(p string) error { return os.Truncate(p, 0) }, 11},
		{"removed", os.Remove, 11},
		{"touched", func(p string) error { return os.Chtimes(p, modified, modified) }, 0},
	} {
		for _, running := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				if running && c.name == "flipped bit" {
					t.Skip("a bit that flips after its check is for Verify to find")
				}
				r := newRig(t)
				want := content(1, segment)
				r.web.put("f", want, "1")
				r.get("f", want)
				path := r.dataFile("f")
				r.eventually("the file is complete", func() bool {
					f := r.acquire(r.ref("f"))
					defer f.Release()
					return f.Complete()
				})
				if !running {
					r.Close()
				} else {
					r.files.Forget(filepath.Base(path))
				}
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
				if !running {
					r.open()
				}
				before := r.Stats()
				r.get("f", want)
				r.get("f", want)
				s := r.Stats()
				if got := int64(s.Damaged - before.Damaged); got != c.blocks {
					t.Errorf("%d blocks fetched again, want %d", got, c.blocks)
				}
				if got := int64(s.FillBytes - before.FillBytes); got > c.blocks<<20 {
					t.Errorf("%d bytes fetched again for %d blocks", got, c.blocks)
				}
				r.checkAccounts()
			})
		}
	}
}

func TestVerify(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	for _, name := range []string{"bad", "good"} {
		r.web.put(name, want, "1")
		r.get(name, want)
	}
	f, err := os.OpenFile(r.dataFile("bad"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("flip"), segment-10); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var last int64
	found, err := r.Verify(t.Context(), "", func(done, _ int64) { last = done })
	if err != nil || found.Files != 2 || len(found.Damaged) != 1 || found.Damaged[0] != "bad" || last != found.Bytes || last < segment {
		t.Errorf("%+v, progress %d, %v", found, last, err)
	}
	r.get("bad", want)
	if found, err := r.Verify(t.Context(), "", func(int64, int64) {}); err != nil || len(found.Damaged) != 0 || found.Bytes != 2*segment {
		t.Errorf("%+v, %v", found, err)
	}
	r.checkAccounts()
}

func TestTwoDaemons(t *testing.T) {
	r := newRig(t)
	_, err := Open("vod", testSource(t, r.web.URL), r.opts)
	if err == nil || !strings.Contains(err.Error(), "locked") || !strings.Contains(err.Error(), "process") {
		t.Errorf("%v", err)
	}
	r.reopen()
}

// TestOrphans: data files that the index does not tell of go, and what else is there with them.
func TestOrphans(t *testing.T) {
	r := newRig(t)
	r.web.put("f", []byte("abc"), "1")
	r.get("f", []byte("abc"))
	kept := r.dataFile("f")
	r.Close()
	for _, name := range []string{fileName(5), "stray", "f"} {
		if err := os.WriteFile(filepath.Join(r.opts.Dir, dataName, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.open()
	r.eventually("they are removed", func() bool { return r.dataFiles() == 1 })
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	r.get("f", []byte("abc"))
}

// disk mounts a file system of so many bytes.
func disk(t *testing.T, bytes string, flags uintptr) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a file system that is full")
	}
	dir := t.TempDir()
	if err := unix.Mount("spillway-test", dir, "tmpfs", flags, "mode=700,size="+bytes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFull: the budget is larger than the disk. What may go goes; what may not be had is refused, and what is there is served on.
func TestDiskFull(t *testing.T) {
	dir := disk(t, "12m", 0)
	r := newRig(t, func(o *Options) { o.Dir = dir + "/cache"; o.KeepFree = 2 << 20 })
	for i := range 20 {
		name := string(rune('a' + i))
		want := content(byte(i), 2<<20)
		r.web.put(name, want, name)
		r.get(name, want)
		if free, err := r.dir.free(); err != nil || free < 2<<20 {
			t.Fatalf("%d bytes are free, %v", free, err)
		}
	}
	if s := r.Stats(); s.Evictions == 0 || s.Bytes > 10<<20 {
		t.Errorf("%+v", s)
	}
	// Somebody else takes the rest, after the fill has looked and has begun.
	want := content(99, 1<<20)
	r.web.put("late", want, "late")
	filler := filepath.Join(dir, "filler")
	r.settled()
	r.Cache.opts.KeepFree = 0
	open := gate(r, want, 0, 1000)
	defer open()
	f := r.acquire(r.ref("late"))
	defer f.Release()
	if _, err := f.Await(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filler); err == nil {
		t.Fatal("there already")
	}
	if err := os.WriteFile(filler, make([]byte, 12<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	before := r.Stats().Evictions
	open()
	if got, err := r.read(f, 0, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if r.Stats().Evictions == before {
		t.Error("nothing was evicted: the fill has not met the full disk")
	}
	r.web.setFault(nil)
	// Nothing may go any more.
	for _, s := range first(r.List("", 100)) {
		r.Pin(s.Path, true)
	}
	r.web.put("none", content(98, 8<<20), "none")
	none := r.acquire(r.ref("none"))
	defer none.Release()
	if _, err := none.Await(t.Context(), 0); !errors.Is(err, wire.ReasonLimit) {
		t.Errorf("%v", err)
	}
	if got, err := r.read(f, 0, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what is there: %d bytes, %v", len(got), err)
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestReadOnlyDirectory(t *testing.T) {
	r := newRig(t)
	opts := r.opts
	opts.Dir = disk(t, "1m", unix.MS_RDONLY)
	if c, err := Open("vod", testSource(t, r.web.URL), opts); err == nil || !errors.Is(err, unix.EROFS) {
		t.Errorf("%v, cache %v", err, c)
	}
}
