package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// guestMount is where the guest mounts the share, guestVirtiofs where it does so once more with virtiofs, and guestMemory where a copy of it lies in the root file system, which is in the guest's memory.
const (
	guestMount  = "/mnt/media"
	guestMemory = "/media"

	virtiofsTag   = "media-virtiofs"
	guestVirtiofs = "/mnt/virtiofs"
)

// filesBelow reads the regular files below dir, each under the path that it has below as.
func filesBelow(dir, as string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files[path.Join(as, below)], err = os.ReadFile(name)
		return err
	})
	return files, err
}

// guestMiB is the memory of a guest that holds no files.
const guestMiB = 512

// memoryMiB is how much memory a VM needs: while it boots it has the files twice, in the archive and in its file system.
func (l *Lab) memoryMiB(m *machine) (int, error) {
	if !m.hasFiles(l) {
		return guestMiB, nil
	}
	var bytes int64
	err := filepath.WalkDir(l.Files, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return guestMiB + int(2*bytes>>20) + 1, err
}

// DropCaches lets the next request for each of these files of the share find no cache: in a VM, neither data nor names in the guest, while the host's
// page cache keeps the files; in a namespace, which shares the host's page cache, no data there, if the file system can drop it (a tmpfs cannot).
func (l *Lab) DropCaches(ctx context.Context, files ...string) error {
	if l.VM == QEMU {
		var errs []error
		for _, m := range l.machines {
			errs = append(errs, m.control.DropCaches(ctx))
		}
		return errors.Join(errs...)
	}
	for _, name := range files {
		if err := dropFile(filepath.Join(l.Files, name)); err != nil {
			return err
		}
	}
	return nil
}

// dropFile takes a file out of the page cache.
func dropFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // what is not written yet cannot be dropped
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return &os.PathError{Op: "fadvise", Path: name, Err: err}
	}
	return nil
}
