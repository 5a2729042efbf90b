package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// dir is a directory of this machine, most likely a mount of remote storage.
type dir struct{ root *os.Root }

func openDir(path string) (Origin, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	return dir{root}, nil
}

func (d dir) Close() error { return d.root.Close() }

// Stat implements Origin.
func (d dir) Stat(_ context.Context, name string) (Version, error) {
	if !validName(name) {
		return Version{}, notExist("stat", name)
	}
	info, err := d.root.Stat(name)
	if err != nil {
		return Version{}, dirError(err)
	}
	return versionOf(name, info)
}

// dirError finds out whether another attempt may help: not where the name leads nowhere, or out of the directory.
func dirError(err error) error {
	number, ok := errors.AsType[syscall.Errno](err)
	switch {
	case number == syscall.ENOTDIR, number == syscall.ENAMETOOLONG:
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case !ok, number == syscall.ELOOP, number == syscall.ENXIO: // os.Root's own errors are no system's
		return fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return err
}

func versionOf(name string, info fs.FileInfo) (Version, error) {
	if !info.Mode().IsRegular() {
		return Version{}, notExist("stat", name) // as an HTTP server or a bucket would have it
	}
	return Version{Size: info.Size(), ModTime: info.ModTime()}, nil
}

// Open implements Origin.
func (d dir) Open(_ context.Context, name string, v Version, off, n int64) (io.ReadCloser, error) {
	if !validName(name) {
		return nil, notExist("open", name)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, dirError(err)
	}
	r := &dirReader{file: f, name: name, version: v, rest: io.NewSectionReader(f, off, n), left: n}
	if err := r.check(); err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// dirReader reads a range and looks at its end whether the file is still the one that it was.
type dirReader struct {
	file    *os.File
	name    string
	version Version
	rest    io.Reader
	left    int64
}

func (r *dirReader) check() error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	now, err := versionOf(r.name, info)
	if err == nil && !now.Same(r.version) {
		err = ErrChanged
	}
	return err
}

// Read checks before the last bytes are given away: they are what makes a block complete.
func (r *dirReader) Read(p []byte) (int, error) {
	n, err := r.rest.Read(p)
	r.left -= int64(n)
	if r.left == 0 && n > 0 || err != nil {
		if changed := r.check(); changed != nil {
			return 0, changed
		}
	}
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *dirReader) Close() error { return r.file.Close() }
