package media

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"spillway/internal/loglimit"
)

// Options of a [Handler]. The zero value is usable.
type Options struct {
	// Mounts puts further file systems under URL prefixes. The longest prefix that fits wins.
	Mounts []Mount

	// ManifestMaxAge and SegmentMaxAge become Cache-Control: max-age. Zero sends no Cache-Control.
	ManifestMaxAge, SegmentMaxAge time.Duration

	// Log takes the failures that are the server's own; slog.Default when nil.
	Log *slog.Logger
}

// Mount is a file system under a URL prefix: with Prefix "/vod/", the URL path /vod/a/1.m4s is the file a/1.m4s of FS.
type Mount struct {
	Prefix string // a missing slash at either end is added
	FS     fs.FS
}

// Handler serves the files of fsys at the root of the URL space, and those of [Options.Mounts] under their prefixes. fsys may be nil
// when there are mounts. The files that fsys opens must implement io.Seeker.
func Handler(fsys fs.FS, opts Options) http.Handler {
	h := &handler{
		log:             opts.Log,
		manifestControl: cacheControl(opts.ManifestMaxAge),
		segmentControl:  cacheControl(opts.SegmentMaxAge),
	}
	if h.log == nil {
		h.log = slog.Default()
	}
	for _, m := range opts.Mounts {
		prefix := "/" + strings.Trim(m.Prefix, "/") + "/"
		h.mounts = append(h.mounts, Mount{Prefix: strings.Replace(prefix, "//", "/", 1), FS: m.FS})
	}
	if fsys != nil {
		h.mounts = append(h.mounts, Mount{Prefix: "/", FS: fsys})
	}
	slices.SortStableFunc(h.mounts, func(a, b Mount) int { return cmp.Compare(len(b.Prefix), len(a.Prefix)) })
	return h
}

func cacheControl(maxAge time.Duration) string {
	if maxAge <= 0 {
		return ""
	}
	return fmt.Sprintf("public, max-age=%d", int64(maxAge.Seconds()))
}

type handler struct {
	mounts                          []Mount // longest prefix first
	manifestControl, segmentControl string
	log                             *slog.Logger
	failures                        loglimit.Limiter
}

// drainTimeout is how long a client may take to deliver a request body that nobody wants, before its connection is closed.
const drainTimeout = 10 * time.Second

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		// net/http reads a small body away to keep the connection. An error means that w is no network connection.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTimeout))
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	fsys, name, ok := h.find(r.URL.Path)
	if !ok {
		notFound(w)
		return
	}
	f, info, err := openRegular(fsys, name)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer f.Close()
	h.serve(w, r, name, f, info)
}

// find maps a URL path to a file. Names that are not clean (dot segments, empty segments) name nothing: they are never cleaned, so
// there is one URL path for each file and no way up.
func (h *handler) find(urlPath string) (fs.FS, string, bool) {
	for _, m := range h.mounts {
		if name, ok := strings.CutPrefix(urlPath, m.Prefix); ok {
			return m.FS, name, fs.ValidPath(name) && !strings.Contains(name, "\x00")
		}
	}
	return nil, "", false
}

type seekableFile interface {
	fs.File
	io.Seeker
}

var errNotSeekable = errors.New("the file system's files cannot seek")

// openRegular opens a regular file. The name is asked for its kind first, so that a plain os.DirFS does not hang on a FIFO.
func openRegular(fsys fs.FS, name string) (seekableFile, fs.FileInfo, error) {
	if asked, ok := fsys.(fs.StatFS); ok {
		info, err := asked.Stat(name)
		if err != nil {
			return nil, nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, nil, fs.ErrNotExist
		}
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	seekable, ok := f.(seekableFile)
	if err == nil && !ok {
		err = errNotSeekable
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return seekable, info, nil
}

// refuse answers an error of the file system. What the client can be blamed for is a missing file to it, without a word about why.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	for _, absent := range []error{
		fs.ErrNotExist, fs.ErrInvalid, fs.ErrPermission,
		syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EISDIR,
	} {
		if errors.Is(err, absent) {
			notFound(w)
			return
		}
	}
	if skipped, ok := h.failures.Allow(); ok { // a client may ask for a file on a broken disk all day
		h.log.Error("cannot open a media file", "url", r.URL.Path, "error", err, "not_logged", skipped)
	}
	http.Error(w, "file temporarily unavailable", http.StatusServiceUnavailable)
}

func notFound(w http.ResponseWriter) { http.Error(w, "not found", http.StatusNotFound) }

// serve answers for an open file.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, name string, f seekableFile, info fs.FileInfo) {
	header := w.Header()
	mediaType, class := contentType(name)
	header.Set("Content-Type", mediaType)
	header.Set("X-Content-Type-Options", "nosniff")
	// Strong: a file that is replaced gets a new time in ns.
	header.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano()))
	control := h.segmentControl
	if class == manifest {
		control = h.manifestControl
	}
	if control != "" {
		header.Set("Cache-Control", control)
	}
	http.ServeContent(&bodyWriter{ResponseWriter: w, method: r.Method}, singleRange(r), name, info.ModTime(), f)
}
