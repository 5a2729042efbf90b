package share

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

// An Error is a refused or failed operation on a share. Nothing is left open or changed by it.
type Error struct {
	Op     string      // "open", "stat", "acquire" or "read"
	Share  string      // name of the share
	Path   string      // as the guest gave it; for "open" the directory on this machine
	Reason wire.Reason // what to tell the guest; errors.Is finds it
	Err    error       // the cause, usually a unix.Errno
}

func (e *Error) Error() string {
	return fmt.Sprintf("share %q: %s %q: %v: %v", e.Share, e.Op, e.Path, e.Reason, e.Err)
}

// Unwrap returns the reason and the cause.
func (e *Error) Unwrap() []error { return []error{e.Reason, e.Err} }

// Causes that are no errno.
var (
	errNotRegular = errors.New("only regular files can be sent")
	errPath       = errors.New("the path is not relative and clean")
	errAllInUse   = errors.New("as many files as MaxOpenFiles allows are in use")
	errOtherShare = errors.New("the file belongs to another share")
)

// newError gives a cause its form and its reason.
func newError(op, share, path string, err error) *Error {
	return &Error{Op: op, Share: share, Path: path, Reason: reasonOf(err), Err: err}
}

func reasonOf(err error) wire.Reason {
	switch {
	case errors.Is(err, errNotRegular):
		return wire.ReasonNotRegular
	case errors.Is(err, errPath):
		return wire.ReasonForbidden
	case errors.Is(err, errAllInUse):
		return wire.ReasonLimit
	case errors.Is(err, errOtherShare), errors.Is(err, fs.ErrClosed):
		return wire.ReasonShareUnknown
	}
	errno, _ := errors.AsType[unix.Errno](err)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ENAMETOOLONG:
		return wire.ReasonNotFound
	case unix.ELOOP, unix.EXDEV, unix.EACCES, unix.EPERM: // openat2(2): a symbolic link, a way out
		return wire.ReasonForbidden
	case unix.EMFILE, unix.ENFILE:
		return wire.ReasonLimit
	}
	return wire.ReasonKernel
}
