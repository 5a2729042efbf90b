package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// HTTPOptions tunes an HTTP origin.
type HTTPOptions struct {
	IgnoreETag bool // for a cluster whose servers do not agree on ETags
	Conns      int  // idle connections that are kept; 0: 2, as net/http has it
}

// maxRedirects bounds a chain of redirects. A content network needs one or two.
const maxRedirects = 5

// connectTimeout bounds the connection and the TLS handshake, each. The wait for an answer is the Source's to bound.
const connectTimeout = 10 * time.Second

type httpOrigin struct {
	base   url.URL
	client http.Client
	opts   HTTPOptions
}

func newHTTP(base *url.URL, opts HTTPOptions) *httpOrigin {
	dialer := net.Dialer{Timeout: connectTimeout}
	return &httpOrigin{base: *base, opts: opts, client: http.Client{
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return fmt.Errorf("%w: more than %d redirects", ErrUnusable, maxRedirects)
			case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
				return fmt.Errorf("%w: a redirect from https to %s", ErrUnusable, r.URL.Scheme)
			}
			return nil
		},
		// HTTP/1.1: parallel fills shall not share one TCP connection.
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: connectTimeout,
			MaxIdleConnsPerHost: opts.Conns, IdleConnTimeout: time.Minute, DisableCompression: true,
		},
	}}
}

func (o *httpOrigin) Close() error {
	o.client.CloseIdleConnections()
	return nil
}

// do sends a request. The caller closes the body of the response when there is one.
func (o *httpOrigin) do(ctx context.Context, method, name string, header http.Header) (*http.Response, error) {
	if !validName(name) {
		return nil, notExist(method, name)
	}
	u := o.base
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/")+"/"+name, "" // String escapes what is no path
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	req.Header = header
	req.Header.Set("Accept-Encoding", "identity") // ranges are of the bytes that clients get
	req.Header.Set("User-Agent", "spillway")
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := statusError(resp); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %w", method, u.Redacted(), err)
	}
	return resp, nil
}

// statusError says what a status that is no success means.
func statusError(resp *http.Response) error {
	var kind error
	switch s := resp.StatusCode; {
	case s == http.StatusOK || s == http.StatusPartialContent:
		return nil
	case s == http.StatusNotFound || s == http.StatusGone:
		kind = fs.ErrNotExist
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		kind = fs.ErrPermission
	case s == http.StatusPreconditionFailed || s == http.StatusRequestedRangeNotSatisfiable:
		kind = ErrChanged
	case s == http.StatusRequestTimeout || s == http.StatusTooManyRequests || s >= http.StatusInternalServerError:
		return errors.New(resp.Status) // worth another attempt
	default:
		kind = ErrUnusable
	}
	return fmt.Errorf("%s: %w", resp.Status, kind)
}

// version reads what a response says of the file, which has size bytes.
func (o *httpOrigin) version(h http.Header, size int64) Version {
	v := Version{Size: size, ETag: h.Get("ETag")}
	if o.opts.IgnoreETag {
		v.ETag = ""
	}
	v.ModTime, _ = http.ParseTime(h.Get("Last-Modified")) // one that cannot be read says nothing
	return v
}

// Stat implements Origin.
func (o *httpOrigin) Stat(ctx context.Context, name string) (Version, error) {
	resp, err := o.do(ctx, http.MethodHead, name, http.Header{})
	if err != nil {
		return Version{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
		return Version{}, fmt.Errorf("HEAD %s: %w: %s without Content-Length", resp.Request.URL.Redacted(), ErrUnusable, resp.Status)
	}
	return o.version(resp.Header, resp.ContentLength), nil
}

// Open implements Origin.
func (o *httpOrigin) Open(ctx context.Context, name string, v Version, off, n int64) (io.ReadCloser, error) {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}}
	if tag := v.strongETag(); tag != "" && !o.opts.IgnoreETag {
		header.Set("If-Match", tag)
	}
	resp, err := o.do(ctx, http.MethodGet, name, header)
	if err != nil {
		return nil, err
	}
	if err := o.check(resp, v, off, n); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %w", resp.Request.URL.Redacted(), err)
	}
	return &exactReader{ReadCloser: resp.Body, left: n}, nil
}

// check holds a response against what was asked for.
func (o *httpOrigin) check(resp *http.Response, v Version, off, n int64) error {
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		first, last, size, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return err
		}
		if total = size; size >= 0 && size == v.Size && (first != off || last != off+n-1) {
			return fmt.Errorf("%w: bytes %d to %d were asked for, %d to %d came", ErrUnusable, off, off+n-1, first, last)
		}
	}
	if total < 0 {
		total = v.Size // it does not say; the body's length will
	}
	// An answer that leaves a validator out says nothing against the version.
	now := o.version(resp.Header, total)
	if now.ETag == "" && now.ModTime.IsZero() {
		now.ETag, now.ModTime = v.ETag, v.ModTime
	}
	switch {
	case !now.Same(v):
		return fmt.Errorf("%w: %d bytes of %v, ETag %s", ErrChanged, now.Size, now.ModTime, now.ETag)
	case resp.StatusCode == http.StatusOK && (off > 0 || n < v.Size):
		return fmt.Errorf("%w: it does not know ranges (status 200 for one)", ErrUnusable)
	case resp.ContentLength >= 0 && resp.ContentLength != n:
		return fmt.Errorf("a body of %d bytes for a range of %d", resp.ContentLength, n)
	}
	return nil
}

// parseContentRange reads "bytes 0-99/1000" (RFC 9110, 14.4). A size of -1 is "*".
func parseContentRange(s string) (first, last, size int64, err error) {
	bad := fmt.Errorf("%w: Content-Range %q", ErrUnusable, s)
	span, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(span, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, bad
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	if size = -1; total != "*" {
		size, err = strconv.ParseInt(total, 10, 64)
	}
	if errors.Join(err1, err2, err) != nil {
		return 0, 0, 0, bad
	}
	return first, last, size, nil
}

// exactReader is a body of which the length is known from elsewhere.
type exactReader struct {
	io.ReadCloser
	left int64
}

func (r *exactReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	switch r.left -= int64(n); {
	case r.left < 0:
		return 0, fmt.Errorf("%w: a body longer than its range", ErrUnusable)
	case err == io.EOF && r.left > 0:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
