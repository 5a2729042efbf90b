package share

import (
	"errors"
	"fmt"
	"time"

	"spillway/internal/wire"
)

// DefaultMaxOpenFiles is used when Options say nothing. It leaves room for sockets: at start the Go runtime raises the soft RLIMIT_NOFILE
// to the hard one, which is 524288 under systemd (systemd-system.conf(5), DefaultLimitNOFILE).
const DefaultMaxOpenFiles = 1024

// Options of a share.
type Options struct {
	// MaxOpenFiles bounds the files that are open at a time, in use and idle together; 0 means DefaultMaxOpenFiles. The directory, and each
	// lookup under way, take a descriptor more.
	MaxOpenFiles int
	// Replaced, if set, is told of a file that Acquire has found open, and whose path names another one by now, or none. It may be called by several goroutines.
	Replaced func(path string)
}

// A Share is a named directory tree that VMs may send from. It is safe for concurrent use.
type Share struct {
	name     string
	tree     *tree
	files    *cache
	replaced func(path string)
}

// Stats of a share, for metrics.
type Stats struct {
	Open   int    // files that hold a descriptor
	Idle   int    // of these, files that nobody uses
	Opens  uint64 // files opened since the start
	Reuses uint64 // times that Acquire found the file open, or being opened
}

// Open makes the directory dir a share with the given name. Symbolic links in dir itself are followed, now and never again: the share
// stays with the directory even if it is renamed.
func Open(name, dir string, opts Options) (*Share, error) {
	if !wire.ValidShare(name) {
		return nil, openError(name, dir, fmt.Errorf("the name of a share has 1 to %d bytes", wire.MaxShare))
	}
	if opts.MaxOpenFiles < 0 {
		return nil, openError(name, dir, errors.New("MaxOpenFiles must be 0 (for the default) or more"))
	}
	if opts.MaxOpenFiles == 0 {
		opts.MaxOpenFiles = DefaultMaxOpenFiles
	}
	t, err := newTree(dir)
	if err != nil {
		return nil, newError("open", name, dir, err)
	}
	return &Share{name: name, tree: t, files: newCache(name, opts.MaxOpenFiles, t.open), replaced: opts.Replaced}, nil
}

// openError is an error about what the user configured.
func openError(name, dir string, err error) error {
	return &Error{Op: "open", Share: name, Path: dir, Reason: wire.ReasonInvalid, Err: err}
}

// Name returns the share's name.
func (s *Share) Name() string { return s.name }

// Stat returns size and modification time of the regular file that path names at this moment, whatever is cached.
func (s *Share) Stat(path string) (size, mtimeNs int64, err error) {
	a, err := s.tree.stat(path)
	if err != nil {
		return 0, 0, newError("stat", s.name, path, err)
	}
	return a.size, a.mtimeNs, nil
}

// Acquire returns the file that ref describes, open and with one reference: the caller releases it. When size or modification time
// are not those of ref, the error has the reason changed. A file that is open already is returned after one fstat(2), without
// allocating, even if the path names another file by now: the guest asks for the version that it knows.
func (s *Share) Acquire(ref wire.FileRef) (*File, error) {
	if ref.Share != s.name {
		return nil, newError("acquire", s.name, ref.Path, fmt.Errorf("%w: %q", errOtherShare, ref.Share))
	}
	for first := true; ; first = false {
		f, own, err := s.files.get(ref.Path)
		// A result is current if it was found out after this call began: by this call, or by another one since the first round, which
		// has removed from the cache whatever it found there to be outdated.
		current := own || !first
		if err != nil {
			if current {
				return nil, newError("acquire", s.name, ref.Path, err)
			}
			continue
		}
		now, _, err := fstat(f.fd)
		intact := err == nil && now == f.attr
		if intact && now.match(&ref) {
			s.checkName(f)
			return f, nil
		}
		// The cached file stays if it is still the one at the path: a guest with wrong beliefs must not close the files of others.
		named := intact && (current || s.names(ref.Path, f.attr))
		if !named {
			s.files.drop(f)
		}
		f.Release()
		if named || current {
			return nil, s.changed(ref, now, err)
		}
	}
}

// nameTTL is how long an open file is taken to be the one at its path, before Replaced is told.
const nameTTL = time.Second

// checkName tells Replaced if f, which stays good for who has it, is not the file at its path any more. It looks at most once in nameTTL.
func (s *Share) checkName(f *File) {
	if s.replaced == nil {
		return
	}
	now := time.Now().UnixNano()
	checked := f.checked.Load()
	if now-checked < int64(nameTTL) || !f.checked.CompareAndSwap(checked, now) || checked == 0 || s.names(f.path, f.attr) {
		return
	}
	s.files.drop(f)
	s.replaced(f.path)
}

// names reports whether path names exactly this version of a file.
func (s *Share) names(path string, a attributes) bool {
	now, err := s.tree.stat(path)
	return err == nil && now == a
}

func (s *Share) changed(ref wire.FileRef, now attributes, err error) error {
	if err == nil {
		err = fmt.Errorf("%d bytes, mtime %d ns, but the guest expects %d bytes, mtime %d ns", now.size, now.mtimeNs, ref.Size, ref.MTime)
	}
	return &Error{Op: "acquire", Share: s.name, Path: ref.Path, Reason: wire.ReasonChanged, Err: err}
}

// Forget closes the file at path if nobody uses it, and makes sure that it is not found again. Whoever removes a file, and wants its disk space, calls it.
func (s *Share) Forget(path string) { s.files.forgetPath(path) }

// Stats returns the present counts.
func (s *Share) Stats() Stats { return s.files.stats() }

// Close ends the share: Stat and Acquire fail from now on with the reason share-unknown and an error that is fs.ErrClosed. Files in use
// stay open until they are released. Close may be called more than once.
func (s *Share) Close() {
	s.files.close()
	s.tree.close()
}
