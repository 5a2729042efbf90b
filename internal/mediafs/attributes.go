package mediafs

import (
	"io/fs"
	"syscall"
)

// identity is what must stay the same for an open descriptor, or a cached length, to stand for a name.
type identity struct {
	device, inode uint64
	sizeBytes     int64
	mtimeNanos    int64
}

// attributes is one answer of stat(2) or fstat(2).
type attributes struct {
	id   identity
	info fs.FileInfo
}

func attributesOf(info fs.FileInfo) attributes {
	a := attributes{info: info, id: identity{sizeBytes: info.Size(), mtimeNanos: info.ModTime().UnixNano()}}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		a.id.device, a.id.inode = uint64(st.Dev), st.Ino
	}
	return a
}
