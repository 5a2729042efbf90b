package origin

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Origin is one place that files come from. It is safe for concurrent use. Errors are fs.ErrNotExist, fs.ErrPermission, ErrChanged or ErrUnusable where no
// further attempt can help, and anything else where one may.
type Origin interface {
	// Stat says what version of a file there is now.
	Stat(ctx context.Context, name string) (Version, error)
	// Open returns bytes off to off+n of exactly the version v. The reader ends with io.EOF after n bytes, and with another error if it has fewer, or if the
	// file was replaced meanwhile. ctx governs the reading too.
	Open(ctx context.Context, name string, v Version, off, n int64) (io.ReadCloser, error)
	Close() error
}

// Errors that an attempt more does not mend.
var (
	ErrChanged  = errors.New("the origin has another version of the file")
	ErrUnusable = errors.New("the origin's answer cannot be used")
)

// Version tells one content of a file from another.
type Version struct {
	Size    int64     // bytes
	ModTime time.Time // zero: the origin does not say
	ETag    string    // as RFC 9110, 8.8.3 has it, quotes included; empty: the origin does not say
}

// Same tells whether two answers mean the same content. Where both have an ETag it decides, as it is made for that; otherwise the time does.
func (v Version) Same(o Version) bool {
	if v.Size != o.Size {
		return false
	}
	if v.ETag != "" && o.ETag != "" {
		return strings.TrimPrefix(v.ETag, "W/") == strings.TrimPrefix(o.ETag, "W/")
	}
	return v.ModTime.Equal(o.ModTime)
}

// TimeNs is a modification time, ns since 1970, that no two versions of a file share: guests know a version by its size and time alone, and an origin may replace
// a file twice within the second that Last-Modified can tell. So the part below a second is made of the ETag.
func (v Version) TimeNs() int64 {
	if v.ETag == "" {
		if v.ModTime.IsZero() {
			return 0
		}
		return v.ModTime.UnixNano()
	}
	h := fnv.New64a()
	h.Write([]byte(strings.TrimPrefix(v.ETag, "W/")))
	ns := int64(h.Sum64() % uint64(time.Second))
	if !v.ModTime.IsZero() {
		ns += v.ModTime.Unix() * int64(time.Second)
	}
	return ns
}

// strongETag is the ETag if it may stand for bytes (RFC 9110, 8.8.3.2), or "".
func (v Version) strongETag() string {
	if strings.HasPrefix(v.ETag, "W/") {
		return ""
	}
	return v.ETag
}

// maxName is the longest name in bytes, as docs/wire.md has it.
const maxName = 1024

// validName tells whether a name can be one of a file: whatever else it is, there is no such file.
func validName(name string) bool {
	return name != "." && len(name) <= maxName && fs.ValidPath(name) && !strings.Contains(name, "\x00")
}

// notExist is the answer for a name that cannot be.
func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// Open makes an origin of its address:
//
//	/mnt/nfs/vod, or file:///mnt/nfs/vod      a directory
//	https://origin.example/vod/               an HTTP server
//	s3://bucket?region=eu-central-1           a bucket, with the usual AWS environment and files for credentials;
//	                                          also endpoint=https://…, use_path_style=true, prefix=vod/ (gocloud.dev/blob/s3blob)
func Open(ctx context.Context, address string, opts HTTPOptions) (Origin, error) {
	if filepath.IsAbs(address) {
		return openDir(address)
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	switch u.Scheme {
	case "file":
		return openDir(u.Path)
	case "http", "https":
		return newHTTP(u, opts), nil
	case "s3":
		return openBucket(ctx, address)
	}
	return nil, fmt.Errorf("origin %q: unknown kind; use an absolute path, http://, https:// or s3://", address)
}
