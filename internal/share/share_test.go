package share

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// patience is how long a test waits for something that should not take any time.
const patience = time.Minute

const testShare = "movies"

// newShare returns a share over a new directory. When the test is over, nothing beneath the directory may be open.
func newShare(t testing.TB, opts Options) (*Share, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(testShare, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if open := openFiles(t, dir); len(open) > 0 {
			t.Errorf("left open: %q", open)
		}
	})
	return s, dir
}

// openFiles lists what this process has open beneath dir, and dir itself.
func openFiles(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && (target == dir || strings.HasPrefix(target, dir+"/")) {
			open = append(open, target)
		}
	}
	return open
}

// openFilesIn is openFiles without the directory itself, which a share holds.
func openFilesIn(t testing.TB, dir string) int {
	t.Helper()
	n := 0
	for _, target := range openFiles(t, dir) {
		if target != dir {
			n++
		}
	}
	return n
}

// write creates a file, or rewrites it in place, with the given modification time.
func write(t testing.TB, path, content string, mtimeNs int64) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
	setMTime(t, path, mtimeNs)
}

func setMTime(t testing.TB, path string, mtimeNs int64) {
	t.Helper()
	if err := os.Chtimes(path, time.Time{}, time.Unix(0, mtimeNs)); err != nil {
		t.Fatal(err)
	}
}

// replace puts a new file into the place of another one.
func replace(t testing.TB, path, content string, mtimeNs int64) {
	t.Helper()
	tmp := path + ".new"
	write(t, tmp, content, mtimeNs)
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func ref(path string, size int, mtimeNs int64) wire.FileRef {
	return wire.FileRef{Share: testShare, Path: path, Size: int64(size), MTime: mtimeNs}
}

func acquire(t testing.TB, s *Share, r wire.FileRef) *File {
	t.Helper()
	f, err := s.Acquire(r)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t testing.TB, f *File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// refused checks that both Stat and Acquire refuse a path for one reason, in the form that errors have, and open nothing.
func refused(t *testing.T, s *Share, path string, want wire.Reason) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, err := s.Stat(path)
		wantReason(t, "stat", path, err, want)
		f, err := s.Acquire(ref(path, 0, 0))
		if err == nil {
			f.Release()
		}
		wantReason(t, "acquire", path, err, want)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%q blocks", path)
	}
}

func wantReason(t *testing.T, op, path string, err error, want wire.Reason) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s %q: %v, want reason %v", op, path, err, want)
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Op != op || e.Path != path || e.Share != testShare || e.Reason != want || e.Err == nil {
		t.Errorf("%s %q: %#v", op, path, err)
	}
}

// needRoot skips a test that makes devices, owners or mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_MKNOD, CAP_CHOWN, CAP_SYS_ADMIN, CAP_SYS_CHROOT)")
	}
}

// onThread runs f on an OS thread of its own, whose credentials, root and namespaces it may spoil: the thread ends with it.
func onThread(t *testing.T, f func() error) {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestStatAndAcquire(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "a/b/c.m4s"), "twelve bytes", 1_700_000_000_123_456_789)
	size, mtime, err := s.Stat("a/b/c.m4s")
	if size != 12 || mtime != 1_700_000_000_123_456_789 || err != nil {
		t.Fatalf("Stat: %d, %d, %v", size, mtime, err)
	}
	f := acquire(t, s, ref("a/b/c.m4s", 12, mtime))
	defer f.Release()
	if got := content(t, f); got != "twelve bytes" || f.Size() != 12 {
		t.Errorf("content %q, size %d", got, f.Size())
	}
	flags, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_NOATIME == 0 || flags&unix.O_PATH != 0 {
		t.Errorf("file flags %#x, %v, want read-only and no access times", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v, want close-on-exec", flags, err)
	}
}

func TestStatIsFresh(t *testing.T) {
	s, dir := newShare(t, Options{})
	path := filepath.Join(dir, "f")
	write(t, path, "old", 1)
	defer acquire(t, s, ref("f", 3, 1)).Release()
	replace(t, path, "newer", 2)
	if size, mtime, err := s.Stat("f"); size != 5 || mtime != 2 || err != nil {
		t.Errorf("Stat: %d, %d, %v, want the new file", size, mtime, err)
	}
}

func TestReadAt(t *testing.T) {
	s, dir := newShare(t, Options{})
	path := filepath.Join(dir, "f")
	write(t, path, "0123456789", 1)
	f := acquire(t, s, ref("f", 10, 1))
	defer f.Release()
	for _, c := range []struct {
		off  int64
		len  int
		want string
		err  error
	}{
		{0, 10, "0123456789", nil}, {3, 4, "3456", nil}, {8, 5, "89", io.EOF}, {10, 1, "", io.EOF}, {10, 0, "", nil}, {99, 1, "", io.EOF},
		{-1, 1, "", wire.ReasonInvalid},
	} {
		p := make([]byte, c.len)
		n, err := f.ReadAt(p, c.off)
		if string(p[:n]) != c.want || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
			t.Errorf("ReadAt(%d bytes, %d): %q, %v, want %q, %v", c.len, c.off, p[:n], err, c.want, c.err)
		}
	}

	write(t, path, "0123456789 and more", 2)
	p := make([]byte, 20)
	if n, err := f.ReadAt(p, 0); n != 10 || err != io.EOF {
		t.Errorf("grown file: %d bytes, %v, want no byte more than the version has", n, err)
	}
	write(t, path, "0123", 3)
	n, err := f.ReadAt(p, 0)
	if n != 4 || !errors.Is(err, wire.ReasonTruncated) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated file: %d bytes, %v", n, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "", 1)
	for _, c := range []struct {
		name, dir string
		opts      Options
		want      error
		says      string
	}{
		{"", dir, Options{}, wire.ReasonInvalid, "1 to 64 bytes"},
		{strings.Repeat("x", wire.MaxShare+1), dir, Options{}, wire.ReasonInvalid, "1 to 64 bytes"},
		{"x", dir, Options{MaxOpenFiles: -1}, wire.ReasonInvalid, "MaxOpenFiles"},
		{"x", filepath.Join(dir, "missing"), Options{}, fs.ErrNotExist, "missing"},
		{"x", file, Options{}, unix.ENOTDIR, file},
	} {
		s, err := Open(c.name, c.dir, c.opts)
		if err == nil {
			s.Close()
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.Op != "open" || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Open(%q, %q): %v, want %v with %q", c.name, c.dir, err, c.want, c.says)
		}
	}
	if open := openFiles(t, dir); len(open) > 0 {
		t.Errorf("left open: %q", open)
	}
}

func TestOpenWithoutProc(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	onThread(t, func() error {
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(root)); err != nil {
			return err
		}
		s, err := Open(testShare, "/", Options{})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "mount proc on /proc") {
			return fmt.Errorf("Open: %v, want the advice to mount /proc", err)
		}
		return nil
	})
}

func TestShareStaysWithItsDirectory(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "dir")
	write(t, filepath.Join(dir, "f"), "right", 1)
	s, err := Open(testShare, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "f"), "wrong", 1)
	f := acquire(t, s, ref("f", 5, 1))
	defer f.Release()
	if got := content(t, f); got != "right" {
		t.Errorf("content %q", got)
	}
}

func TestOtherShare(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "", 1)
	_, err := s.Acquire(wire.FileRef{Share: "other", Path: "f", MTime: 1})
	wantReason(t, "acquire", "f", err, wire.ReasonShareUnknown)
}

func TestClose(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "used"), "used", 1)
	write(t, filepath.Join(dir, "idle"), "idle", 1)
	f := acquire(t, s, ref("used", 4, 1))
	acquire(t, s, ref("idle", 4, 1)).Release()
	s.Close()
	s.Close()
	if open := openFiles(t, dir); len(open) != 1 {
		t.Errorf("open after Close: %q, want the file in use", open)
	}
	if got := content(t, f); got != "used" {
		t.Errorf("file in use: %q", got)
	}
	for _, path := range []string{"used", "idle"} {
		_, _, err := s.Stat(path)
		wantReason(t, "stat", path, err, wire.ReasonShareUnknown)
		_, err = s.Acquire(ref(path, 4, 1))
		wantReason(t, "acquire", path, err, wire.ReasonShareUnknown)
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%v is not fs.ErrClosed", err)
		}
	}
	f.Release()
	if open := openFiles(t, dir); len(open) != 0 || s.Stats().Open != 0 {
		t.Errorf("open after Release: %q, %+v", open, s.Stats())
	}
}

func TestReleaseTooOften(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "", 1)
	f := acquire(t, s, ref("f", 0, 1))
	f.Release()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		f.refs = 0
	}()
	f.Release()
}

// TestUnlinkedKeepsSending sends a file that was removed in the middle.
func TestUnlinkedKeepsSending(t *testing.T) {
	s, dir := newShare(t, Options{})
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	write(t, filepath.Join(dir, "f"), string(want), 1)
	f := acquire(t, s, ref("f", len(want), 1))
	defer f.Release()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		defer w.Close()
		for off := int64(0); off < f.Size(); {
			if off > 0 {
				os.Remove(filepath.Join(dir, "f"))
			}
			if n, err := unix.Sendfile(int(w.Fd()), f.Fd(), &off, 1000); err != nil || n == 0 {
				t.Errorf("sendfile at %d: %d, %v", off, n, err)
				return
			}
		}
	}()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, want the %d of the file", len(got), err, len(want))
	}
	if _, err := os.Stat(filepath.Join(dir, "f")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file still exists: %v", err)
	}
}

func TestForget(t *testing.T) {
	s, dir := newShare(t, Options{})
	for _, name := range []string{"idle", "used"} {
		write(t, filepath.Join(dir, name), "abc", 1)
	}
	acquire(t, s, ref("idle", 3, 1)).Release()
	used := acquire(t, s, ref("used", 3, 1))
	s.Forget("idle")
	s.Forget("used")
	s.Forget("none")
	if got := s.Stats(); got.Open != 1 || got.Idle != 0 || openFilesIn(t, dir) != 1 {
		t.Errorf("%+v, %d really open", got, openFilesIn(t, dir))
	}
	if got := content(t, used); got != "abc" {
		t.Errorf("in use: %q", got)
	}
	used.Release()
	if got := s.Stats(); got.Open != 0 || openFilesIn(t, dir) != 0 {
		t.Errorf("%+v, %d really open", got, openFilesIn(t, dir))
	}
}
