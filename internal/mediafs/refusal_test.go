package mediafs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestRefusals(t *testing.T) {
	d, path := newDir(t, Options{})
	outside := filepath.Join(t.TempDir(), "secret")
	writeFile(t, outside, []byte("secret"))
	writeFile(t, filepath.Join(path, "dir/file"), []byte("x"))
	if err := os.Symlink(outside, filepath.Join(path, "absolute")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../.."+outside, filepath.Join(path, "relative")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dir/file", filepath.Join(path, "inside")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(path, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, d, "inside"); got != "x" {
		t.Errorf("a link inside the directory reads %q", got)
	}
	for _, test := range []struct {
		name string
		want error
	}{
		{"../secret", fs.ErrInvalid}, {"/etc/passwd", fs.ErrInvalid}, {"dir/../dir/file", fs.ErrInvalid}, {"", fs.ErrInvalid},
		{"dir/", fs.ErrInvalid}, {"missing", fs.ErrNotExist}, {"dir/file/x", syscall.ENOTDIR}, {"nul\x00", syscall.EINVAL},
		{"absolute", ErrEscapes}, {"relative", ErrEscapes},
		{"dir", ErrNotRegular}, {".", ErrNotRegular}, {"fifo", ErrNotRegular},
	} {
		_, err := d.Open(test.name)
		var pe *fs.PathError
		if !errors.Is(err, test.want) || !errors.As(err, &pe) {
			t.Errorf("Open(%q): %v, want a PathError with %v", test.name, err, test.want)
		} else if pe.Path != test.name {
			t.Errorf("Open(%q): the error names %q", test.name, pe.Path)
		}
	}
	if !errors.Is(ErrEscapes, fs.ErrNotExist) || !errors.Is(ErrNotRegular, fs.ErrNotExist) {
		t.Error("a server cannot take the refusals for a missing file")
	}
	if got := d.Counters().Opened; got != 1 {
		t.Errorf("%d opens, want only the link's: a refused name must not be opened", got)
	}
	if info, err := d.Stat("dir"); err != nil || !info.IsDir() {
		t.Errorf("Stat of a directory: %v, %v", info, err)
	}
}

// TestDevice: a character device that somebody has made in the share.
func TestDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a device node")
	}
	d, path := newDir(t, Options{})
	if err := syscall.Mknod(filepath.Join(path, "device"), syscall.S_IFCHR|0o644, 1<<8|5); err != nil { // /dev/zero
		t.Fatal(err)
	}
	if _, err := d.Open("device"); !errors.Is(err, ErrNotRegular) {
		t.Errorf("Open: %v, want ErrNotRegular", err)
	}
	if got := d.Counters().Opened; got != 0 {
		t.Errorf("%d opens: a device must not be opened", got)
	}
}

// TestFIFOInPlaceOfFile opens a name that became a FIFO after stat(2) had called it a regular file.
func TestFIFOInPlaceOfFile(t *testing.T) {
	d, path := newDir(t, Options{MaxIdlePerFile: -1})
	path = filepath.Join(path, "f")
	writeFile(t, path, []byte("x"))
	readAll(t, d, "f")
	f := openFile(t, d, "f")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, ErrNotRegular) {
		t.Errorf("Read: %v, want ErrNotRegular", err)
	}
}
