package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	dataName = "data"
)

// directory is the cache's place on disk. Only the daemon's user may write there.
type directory struct {
	path string
	lock *os.File
	data *os.File // of the data files
}

// openDirectory takes hold of a directory, which it makes if there is none.
func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if err := checkOwner(path); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(path, lockName))
	if err != nil {
		return nil, err
	}
	d := &directory{path: path, lock: lock}
	data := filepath.Join(path, dataName)
	err = os.Mkdir(data, 0o700)
	if errors.Is(err, os.ErrExist) {
		err = checkOwner(data)
	}
	if err == nil {
		d.data, err = os.OpenFile(data, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// checkOwner refuses a directory in which somebody else could plant files.
func checkOwner(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory; remove it, or name another one", path)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user id %d, the daemon runs as %d; a cache needs a directory of its own", path, st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written by others: chmod go-w it", path)
	}
	return nil
}

// lockFile makes sure that one daemon uses the directory. The lock dies with its process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		var holder [16]byte
		n, _ := f.ReadAt(holder[:], 0)
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%s is locked: process %s uses this cache directory; each daemon and each share needs one of its own",
				path, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	_ = f.Truncate(0) // the number is for the message above only
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return f, nil
}

// close gives the directory back.
func (d *directory) close() {
	d.data.Close()
	d.lock.Close()
}

// fileName is the name of a data file.
func fileName(id uint64) string {
	const digits = "0123456789abcdef"
	var name [16]byte
	for i := range name {
		name[i] = digits[id>>(60-4*i)&15]
	}
	return string(name[:])
}

// open opens the data file of an entry for reading and writing, and gives it its size. Whatever stands in its place that is no file of ours goes.
func (d *directory) open(id uint64, size int64) (fd int, err error) {
	name := fileName(id)
	for attempt := 0; ; attempt++ {
		fd, err = unix.Openat2(int(d.data.Fd()), name, &unix.OpenHow{
			Flags: unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NONBLOCK, Mode: 0o600, // non-blocking: a FIFO that was planted
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == unix.EINTR {
			continue
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(fd, &st)
			if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1) {
				err = unix.ELOOP // a link of another kind
			}
			if err == nil && st.Size != size {
				err = unix.Ftruncate(fd, size)
			}
			if err == nil {
				return fd, nil
			}
			unix.Close(fd)
		}
		if (err == unix.ELOOP || err == unix.ENXIO) && attempt == 0 {
			d.remove(id)
			continue
		}
		return -1, &os.PathError{Op: "open", Path: filepath.Join(d.path, dataName, name), Err: err}
	}
}

// remove removes a data file. One that stays is found as unknown after the next start.
func (d *directory) remove(id uint64) { _ = unix.Unlinkat(int(d.data.Fd()), fileName(id), 0) }

// setTime gives a data file its version's time, and looks whether the file system has kept it.
func setTime(fd int, timeNs int64) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(timeNs)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), ts, 0); err != nil {
		return fmt.Errorf("set the time of a data file: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mtim.Nano() != timeNs {
		return errors.New("the file system does not keep nanoseconds; use ext4, XFS or btrfs")
	}
	return nil
}

// free returns the bytes of the disk that we may use.
func (d *directory) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.data.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// names calls each for every name among the data files.
func (d *directory) names(each func(name string) bool) error {
	f, err := os.OpenFile(filepath.Join(d.path, dataName), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if !each(n) {
				return nil
			}
		}
		if err != nil {
			return nil // io.EOF; another one is for the next start
		}
	}
}

// writeAt writes all of p.
func writeAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// readAt fills p, or as much of it as the file has.
func readAt(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}

func (d *directory) removeName(name string) error { return unix.Unlinkat(int(d.data.Fd()), name, 0) }
