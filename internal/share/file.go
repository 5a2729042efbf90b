package share

import (
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// A File is one version of a regular file, open for reading and shared by everybody who acquired it. Who acquired it calls Release
// exactly once and does not use it afterwards. Until then it is safe for concurrent use.
type File struct {
	cache *cache
	path  string

	// Set before opened is closed, then constant.
	opened chan struct{}
	fd     int
	attr   attributes
	err    error // why it could not be opened; the File is never handed out then

	checked atomic.Int64 // when its path was last seen to name it, ns since 1970; 0: when it was opened

	// Guarded by cache.mu.
	opening      bool
	cached       bool  // it is cache.files[path]
	refs         int   // 0 and cached: it is in cache.idle
	newer, older *File // neighbours in cache.idle
}

// Fd returns the descriptor, for sendfile(2) and pread(2) with explicit offsets. It is valid until Release, belongs to the Share, and its
// file position must be neither used nor moved: others send from it at the same time.
func (f *File) Fd() int { return f.fd }

// Size is the size of this version, bytes.
func (f *File) Size() int64 { return f.attr.size }

// ReadAt implements [io.ReaderAt] for the bytes of this version: it ends at Size even if the file has grown since. If the file has become
// shorter the error has the reason truncated.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, f.readError(wire.ReasonInvalid, errors.New("negative offset"))
	}
	rest := max(f.attr.size-off, 0)
	atEnd := int64(len(p)) > rest
	if atEnd {
		p = p[:rest]
	}
	read := 0
	for read < len(p) {
		n, err := unix.Pread(f.fd, p[read:], off+int64(read))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return read, f.readError(wire.ReasonKernel, err)
		case n == 0:
			return read, f.readError(wire.ReasonTruncated, io.ErrUnexpectedEOF)
		default:
			read += n
		}
	}
	if atEnd {
		return read, io.EOF
	}
	return read, nil
}

func (f *File) readError(reason wire.Reason, err error) error {
	return &Error{Op: "read", Share: f.cache.share, Path: f.path, Reason: reason, Err: err}
}

// Release gives the file back. It panics if the file is released more often than it was acquired, as that would close the file of others.
func (f *File) Release() { f.cache.release(f) }
