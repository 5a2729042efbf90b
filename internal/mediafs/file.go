package mediafs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"spillway/internal/wire"
)

// File is one request's view of a file: attributes from the time of Open, and a read position of its own. Its methods may be called
// from several goroutines, but the read position is one. Besides the interfaces below it satisfies what (*net.TCPConn).ReadFrom
// asks for, so that an *io.LimitedReader over a File is sent with sendfile(2).
type File struct {
	dir  *Dir
	name string
	attr attributes

	mu     sync.Mutex // guards the fields below
	file   *os.File   // nil until bytes are read here; then its kernel file position is the read position
	offset int64      // the read position while file is nil
	failed bool       // the descriptor answered an error: it does not go back to the pool
	closed bool
}

var (
	_ fs.File       = (*File)(nil)
	_ io.ReadSeeker = (*File)(nil)
	_ io.ReaderAt   = (*File)(nil)
	_ syscall.Conn  = (*File)(nil)
)

// Stat returns the attributes from the time of Open.
func (f *File) Stat() (fs.FileInfo, error) { return f.attr.info, nil }

// HostFile says which file of which share this is, with the validator under which the host may send it, and the read position.
// It costs no system call as long as nothing was read. ok is false when the host does not know the file, or f is closed.
func (f *File) HostFile() (ref wire.FileRef, offset int64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.dir.share == "" {
		return wire.FileRef{}, 0, false
	}
	offset, err := f.tell()
	if err != nil {
		return wire.FileRef{}, 0, false
	}
	return wire.FileRef{
		Share: f.dir.share, Path: f.name, Size: f.attr.id.sizeBytes, MTime: f.attr.id.mtimeNanos,
	}, offset, true
}

// Read implements io.Reader. Its first call may find the file changed since Open: then it fails with ErrChanged.
func (f *File) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach("read"); err != nil {
		return 0, err
	}
	n, err := f.file.Read(p)
	return n, f.note("read", err)
}

// ReadAt implements io.ReaderAt; see Read.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach("read"); err != nil {
		return 0, err
	}
	n, err := f.file.ReadAt(p, off)
	return n, f.note("read", err)
}

// Seek implements io.Seeker. The end is where it was at Open, whatever happens to the file: lengths that were promised to a client
// come from one moment.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrClosed}
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		here, err := f.tell()
		if err != nil {
			return 0, err
		}
		offset += here
	case io.SeekEnd:
		offset += f.attr.id.sizeBytes
	default:
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	if offset < 0 {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	if f.file == nil {
		f.offset = offset
		return offset, nil
	}
	offset, err := f.file.Seek(offset, io.SeekStart)
	return offset, f.note("seek", err)
}

// SyscallConn gives net's sendfile(2) the descriptor, positioned at the read position. The result must not be used after Close:
// the descriptor belongs to another request then.
func (f *File) SyscallConn() (syscall.RawConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach("open"); err != nil {
		return nil, err
	}
	return f.file.SyscallConn()
}

// Close gives the descriptor back to the pool. It may be called more than once; only the first call does something.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	file := f.file
	f.file = nil
	switch {
	case file == nil:
		return nil
	case f.failed:
		return file.Close()
	default:
		f.dir.put(f.name, f.attr.id, file)
		return nil
	}
}

// attach makes sure that there is a descriptor at the read position. f.mu is held.
func (f *File) attach(op string) error {
	if f.closed {
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	if f.file != nil {
		return nil
	}
	file, err := f.dir.take(f.name, f.attr.id)
	if err != nil {
		return rootError(op, f.name, err)
	}
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		file.Close()
		return pathError(op, f.name, err)
	}
	f.file = file
	return nil
}

// tell returns the read position. f.mu is held.
func (f *File) tell() (int64, error) {
	if f.file == nil {
		return f.offset, nil
	}
	// sendfile(2) moves the position without our knowledge: only the kernel knows it.
	offset, err := f.file.Seek(0, io.SeekCurrent)
	return offset, f.note("seek", err)
}

// note remembers that a descriptor is not to be trusted again, and hides the directory's path from the error. f.mu is held.
func (f *File) note(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	f.failed = true
	return pathError(op, f.name, err)
}
