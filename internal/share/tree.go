package share

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// maxResolveAttempts bounds the retries after EAGAIN, with which openat2(2) says that a rename raced with the lookup. The kernel
// gives it for ".." alone, which no valid path contains.
const maxResolveAttempts = 8

// attributes identify one version of a file. They are comparable.
type attributes struct {
	dev, ino uint64
	size     int64 // bytes
	mtimeNs  int64 // since 1970
}

// match reports whether the guest believes in this version.
func (a attributes) match(ref *wire.FileRef) bool {
	return a.size == ref.Size && a.mtimeNs == ref.MTime
}

// fstat returns the attributes of an open file and its type (S_IFMT).
func fstat(fd int) (attributes, uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attributes{}, 0, fmt.Errorf("fstat: %w", err)
	}
	a := attributes{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtimeNs: st.Mtim.Nano()}
	return a, st.Mode & unix.S_IFMT, nil
}

// tree resolves paths beneath one directory. It is safe for concurrent use, close included: os.File counts who is in a call.
type tree struct {
	dir  *os.File // O_PATH
	conn syscall.RawConn
}

// newTree takes hold of a directory and proves that the kernel offers what the tree needs.
func newTree(dir string) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	conn, err := f.SyscallConn()
	if err == nil {
		err = probe(fd)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &tree{dir: f, conn: conn}, nil
}

func probe(dir int) error {
	fd, err := openBeneath(dir, ".")
	if err != nil {
		return fmt.Errorf("openat2: %w (Linux 5.6 or newer is needed, and a seccomp filter must allow the call)", err)
	}
	defer unix.Close(fd)
	var direct, link unix.Stat_t
	if err := unix.Fstat(fd, &direct); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if err := unix.Stat(descriptorPath(fd), &link); err != nil {
		return fmt.Errorf("%s: %w (mount proc on /proc)", descriptorPath(fd), err)
	}
	if direct.Dev != link.Dev || direct.Ino != link.Ino {
		return fmt.Errorf("%s leads to another file (mount proc on /proc)", descriptorPath(fd))
	}
	return nil
}

// close lets the directory go, now or when the last call under way is done.
func (t *tree) close() { t.dir.Close() }

// stat returns the attributes of the regular file that path names now.
func (t *tree) stat(path string) (attributes, error) {
	fd, a, err := t.pin(path)
	if err != nil {
		return attributes{}, err
	}
	unix.Close(fd)
	return a, nil
}

// open opens the regular file that path names, for reading. The caller closes the descriptor.
func (t *tree) open(path string) (int, attributes, error) {
	pinned, _, err := t.pin(path)
	if err != nil {
		return -1, attributes{}, err
	}
	defer unix.Close(pinned)
	fd, err := reopen(pinned)
	if err != nil {
		return -1, attributes{}, fmt.Errorf("open for reading: %w", err)
	}
	a, _, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return -1, attributes{}, err
	}
	return fd, a, nil
}

// pin returns an O_PATH descriptor of the regular file that path names. The caller closes it.
func (t *tree) pin(path string) (int, attributes, error) {
	if !wire.ValidPath(path) {
		return -1, attributes{}, errPath
	}
	fd := -1
	var err error
	if t.conn.Control(func(dir uintptr) { fd, err = openBeneath(int(dir), path) }) != nil {
		return -1, attributes{}, fs.ErrClosed // the only error of Control
	}
	if err != nil {
		return -1, attributes{}, fmt.Errorf("openat2: %w", err)
	}
	a, kind, err := fstat(fd)
	if err == nil && kind != unix.S_IFREG {
		err = errNotRegular
	}
	if err != nil {
		unix.Close(fd)
		return -1, attributes{}, err
	}
	return fd, a, nil
}

// openBeneath pins whatever path names beneath the directory, without opening it.
func openBeneath(dir int, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for attempt := 1; ; {
		fd, err := unix.Openat2(dir, path, &how)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && attempt < maxResolveAttempts:
			attempt++
		default:
			return fd, err
		}
	}
}

// reopen opens what an O_PATH descriptor of a regular file has pinned. Access times are not written where that is allowed: open(2)
// demands for it that we own the file or have CAP_FOWNER.
func reopen(pinned int) (int, error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOATIME
	for {
		fd, err := unix.Open(descriptorPath(pinned), flags, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EPERM && flags&unix.O_NOATIME != 0:
			flags &^= unix.O_NOATIME
		default:
			return fd, err
		}
	}
}

func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
