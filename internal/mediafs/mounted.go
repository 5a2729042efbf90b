package mediafs

import (
	"errors"
	"io/fs"

	"spillway/internal/wire"
)

// Mounted serves a share of the host that is mounted here as well. What a file is, the host says: a mount may go on to show what it has seen first, as
// 9p does with cache=loose (v9fs_lookup, fs/9p/vfs_inode.c). Bytes that are read here come from the mount as long as it shows the same file, and through the
// channel otherwise. Without a host there is the mount alone. It implements [fs.FS] and [fs.StatFS] and is safe for concurrent use.
type Mounted struct {
	remote *Remote
	dir    *Dir
}

// NewMounted serves what remote says, from dir where it can. The caller closes dir.
func NewMounted(remote *Remote, dir *Dir) *Mounted { return &Mounted{remote, dir} }

// Open opens a regular file: a [*File], or a [*RemoteFile] if the mount does not show what the host has.
func (m *Mounted) Open(name string) (fs.File, error) {
	ref, err := m.remote.lookup("open", name)
	var mounted *File
	if err == nil || hostAway(err) {
		f, derr := m.dir.Open(name)
		if hostAway(err) {
			return f, derr
		}
		mounted, _ = f.(*File)
	}
	if mounted.shows(ref) {
		return mounted, nil
	}
	// One of the two is out of date, and it may be what the host has said a while ago.
	if err == nil {
		ref, err = m.remote.lookupWithin("open", name, m.remote.opts.AttributeTTL)
	}
	if err == nil && mounted.shows(ref) {
		return mounted, nil
	}
	if mounted != nil {
		_ = mounted.Close() // nothing was read
	}
	if err != nil {
		return nil, err
	}
	return &RemoteFile{remote: m.remote, ref: ref}, nil
}

// shows tells whether the mount has the file that the host has described.
func (f *File) shows(ref wire.FileRef) bool {
	return f != nil && f.attr.id.sizeBytes == ref.Size && f.attr.id.mtimeNanos == ref.MTime
}

// Stat implements fs.StatFS.
func (m *Mounted) Stat(name string) (fs.FileInfo, error) {
	info, err := m.remote.Stat(name)
	if hostAway(err) {
		return m.dir.Stat(name)
	}
	return info, err
}

// hostAway tells whether the host has said nothing of a file.
func hostAway(err error) bool {
	return err != nil && !errors.Is(err, fs.ErrNotExist) // ErrNotRegular and ErrEscapes are that, too
}
