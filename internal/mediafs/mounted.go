package mediafs

import (
	"errors"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"spillway/internal/wire"
)

// Mounted serves a share of the host that is mounted here as well. What a file is, the host says: a mount may go on to show what it has seen first, as
// 9p does with cache=loose (v9fs_lookup, fs/9p/vfs_inode.c), and to ask it costs several round trips. Bytes that are read here come from the mount if it shows
// the same file, and through the channel otherwise. Without a host, and for symbolic links, which it does not follow, there is the mount alone. It implements
// [fs.FS] and [fs.StatFS] and is safe for concurrent use.
type Mounted struct {
	remote *Remote
	dir    *Dir
}

// NewMounted serves what remote says, from dir where it can. The caller closes dir.
func NewMounted(remote *Remote, dir *Dir) *Mounted { return &Mounted{remote, dir} }

// Open opens a regular file: a [*MountedFile], or a [*File] where there is the mount alone.
func (m *Mounted) Open(name string) (fs.File, error) {
	ref, err := m.remote.lookup("open", name)
	switch {
	case mountAlone(err):
		return m.dir.Open(name)
	case err != nil:
		return nil, err
	}
	return &MountedFile{mounted: m, ref: ref}, nil
}

// Stat implements fs.StatFS.
func (m *Mounted) Stat(name string) (fs.FileInfo, error) {
	info, err := m.remote.Stat(name)
	if mountAlone(err) {
		return m.dir.Stat(name)
	}
	return info, err
}

// mountAlone tells whether the host has said nothing of a file, as when it is away, or follows no symbolic link, which the mount may.
func mountAlone(err error) bool {
	return err != nil && (errors.Is(err, ErrEscapes) || !errors.Is(err, fs.ErrNotExist)) // ErrNotRegular is a kind of ErrNotExist
}

// MountedFile is one request's view of a file of a [Mounted]. As long as nothing is read here, it costs the mount nothing. Its methods may be called from
// several goroutines, but the read position is one.
type MountedFile struct {
	mounted *Mounted
	ref     wire.FileRef

	mu     sync.Mutex // guards the fields below
	source source     // a *File or a *RemoteFile; nil until bytes are read here
	offset int64      // the read position while source is nil
	closed bool
}

// source is where bytes are read from.
type source interface {
	fs.File
	io.Seeker
}

var (
	_ fs.File       = (*MountedFile)(nil)
	_ io.ReadSeeker = (*MountedFile)(nil)
	_ syscall.Conn  = (*MountedFile)(nil)
)

// Stat returns the attributes from the time of Open.
func (f *MountedFile) Stat() (fs.FileInfo, error) { return refInfo(f.ref), nil }

// HostFile says which file of which share this is, and the read position; see File.HostFile.
func (f *MountedFile) HostFile() (ref wire.FileRef, offset int64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return wire.FileRef{}, 0, false
	}
	offset = f.offset
	if f.source != nil {
		var err error
		if offset, err = f.source.Seek(0, io.SeekCurrent); err != nil {
			return wire.FileRef{}, 0, false
		}
	}
	return f.ref, offset, true
}

// Here tells whether the mount shows this very file, so that the kernel can send it. It asks the mount.
func (f *MountedFile) Here() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attach("open") != nil {
		return false
	}
	_, here := f.source.(*File)
	return here
}

// Read implements io.Reader.
func (f *MountedFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach("read"); err != nil {
		return 0, err
	}
	return f.source.Read(p)
}

// Seek implements io.Seeker. The end is where it was at Open.
func (f *MountedFile) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.source != nil && whence != io.SeekEnd {
		return f.source.Seek(offset, whence)
	}
	switch whence {
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		offset += f.ref.Size
	}
	if f.closed || offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, &fs.PathError{Op: "seek", Path: f.ref.Path, Err: fs.ErrInvalid}
	}
	if f.source != nil {
		return f.source.Seek(offset, io.SeekStart)
	}
	f.offset = offset
	return offset, nil
}

// SyscallConn gives net's sendfile(2) the descriptor of the mount's file; see File.SyscallConn. It fails with errors.ErrUnsupported where Here is false.
func (f *MountedFile) SyscallConn() (syscall.RawConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.attach("open"); err != nil {
		return nil, err
	}
	if file, ok := f.source.(*File); ok {
		return file.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Close implements fs.File. It may be called more than once.
func (f *MountedFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.source == nil {
		return nil
	}
	return f.source.Close()
}

// attach makes sure that there is a source at the read position. f.mu is held.
func (f *MountedFile) attach(op string) error {
	if f.closed {
		return &fs.PathError{Op: op, Path: f.ref.Path, Err: fs.ErrClosed}
	}
	if f.source != nil {
		return nil
	}
	var from source = &RemoteFile{remote: f.mounted.remote, ref: f.ref}
	if opened, err := f.mounted.dir.Open(f.ref.Path); err == nil {
		file := opened.(*File)
		if id := file.attr.id; id.sizeBytes == f.ref.Size && id.mtimeNanos == f.ref.MTime {
			from = file
		} else {
			_ = file.Close() // nothing was read
		}
	}
	if _, err := from.Seek(f.offset, io.SeekStart); err != nil {
		_ = from.Close()
		return err
	}
	f.source = from
	return nil
}
