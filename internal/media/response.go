package media

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// singleRange returns the request as http.ServeContent shall see it: without the Range fields that RFC 9110, section 14.2, lets or
// makes a server ignore. Those are a range on anything but GET, an unknown unit, and several ranges at once, which would put a
// multipart encoder between the file and the connection. What remains is written as net/http understands it.
func singleRange(r *http.Request) *http.Request {
	ranges := r.Header.Values("Range")
	if len(ranges) == 0 {
		return r
	}
	unit, spec, _ := strings.Cut(ranges[0], "=")
	if r.Method == http.MethodGet && len(ranges) == 1 && strings.EqualFold(unit, "bytes") && !strings.Contains(spec, ",") {
		// Units are case-insensitive (RFC 9110, section 14.1); net/http's are not.
		if value := "bytes=" + understood(spec); value != ranges[0] {
			return withRange(r, value)
		}
		return r
	}
	return withRange(r, "")
}

// understood returns a range that means the same to net/http as spec does to RFC 9110, section 14.1.2. net/http knows no position beyond
// math.MaxInt64, and answers 206 to the last 0 bytes, which nobody can satisfy.
func understood(spec string) string {
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return spec
	}
	if n, err := strconv.ParseInt(last, 10, 64); first == "" && err == nil && n == 0 {
		return strconv.FormatInt(math.MaxInt64, 10) + "-"
	}
	return clamped(first) + "-" + clamped(last)
}

// clamped bounds a position to math.MaxInt64, which is beyond the end of any file.
func clamped(position string) string {
	n, err := strconv.ParseInt(position, 10, 64)
	if errors.Is(err, strconv.ErrRange) && n > 0 {
		return strconv.FormatInt(n, 10)
	}
	return position
}

func withRange(r *http.Request, value string) *http.Request {
	r = r.Clone(r.Context())
	if value == "" {
		r.Header.Del("Range")
	} else {
		r.Header.Set("Range", value)
	}
	return r
}

// bodyWriter sends the header of a file's response by itself, before the body.
//
// Without that, (*http.response).ReadFrom reads the first 512 bytes of the file (sniffLen in net/http/server.go) and writes them
// behind the header. Then the file would have to be read here even if the connection can send it without.
type bodyWriter struct {
	http.ResponseWriter
	method string
}

func (w *bodyWriter) WriteHeader(status int) {
	w.ResponseWriter.WriteHeader(status)
	if w.method == http.MethodGet && (status == http.StatusOK || status == http.StatusPartialContent) {
		// A connection that is broken says so again at the body.
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
}

// ReadFrom hands the body to the connection. An error here has already reached the client as a short body, by which net/http closes
// the connection.
func (w *bodyWriter) ReadFrom(src io.Reader) (int64, error) {
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	return io.Copy(writerOnly{w.ResponseWriter}, src)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *bodyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// writerOnly hides every method but Write from io.Copy.
type writerOnly struct{ io.Writer }
