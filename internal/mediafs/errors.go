package mediafs

import (
	"errors"
	"io/fs"
	"syscall"
)

// Causes that a [*fs.PathError] of this package may carry. ErrNotRegular and ErrEscapes are fs.ErrNotExist as well: for a client
// there is no such file.
var (
	// ErrNotRegular: the name is a directory, FIFO, socket or device. Nothing was opened.
	ErrNotRegular error = notFound("not a regular file")

	// ErrEscapes: the name, or a symbolic link on its way, leads out of the directory. Nothing was opened.
	ErrEscapes error = notFound("name leads out of the share")

	// ErrChanged: the file was replaced or changed between [Dir.Open] and the first read, so its bytes are not those that the
	// attributes describe. The file is closed; opening it again gives the new one.
	ErrChanged = errors.New("file changed since it was opened")
)

// notFound is an error that a server answers like a missing file.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == fs.ErrNotExist }

// pathError gives err the form that fs.FS demands. The path in it is the name inside the share, never the directory on this
// machine.
func pathError(op, name string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// rootError is pathError for what came from os.Root, whose refusal to leave the directory is its only error without an errno.
func rootError(op, name string, err error) error {
	var inner *fs.PathError
	if errors.As(err, &inner) && !errors.Is(err, fs.ErrClosed) {
		if _, isErrno := errors.AsType[syscall.Errno](inner.Err); !isErrno {
			err = ErrEscapes
		}
	}
	return pathError(op, name, err)
}
