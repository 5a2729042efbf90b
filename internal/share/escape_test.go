package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func mknod(t *testing.T, path string, mode uint32, dev uint64) {
	t.Helper()
	if err := unix.Mknod(path, mode, int(dev)); err != nil {
		t.Fatalf("mknod %s: %v", path, err)
	}
}

func TestRefusedPaths(t *testing.T) {
	needRoot(t)
	s, dir := newShare(t, Options{})
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "", 0)
	write(t, filepath.Join(dir, "d/f"), "", 0)
	symlink(t, filepath.Join(outside, "secret"), filepath.Join(dir, "to-secret"))
	symlink(t, "d/f", filepath.Join(dir, "to-inside"))
	symlink(t, "d", filepath.Join(dir, "to-dir-inside"))
	symlink(t, outside, filepath.Join(dir, "to-outside"))
	symlink(t, "loop", filepath.Join(dir, "loop"))
	symlink(t, "nowhere", filepath.Join(dir, "dangling"))
	mknod(t, filepath.Join(dir, "fifo"), unix.S_IFIFO|0o644, 0)
	mknod(t, filepath.Join(dir, "socket"), unix.S_IFSOCK|0o644, 0)
	mknod(t, filepath.Join(dir, "null"), unix.S_IFCHR|0o644, unix.Mkdev(1, 3))
	// No driver has these numbers (Documentation/admin-guide/devices.txt: local use), so whoever opened them would get ENXIO.
	mknod(t, filepath.Join(dir, "char"), unix.S_IFCHR|0o644, unix.Mkdev(60, 200))
	mknod(t, filepath.Join(dir, "block"), unix.S_IFBLK|0o644, unix.Mkdev(60, 200))

	for _, c := range []struct {
		path string
		want wire.Reason
	}{
		{"..", wire.ReasonForbidden},
		{"../" + filepath.Base(dir) + "/d/f", wire.ReasonForbidden},
		{"d/../../" + filepath.Base(outside) + "/secret", wire.ReasonForbidden},
		{"d/../d/f", wire.ReasonForbidden},
		{filepath.Join(outside, "secret"), wire.ReasonForbidden},
		{filepath.Join(dir, "d/f"), wire.ReasonForbidden},
		{"", wire.ReasonForbidden},
		{".", wire.ReasonForbidden},
		{"./d/f", wire.ReasonForbidden},
		{"d//f", wire.ReasonForbidden},
		{"d/f/", wire.ReasonForbidden},
		{"d/f\x00", wire.ReasonForbidden},
		{strings.Repeat("d/", wire.MaxPath/2) + "f", wire.ReasonForbidden},
		{"to-secret", wire.ReasonForbidden},
		{"to-inside", wire.ReasonForbidden},
		{"to-dir-inside/f", wire.ReasonForbidden},
		{"to-outside/secret", wire.ReasonForbidden},
		{"to-outside", wire.ReasonForbidden},
		{"loop", wire.ReasonForbidden},
		{"dangling", wire.ReasonForbidden},
		{"missing", wire.ReasonNotFound},
		{"missing/f", wire.ReasonNotFound},
		{"d/f/g", wire.ReasonNotFound},
		{strings.Repeat("n", unix.NAME_MAX+1), wire.ReasonNotFound},
		{"d", wire.ReasonNotRegular},
		{"fifo", wire.ReasonNotRegular},
		{"socket", wire.ReasonNotRegular},
		{"null", wire.ReasonNotRegular},
		{"char", wire.ReasonNotRegular},
		{"block", wire.ReasonNotRegular},
	} {
		refused(t, s, c.path, c.want)
	}
	if got := s.Stats(); got != (Stats{}) || openFilesIn(t, dir) != 0 {
		t.Errorf("refused files left something: %+v, %q", got, openFiles(t, dir))
	}
}

// TestKernelRefusesEscapes asks the kernel alone, without the check of the path's form before it.
func TestKernelRefusesEscapes(t *testing.T) {
	s, dir := newShare(t, Options{})
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "", 0)
	write(t, filepath.Join(dir, "d/f"), "", 0)
	for _, path := range []string{
		"..", "../" + filepath.Base(outside) + "/secret", "d/../../" + filepath.Base(outside) + "/secret", "d/../..",
		filepath.Join(outside, "secret"), filepath.Join(dir, "d/f"), "/",
	} {
		fd, err := openBeneath(int(s.tree.dir.Fd()), path)
		if err == nil {
			unix.Close(fd)
		}
		if err != unix.EXDEV || reasonOf(err) != wire.ReasonForbidden {
			t.Errorf("%q: %v, reason %v", path, err, reasonOf(err))
		}
	}
}

// TestMagicLinks makes a directory of proc a share. Its links lead anywhere without being text.
func TestMagicLinks(t *testing.T) {
	secret, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	s, err := Open(testShare, "/proc/self", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, path := range []string{"exe", "root/etc/passwd", "cwd/share_test.go", fmt.Sprintf("fd/%d", secret.Fd()), "ns/mnt"} {
		refused(t, s, path, wire.ReasonForbidden)
	}
}

// TestPermission reads as a process without the capabilities that let root read everything.
func TestPermission(t *testing.T) {
	needRoot(t)
	s, dir := newShare(t, Options{})
	for _, name := range []string{"none", "locked/f", "readable"} {
		write(t, filepath.Join(dir, name), "12345", 1)
	}
	const other = 12345 // uid and gid
	if err := errors.Join(os.Chown(dir+"/none", other, other), os.Chmod(dir+"/none", 0), os.Chown(dir+"/readable", other, other),
		os.Chown(dir+"/locked", other, other), os.Chmod(dir+"/locked", 0)); err != nil {
		t.Fatal(err)
	}
	onThread(t, func() error {
		if err := dropCapabilities(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER); err != nil {
			return err
		}
		for _, path := range []string{"none", "locked/f"} {
			_, err := s.Acquire(ref(path, 5, 1))
			if !errors.Is(err, wire.ReasonForbidden) || !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("%s: %v, want forbidden for EACCES", path, err)
			}
		}
		// O_NOATIME is refused on the file of another user: opened without.
		f, err := s.Acquire(ref("readable", 5, 1))
		if err != nil {
			return err
		}
		defer f.Release()
		flags, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NOATIME != 0 || flags&unix.O_ACCMODE != unix.O_RDONLY {
			return fmt.Errorf("flags %#x, %v, want plain read-only", flags, err)
		}
		return nil
	})
}

// dropCapabilities takes capabilities off the calling thread's effective set.
func dropCapabilities(capabilities ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// TestMountsBeneathAShare needs a mount namespace, which lives and dies with a thread.
func TestMountsBeneathAShare(t *testing.T) {
	needRoot(t)
	dir, library := t.TempDir(), t.TempDir()
	write(t, filepath.Join(library, "f"), "bind", 1)
	for _, d := range []string{"bind", "tmpfs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	onThread(t, func() error {
		if err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(library, filepath.Join(dir, "bind"), "", unix.MS_BIND, ""),
			unix.Mount("tmpfs", filepath.Join(dir, "tmpfs"), "tmpfs", 0, ""),
			os.WriteFile(filepath.Join(dir, "tmpfs/f"), []byte("tmpf"), 0o644),
			os.Chtimes(filepath.Join(dir, "tmpfs/f"), time.Time{}, time.Unix(0, 1)),
		); err != nil {
			return err
		}
		s, err := Open(testShare, dir, Options{})
		if err != nil {
			return err
		}
		defer s.Close()
		for path, want := range map[string]string{"bind/f": "bind", "tmpfs/f": "tmpf"} {
			f, err := s.Acquire(ref(path, 4, 1))
			if err != nil {
				return err
			}
			defer f.Release()
			got := make([]byte, 4)
			if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
				return fmt.Errorf("%s: %q, %v", path, got, err)
			}
		}
		// The way back up through a mount is closed too.
		fd, err := openBeneath(int(s.tree.dir.Fd()), "bind/../../"+filepath.Base(library)+"/f")
		if err == nil {
			unix.Close(fd)
		}
		if err != unix.EXDEV {
			return fmt.Errorf("escape through a mount: %v", err)
		}
		return nil
	})
}

// TestExchangedWhileOpened flips a path between a file and something forbidden, as fast as it goes, while the file is acquired.
// Everything that could tell the two apart afterwards, size and modification time, is equal.
func TestExchangedWhileOpened(t *testing.T) {
	const good, secret = "good bytes", "SECRET!!!!"
	outside := t.TempDir()
	write(t, filepath.Join(outside, "f"), secret, 1)
	for _, c := range []struct {
		name, path, flipped string
		bad                 func(t *testing.T, path string)
		want                wire.Reason
	}{
		{"symlink to a file", "f", "f", func(t *testing.T, p string) { symlink(t, filepath.Join(outside, "f"), p) }, wire.ReasonForbidden},
		{"symlink to a directory", "d/f", "d", func(t *testing.T, p string) { symlink(t, outside, p) }, wire.ReasonForbidden},
		{"FIFO", "f", "f", func(t *testing.T, p string) { mknod(t, p, unix.S_IFIFO|0o644, 0) }, wire.ReasonNotRegular},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, dir := newShare(t, Options{MaxOpenFiles: 1})
			write(t, filepath.Join(dir, c.path), good, 1)
			write(t, filepath.Join(dir, "other"), "", 1)
			current, bad := filepath.Join(dir, c.flipped), filepath.Join(dir, "bad")
			c.bad(t, bad)
			stop := make(chan struct{})
			var flipper sync.WaitGroup
			flipper.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if err := unix.Renameat2(unix.AT_FDCWD, current, unix.AT_FDCWD, bad, unix.RENAME_EXCHANGE); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
			defer flipper.Wait()
			defer close(stop)

			// Both outcomes must be seen often, or the race was not run.
			const enough = 300
			deadline := time.Now().Add(patience)
			for acquired, declined := 0, 0; acquired < enough || declined < enough; {
				if time.Now().After(deadline) {
					t.Fatalf("acquired %d times, refused %d times, want %d of each", acquired, declined, enough)
				}
				f, err := s.Acquire(ref(c.path, len(good), 1))
				switch {
				case err == nil:
					acquired++
					if got := content(t, f); got != good {
						t.Fatalf("read %q", got)
					}
					f.Release()
				case errors.Is(err, c.want):
					declined++
				default:
					t.Fatal(err)
				}
				acquire(t, s, ref("other", 0, 1)).Release() // evicts the file: the path is resolved every time
			}
		})
	}
}
