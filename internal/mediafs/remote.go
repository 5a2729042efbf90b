package mediafs

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"spillway/internal/wire"
)

// Source reads files of a share that is not mounted here; the guest's agent does it through the channel. Errors match a wire.Reason.
type Source interface {
	// Stat returns the size (bytes) and the modification time (ns since 1970) of a file.
	Stat(share, path string) (size, mtimeNs int64, err error)
	// ReadFileAt reads a part of exactly the file that is described; it may read less than p without an error.
	ReadFileAt(file wire.FileRef, p []byte, off int64) (int, error)
}

// RemoteOptions tunes a [Remote]. The zero value means the defaults.
type RemoteOptions struct {
	// AttributeTTL is how long attributes are trusted before the host is asked again; see Options.
	AttributeTTL time.Duration
	// MediaTTL is AttributeTTL of all files but manifests (.mpd, .m3u8); 0: the same. Segments are made once, and a player asks for each once.
	MediaTTL time.Duration
	// MaxPaths bounds the files that are remembered.
	MaxPaths int
	// MaxCachedFile is the largest file whose bytes are kept (manifests and init segments are small), and MaxCached bounds them all. Bytes.
	MaxCachedFile, MaxCached int64
	// Now is the clock of AttributeTTL; see Options.
	Now func() time.Time
}

// Defaults of [RemoteOptions].
const (
	DefaultMaxCachedFile = 64 << 10
	DefaultMaxCached     = 16 << 20
)

func (o RemoteOptions) withDefaults() RemoteOptions {
	base := Options{AttributeTTL: o.AttributeTTL, MaxPaths: o.MaxPaths, Now: o.Now}.withDefaults()
	o.AttributeTTL, o.MaxPaths, o.Now = base.AttributeTTL, base.MaxPaths, base.Now
	if o.MediaTTL == 0 {
		o.MediaTTL = o.AttributeTTL
	}
	if o.MaxCachedFile == 0 {
		o.MaxCachedFile = DefaultMaxCachedFile
	}
	if o.MaxCached == 0 {
		o.MaxCached = DefaultMaxCached
	}
	return o
}

// ttl is how long the attributes of a file are trusted.
func (o *RemoteOptions) ttl(name string) time.Duration {
	switch path.Ext(name) {
	case ".mpd", ".m3u8":
		return o.AttributeTTL
	}
	return o.MediaTTL
}

// Remote serves one share of the host without a mount. It implements [fs.FS] and [fs.StatFS] and is safe for concurrent use. Opening a file that was
// looked at within AttributeTTL costs nothing; otherwise it costs one round trip, and reading a small file one more.
type Remote struct {
	share  string
	source Source
	opts   RemoteOptions
	asked  singleflight.Group // one question for all requests that wait for the same name

	mu          sync.Mutex // guards the fields below
	files       map[string]*remoteEntry
	cachedBytes int64
	forgotten   uint64 // names that the host has told to forget: an answer that is on its way meanwhile may be an old one
}

// remoteEntry is what is known about one name.
type remoteEntry struct {
	ref     wire.FileRef
	checked time.Time
	content []byte // nil: not kept
}

// NewRemote serves the host's share through source.
func NewRemote(share string, source Source, opts RemoteOptions) *Remote {
	return &Remote{share: share, source: source, opts: opts.withDefaults(), files: map[string]*remoteEntry{}}
}

// Open opens a regular file. Errors are *fs.PathError with the causes of this package or a wire.Reason.
func (r *Remote) Open(name string) (fs.File, error) {
	ref, err := r.lookup("open", name)
	if err != nil {
		return nil, err
	}
	return &RemoteFile{remote: r, ref: ref}, nil
}

// Stat implements fs.StatFS.
func (r *Remote) Stat(name string) (fs.FileInfo, error) {
	ref, err := r.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return refInfo(ref), nil
}

// lookup returns what the host says of a name, at most its time to live old.
func (r *Remote) lookup(op, name string) (wire.FileRef, error) {
	if !wire.ValidPath(name) {
		return wire.FileRef{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	r.mu.Lock()
	if e := r.files[name]; e != nil && r.opts.Now().Sub(e.checked) < r.opts.ttl(name) {
		ref := e.ref
		r.mu.Unlock()
		return ref, nil
	}
	r.mu.Unlock()
	v, err, _ := r.asked.Do(name, func() (any, error) {
		asked, before := r.opts.Now(), r.forgets() // before the call: an answer is as old as its question
		size, mtime, err := r.source.Stat(r.share, name)
		ref := wire.FileRef{Share: r.share, Path: name, Size: size, MTime: mtime}
		if err != nil || r.forgets() == before {
			r.remember(ref, asked, err == nil)
		}
		return ref, err
	})
	if err != nil {
		return wire.FileRef{}, &fs.PathError{Op: op, Path: name, Err: fsError(err)}
	}
	return v.(wire.FileRef), nil
}

// remember notes an answer; the content of a file that has changed goes.
func (r *Remote) remember(ref wire.FileRef, asked time.Time, exists bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.files[ref.Path]
	switch {
	case !exists:
		r.forget(ref.Path)
	case e != nil && e.ref == ref:
		e.checked = asked
	default:
		r.forget(ref.Path)
		for len(r.files) >= r.opts.MaxPaths {
			r.forgetAny()
		}
		r.files[ref.Path] = &remoteEntry{ref: ref, checked: asked}
	}
}

// Forget drops what is known of a name, since the host has said that it is not true any more. Requests under way go on with it.
func (r *Remote) Forget(name string) {
	r.mu.Lock()
	r.forgotten++
	r.forget(name)
	r.mu.Unlock()
	r.asked.Forget(name) // who comes now does not wait for an old answer
}

func (r *Remote) forgets() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.forgotten
}

// keep remembers the content of a small file.
func (r *Remote) keep(ref wire.FileRef, content []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.files[ref.Path]
	if e == nil || e.ref != ref || e.content != nil || int64(len(content)) > r.opts.MaxCached {
		return
	}
	for r.cachedBytes+int64(len(content)) > r.opts.MaxCached && len(r.files) > 1 {
		r.forgetAny()
	}
	if r.files[ref.Path] == e {
		e.content = content
		r.cachedBytes += int64(len(content))
	}
}

// kept returns the content of exactly the file that ref describes, or nil.
func (r *Remote) kept(ref wire.FileRef) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.files[ref.Path]; e != nil && e.ref == ref {
		return e.content
	}
	return nil
}

// forget drops a name. r.mu is held.
func (r *Remote) forget(name string) {
	if e := r.files[name]; e != nil {
		r.cachedBytes -= int64(len(e.content))
		delete(r.files, name)
	}
}

// forgetAny drops some name. Which one hardly matters: what is asked for again costs a round trip. r.mu is held.
func (r *Remote) forgetAny() {
	for name := range r.files { // in random order
		r.forget(name)
		return
	}
}

// fsError gives a reason the meaning that fs.FS has for it.
func fsError(err error) error {
	switch {
	case errors.Is(err, wire.ReasonNotFound):
		return fs.ErrNotExist
	case errors.Is(err, wire.ReasonNotRegular):
		return ErrNotRegular
	case errors.Is(err, wire.ReasonForbidden):
		return ErrEscapes
	case errors.Is(err, wire.ReasonChanged):
		return ErrChanged
	}
	return err
}

// RemoteFile is one request's view of a file of a [Remote]. It is not safe for concurrent use, as any file with a read position.
type RemoteFile struct {
	remote *Remote
	ref    wire.FileRef
	offset int64
	ahead  []byte // bytes of the file from offset on, read ahead
	closed bool
}

var _ io.ReadSeeker = (*RemoteFile)(nil)

// Stat returns the attributes from the time of Open.
func (f *RemoteFile) Stat() (fs.FileInfo, error) { return refInfo(f.ref), nil }

// HostFile says which file of which share this is, and the read position; see File.HostFile.
func (f *RemoteFile) HostFile() (ref wire.FileRef, offset int64, ok bool) {
	return f.ref, f.offset, !f.closed
}

// Read implements io.Reader: every byte crosses the channel, a small file's once.
func (f *RemoteFile) Read(p []byte) (int, error) {
	if f.closed {
		return 0, &fs.PathError{Op: "read", Path: f.ref.Path, Err: fs.ErrClosed}
	}
	if f.offset >= f.ref.Size {
		return 0, io.EOF
	}
	if len(f.ahead) == 0 {
		if err := f.readAhead(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.ahead)
	f.ahead = f.ahead[n:]
	f.offset += int64(n)
	return n, nil
}

// readAhead fetches bytes at the read position, or finds a small file that is kept.
func (f *RemoteFile) readAhead() error {
	if content := f.remote.kept(f.ref); content != nil {
		f.ahead = content[f.offset:]
		return nil
	}
	buf := make([]byte, min(wire.MaxRead, f.ref.Size-f.offset))
	n, err := f.remote.source.ReadFileAt(f.ref, buf, f.offset)
	if n == 0 && err != nil {
		f.remote.remember(f.ref, time.Time{}, false) // whatever it is, the next request asks anew
		return &fs.PathError{Op: "read", Path: f.ref.Path, Err: fsError(err)}
	}
	f.ahead = buf[:n]
	if f.offset == 0 && int64(n) == f.ref.Size && f.ref.Size <= f.remote.opts.MaxCachedFile {
		f.remote.keep(f.ref, f.ahead)
	}
	return nil
}

// Seek implements io.Seeker. The end is where it was at Open.
func (f *RemoteFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		offset += f.ref.Size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, &fs.PathError{Op: "seek", Path: f.ref.Path, Err: fs.ErrInvalid}
	}
	f.offset, f.ahead = offset, nil
	return offset, nil
}

// Close implements fs.File. It may be called more than once.
func (f *RemoteFile) Close() error {
	f.closed, f.ahead = true, nil
	return nil
}

// remoteInfo is the fs.FileInfo of a host file.
type remoteInfo struct{ ref wire.FileRef }

func refInfo(ref wire.FileRef) fs.FileInfo { return remoteInfo{ref} }

func (i remoteInfo) Name() string       { return path.Base(i.ref.Path) }
func (i remoteInfo) Size() int64        { return i.ref.Size }
func (i remoteInfo) Mode() fs.FileMode  { return 0o444 }
func (i remoteInfo) ModTime() time.Time { return time.Unix(0, i.ref.MTime) }
func (i remoteInfo) IsDir() bool        { return false }
func (i remoteInfo) Sys() any           { return nil }
