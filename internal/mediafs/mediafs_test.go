package mediafs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"spillway/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that only a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// replaceFile puts a new file in the place of an old one, as a cache or a packager does.
func replaceFile(t *testing.T, path string, content []byte) {
	t.Helper()
	writeFile(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func newDir(t *testing.T, opts Options) (*Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := NewDir("vod", path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d, path
}

func openFile(t *testing.T, d *Dir, name string) *File {
	t.Helper()
	f, err := d.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.(*File)
}

func readAll(t *testing.T, d *Dir, name string) string {
	t.Helper()
	f := openFile(t, d, name)
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOpenCostsNothingPerRequest(t *testing.T) {
	clk := &clock{now: time.Now()}
	d, path := newDir(t, Options{Now: clk.Now})
	writeFile(t, filepath.Join(path, "a/seg.m4s"), []byte("segment"))

	for range 100 {
		if got := readAll(t, d, "a/seg.m4s"); got != "segment" {
			t.Fatalf("read %q", got)
		}
	}
	want := Counters{Opened: 1, Reused: 99, Checked: 1, Idle: 1}
	if diff := cmp.Diff(want, d.Counters()); diff != "" {
		t.Errorf("100 reads (-want +got):\n%s", diff)
	}
	clk.now = clk.now.Add(DefaultAttributeTTL)
	readAll(t, d, "a/seg.m4s")
	want = Counters{Opened: 1, Reused: 100, Checked: 2, Idle: 1}
	if diff := cmp.Diff(want, d.Counters()); diff != "" {
		t.Errorf("after the TTL (-want +got):\n%s", diff)
	}
}

func TestHostFileNeedsNoDescriptor(t *testing.T) {
	d, path := newDir(t, Options{MaxIdle: 1})
	mtime := time.Unix(1_700_000_000, 123_456_789)
	names := []string{"1.m4s", "2.m4s", "3.m4s"}
	for _, name := range names {
		writeFile(t, filepath.Join(path, name), []byte("0123456789"))
		if err := os.Chtimes(filepath.Join(path, name), mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		for _, name := range names {
			f := openFile(t, d, name)
			if _, err := f.Seek(-4, io.SeekEnd); err != nil {
				t.Fatal(err)
			}
			ref, offset, ok := f.HostFile()
			want := wire.FileRef{Share: "vod", Path: name, Size: 10, MTime: mtime.UnixNano()}
			if diff := cmp.Diff(want, ref); diff != "" || offset != 6 || !ok {
				t.Fatalf("HostFile = offset %d, ok %v, (-want +got):\n%s", offset, ok, diff)
			}
			f.Close()
		}
	}
	if got := d.Counters(); got.Opened != 3 || got.Reused != 0 {
		t.Errorf("30 requests that read nothing here: %+v, want one open of each file, which proves that it is readable", got)
	}
}

func TestHostFileFollowsReads(t *testing.T) {
	d, path := newDir(t, Options{})
	writeFile(t, filepath.Join(path, "f"), []byte("0123456789"))
	f := openFile(t, d, "f")
	if _, err := io.ReadFull(f, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if _, offset, ok := f.HostFile(); !ok || offset != 3 {
		t.Errorf("after reading 3 bytes: offset %d, ok %v", offset, ok)
	}
	f.Close()
	if _, _, ok := f.HostFile(); ok {
		t.Error("a closed file stands for a host file")
	}

	bare, err := NewDir("", path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bare.Close() })
	if _, _, ok := openFile(t, bare, "f").HostFile(); ok {
		t.Error("a file of no share stands for a host file")
	}
}

func TestPositionsAreIndependent(t *testing.T) {
	d, path := newDir(t, Options{})
	content := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	writeFile(t, filepath.Join(path, "f"), content)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 50 {
				f, err := d.Open("f")
				if err != nil {
					t.Error(err)
					return
				}
				from := int64(i * 1000)
				_, err = f.(*File).Seek(from, io.SeekStart)
				got, readErr := io.ReadAll(f)
				if err != nil || readErr != nil || !bytes.Equal(got, content[from:]) {
					t.Errorf("reader %d: wrong bytes (seek: %v, read: %v)", i, err, readErr)
				}
				f.Close()
			}
		})
	}
	wg.Wait()
}

func TestChangesAreSeenAfterTheTTL(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(t *testing.T, path string)
		want   string
		wantEr error
	}{
		{"replaced", func(t *testing.T, path string) { replaceFile(t, path, []byte("new")) }, "new", nil},
		{"grown", func(t *testing.T, path string) { writeFile(t, path, []byte("old and more")) }, "old and more", nil},
		{"touched", func(t *testing.T, path string) {
			then := time.Unix(1, 1)
			if err := os.Chtimes(path, then, then); err != nil {
				t.Fatal(err)
			}
		}, "old", nil},
		{"removed", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, "", fs.ErrNotExist},
	} {
		t.Run(test.name, func(t *testing.T) {
			clk := &clock{now: time.Now()}
			d, path := newDir(t, Options{Now: clk.Now})
			path = filepath.Join(path, "f")
			writeFile(t, path, []byte("old"))
			readAll(t, d, "f")
			before, err := d.Stat("f")
			if err != nil {
				t.Fatal(err)
			}

			test.change(t, path)
			young, err := d.Stat("f")
			if err != nil || !young.ModTime().Equal(before.ModTime()) {
				t.Errorf("within the TTL stat was asked again: %v, %v", young, err)
			}
			clk.now = clk.now.Add(DefaultAttributeTTL)
			f, err := d.Open("f")
			if !errors.Is(err, test.wantEr) {
				t.Fatalf("Open: %v, want %v", err, test.wantEr)
			}
			if got := d.Counters().Idle; got != 0 {
				t.Errorf("%d stale descriptors in the pool", got)
			}
			if err != nil {
				return
			}
			defer f.Close()
			got, err := io.ReadAll(f)
			if err != nil || string(got) != test.want {
				t.Errorf("read %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestReadAfterReplacementFails(t *testing.T) {
	clk := &clock{now: time.Now()}
	d, path := newDir(t, Options{Now: clk.Now, MaxIdlePerFile: -1})
	writeFile(t, filepath.Join(path, "f"), []byte("old"))
	readAll(t, d, "f") // proves that the file can be read; nothing is pooled

	f := openFile(t, d, "f")
	replaceFile(t, filepath.Join(path, "f"), []byte("new"))
	if got, err := io.ReadAll(f); !errors.Is(err, ErrChanged) || len(got) != 0 {
		t.Errorf("read %q, %v; want ErrChanged: the attributes belong to another file", got, err)
	}
	if _, err := f.SyscallConn(); !errors.Is(err, ErrChanged) {
		t.Errorf("SyscallConn: %v, want ErrChanged", err)
	}
	if got := readAll(t, d, "f"); got != "new" {
		t.Errorf("the next request reads %q", got)
	}
}

func TestReleaseClosesDescriptors(t *testing.T) {
	d, path := newDir(t, Options{})
	writeFile(t, filepath.Join(path, "f"), []byte("old"))
	readAll(t, d, "f")
	inUse := openFile(t, d, "f")
	if _, err := inUse.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	before := openDescriptors(t, path)
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	inUse.Close()
	if after := openDescriptors(t, path); len(before) != 2 || len(after) != 0 {
		t.Errorf("descriptors below the directory: %v before, %v after; want the root and one file before, none after", before, after)
	}
	if got := readAll(t, d, "f"); got != "old" {
		t.Errorf("after Release: read %q", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open("f"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
}

// openDescriptors lists what this process has open at or below a path.
func openDescriptors(t *testing.T, path string) []string {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var below []string
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if rel, relErr := filepath.Rel(path, target); err == nil && relErr == nil && filepath.IsLocal(rel) {
			below = append(below, target)
		}
	}
	return below
}

func TestPoolBounds(t *testing.T) {
	d, path := newDir(t, Options{MaxIdle: 3, MaxIdlePerFile: 2, MaxPaths: 4})
	for _, name := range []string{"1", "2", "3", "4", "5"} {
		writeFile(t, filepath.Join(path, name), []byte(name))
		var files []*File
		for range 4 { // four requests at once
			f := openFile(t, d, name)
			if _, err := f.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		for _, f := range files {
			f.Close()
			f.Close()
		}
		if got := d.Counters().Idle; got != min(3, len(openDescriptors(t, path))-1) || got > 3 {
			t.Fatalf("after %s: %d idle, open: %v", name, got, openDescriptors(t, path))
		}
	}
	if got := len(openDescriptors(t, path)); got != 4 {
		t.Errorf("%d descriptors are open, want the root and 3 files", got)
	}
	if got := len(d.pool.entries); got != 4 {
		t.Errorf("%d names are remembered, want 4", got)
	}
	opened := d.Counters().Opened
	readAll(t, d, "5") // most recently used: still there
	if got := d.Counters().Opened; got != opened {
		t.Error("the most recently used descriptor was evicted")
	}
}

func TestFileContract(t *testing.T) {
	d, path := newDir(t, Options{})
	writeFile(t, filepath.Join(path, "f"), []byte("0123456789"))
	f := openFile(t, d, "f")
	if _, err := f.Seek(-1, io.SeekStart); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Seek before the start: %v", err)
	}
	if _, err := f.Seek(0, 7); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("Seek with a bad whence: %v", err)
	}
	buf := make([]byte, 4)
	if n, err := f.ReadAt(buf, 8); n != 2 || err != io.EOF {
		t.Errorf("ReadAt the end: %d, %v", n, err)
	}
	if pos, err := f.Seek(5, io.SeekCurrent); pos != 5 || err != nil {
		t.Errorf("ReadAt moved the position: %d, %v", pos, err)
	}
	writeFile(t, filepath.Join(path, "f"), []byte("0123456789 grown"))
	if end, err := f.Seek(0, io.SeekEnd); end != 10 || err != nil {
		t.Errorf("end = %d, %v; want the size from Open", end, err)
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	_, readErr := f.Read(buf)
	_, seekErr := f.Seek(0, io.SeekStart)
	_, connErr := f.SyscallConn()
	for _, err := range []error{readErr, seekErr, connErr} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("use after Close: %v", err)
		}
	}
}

func TestClearsNonblock(t *testing.T) {
	d, path := newDir(t, Options{})
	writeFile(t, filepath.Join(path, "f"), []byte("x"))
	raw, err := openFile(t, d, "f").SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags uintptr
	if err := raw.Control(func(fd uintptr) {
		flags, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
	}); err != nil {
		t.Fatal(err)
	}
	if flags&syscall.O_NONBLOCK != 0 {
		t.Error("O_NONBLOCK is still set: 9p would answer short reads")
	}
}

// TestReadsLikeAnyFS runs the standard library's checks of the file contract over each regular file. (The whole of fstest.TestFS
// cannot run: it demands that directories open.)
func TestReadsLikeAnyFS(t *testing.T) {
	d, path := newDir(t, Options{})
	want := fstest.MapFS{"a": {Data: []byte("aaa")}, "b/c": {Data: bytes.Repeat([]byte("c"), 100_000)}, "empty": {}}
	for name, file := range want {
		writeFile(t, filepath.Join(path, name), file.Data)
	}
	for name, file := range want {
		got, err := fs.ReadFile(d, name)
		if err != nil || !bytes.Equal(got, file.Data) {
			t.Errorf("ReadFile(%q): %d bytes, %v", name, len(got), err)
		}
		info, err := fs.Stat(d, name)
		if err != nil || info.Size() != int64(len(file.Data)) {
			t.Errorf("Stat(%q): %v, %v", name, info, err)
		}
	}
}
