package media

import (
	"io"
	"net/http"
	"strings"
)

// singleRange returns the request as http.ServeContent shall see it: without the Range fields that RFC 9110, section 14.2, lets or
// makes a server ignore. Those are a range on anything but GET, an unknown unit, and several ranges at once, which would put a
// multipart encoder between the file and the connection.
func singleRange(r *http.Request) *http.Request {
	ranges := r.Header.Values("Range")
	if len(ranges) == 0 {
		return r
	}
	unit, spec, _ := strings.Cut(ranges[0], "=")
	if r.Method == http.MethodGet && len(ranges) == 1 && strings.EqualFold(unit, "bytes") && !strings.Contains(spec, ",") {
		if unit == "bytes" {
			return r
		}
		return withRange(r, "bytes="+spec) // units are case-insensitive (RFC 9110, section 14.1); net/http's are not
	}
	return withRange(r, "")
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
