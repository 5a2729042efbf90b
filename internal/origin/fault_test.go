package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func mustParse(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// hijack takes the connection from the server.
func hijack(w http.ResponseWriter) *net.TCPConn {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	return c.(*net.TCPConn)
}

// TestFaults: the first request of bytes meets the fault. What can be mended is; what cannot is told apart; wrong bytes come never.
func TestFaults(t *testing.T) {
	data := content(1 << 20)
	for _, c := range []struct {
		name   string
		fault  func(w http.ResponseWriter, r *http.Request)
		err    error // nil: mended
		ranges []string
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 500) }, nil,
			[]string{"bytes=100-1048575", "bytes=100-1048575"}},
		{"503", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 503) }, nil, nil},
		{"429", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 429) }, nil, nil},
		{"reset", func(w http.ResponseWriter, _ *http.Request) {
			conn := hijack(w)
			_ = conn.SetLinger(0)
			conn.Close()
		}, nil, nil},
		{"cut in the middle", func(w http.ResponseWriter, _ *http.Request) {
			conn := hijack(w)
			fmt.Fprintf(conn, "HTTP/1.1 206 Partial Content\r\nETag: \"1\"\r\nContent-Range: bytes 100-1048575/1048576\r\nContent-Length: 1048476\r\n\r\n%s", data[100:1100])
			conn.Close()
		}, nil, []string{"bytes=100-1048575", "bytes=1100-1048575"}},
		{"short body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Range", "bytes 100-1048575/1048576")
			w.Header().Set("Content-Length", "50")
			w.WriteHeader(206)
			_, _ = w.Write(data[:50])
		}, nil, nil},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil, nil},
		{"long body", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Range", "bytes 100-1048575/1048576")
			w.WriteHeader(206) // chunked
			_, _ = w.Write(data[100:])
			_, _ = w.Write(data)
		}, ErrUnusable, nil},
		{"another range", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Range", "bytes 0-1048475/1048576")
			w.WriteHeader(206)
			_, _ = w.Write(data[:len(data)-100])
		}, ErrUnusable, nil},
		{"no ranges", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Length", "1048576")
			_, _ = w.Write(data)
		}, ErrUnusable, nil},
		{"garbled Content-Range", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes some/of them")
			w.WriteHeader(206)
		}, ErrUnusable, nil},
		{"another ETag", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"2"`)
			w.Header().Set("Content-Range", "bytes 100-1048575/1048576")
			w.WriteHeader(206)
			_, _ = w.Write(data[100:])
		}, ErrChanged, nil},
		{"same ETag, another size", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"1"`)
			w.Header().Set("Content-Range", "bytes 100-1048575/2000000")
			w.WriteHeader(206)
			_, _ = w.Write(data[100:])
		}, ErrChanged, nil},
		{"412", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 412) }, ErrChanged, nil},
		{"416", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 416) }, ErrChanged, nil},
		{"gone", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 410) }, fs.ErrNotExist, nil},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 403) }, fs.ErrPermission, nil},
		{"teapot", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 418) }, ErrUnusable, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			web := newServer(t)
			web.put("/f", data, `"1"`)
			s := source(t, web.URL, func(o *Options, _ *HTTPOptions) {
				if c.name == "silence" {
					o.Timeout = 500 * time.Millisecond // for the attempt that must fail; the next one has as long for each byte
				}
			})
			v := stat(t, s, "f")
			web.mu.Lock()
			web.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 2 {
					c.fault(w, r)
				}
				return n == 2
			}
			web.mu.Unlock()
			got, err := fetch(t.Context(), s, "f", v, 100, int64(len(data)-100))
			if c.err == nil && (err != nil || !bytes.Equal(got, data[100:])) {
				t.Errorf("not mended: %d bytes, %v", len(got), err)
			}
			if c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if !bytes.HasPrefix(data[100:], got) {
				t.Error("wrong bytes")
			}
			if c.ranges != nil && !slices.Equal(web.ranges(), c.ranges) {
				t.Errorf("asked for %q, want %q", web.ranges(), c.ranges)
			}
		})
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	web := newServer(t)
	web.fault = func(_ int, w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 500); return true }
	s := source(t, web.URL)
	if _, err := s.Stat(t.Context(), "f"); err == nil || !Away(err) || len(web.requests) != DefaultAttempts {
		t.Errorf("%v after %d requests", err, len(web.requests))
	}
	web.Close()
	if _, err := s.Stat(t.Context(), "f"); !Away(err) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestRedirects(t *testing.T) {
	web := newServer(t)
	web.put("/to", []byte("abc"), `"1"`)
	web.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/once":
			http.Redirect(w, r, "/to", 302)
		case "/loop":
			http.Redirect(w, r, "/loop", 302)
		default:
			return false
		}
		return true
	}
	s := source(t, web.URL)
	v := stat(t, s, "once")
	if got, err := fetch(t.Context(), s, "once", v, 1, 2); err != nil || string(got) != "bc" {
		t.Errorf("%q, %v", got, err)
	}
	before := len(web.requests)
	if _, err := s.Stat(t.Context(), "loop"); !errors.Is(err, ErrUnusable) || len(web.requests)-before > maxRedirects+1 {
		t.Errorf("%v after %d requests", err, len(web.requests)-before)
	}
}

// TestUnstableETag: servers of one name that do not agree.
func TestUnstableETag(t *testing.T) {
	web := newServer(t)
	data := content(1000)
	var tag atomic.Int64
	web.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("If-Match")
		web.put("/f", data, fmt.Sprintf("%q", fmt.Sprint(tag.Add(1))))
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(tag.Load())))
		http.ServeContent(w, r, "f", modified, bytes.NewReader(data))
		return true
	}
	s := source(t, web.URL)
	if _, err := fetch(t.Context(), s, "f", stat(t, s, "f"), 0, 10); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	s = source(t, web.URL, func(_ *Options, o *HTTPOptions) { o.IgnoreETag = true })
	if got, err := fetch(t.Context(), s, "f", stat(t, s, "f"), 0, 10); err != nil || !bytes.Equal(got, data[:10]) {
		t.Errorf("ignored: %q, %v", got, err)
	}
}

func TestMaxRequests(t *testing.T) {
	web := newServer(t)
	data := content(1000)
	web.put("/f", data, `"1"`)
	var now, most atomic.Int64
	both := make(chan struct{})
	web.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		defer now.Add(-1)
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
			if n == 2 {
				close(both)
			}
		}
		select {
		case <-both:
		case <-r.Context().Done():
		}
		return false
	}
	s := source(t, web.URL, func(o *Options, _ *HTTPOptions) { o.MaxRequests = 2 })
	v := stat(t, s, "f")
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if got, err := fetch(t.Context(), s, "f", v, 0, v.Size); err != nil || !bytes.Equal(got, data) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most.Load() != 2 {
		t.Errorf("%d requests at a time", most.Load())
	}
}

func TestMaxRate(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/f", content(2*pieceSize))
	// The first piece is free (the limiter's burst); the second one takes its time, and that is no time-out.
	s := source(t, dir, func(o *Options, _ *HTTPOptions) { o.MaxRate, o.Timeout = 2*pieceSize, 50*time.Millisecond })
	v := stat(t, s, "f")
	began := time.Now()
	if got, err := fetch(t.Context(), s, "f", v, 0, v.Size); err != nil || len(got) != 2*pieceSize {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if took := time.Since(began); took < 450*time.Millisecond {
		t.Errorf("%v", took)
	}
}

func TestCancelAndSinkEndAFetch(t *testing.T) {
	web := newServer(t)
	web.put("/f", content(1000), `"1"`)
	s := source(t, web.URL)
	v := stat(t, s, "f")
	full := errors.New("disk full")
	if err := s.Fetch(t.Context(), "f", v, 0, v.Size, func([]byte) error { return full }); !errors.Is(err, full) || len(web.ranges()) != 1 {
		t.Errorf("%v after %q", err, web.ranges())
	}
	ctx, cancel := context.WithCancel(t.Context())
	web.mu.Lock()
	web.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	web.mu.Unlock()
	if _, err := fetch(ctx, s, "f", v, 0, v.Size); !errors.Is(err, context.Canceled) || Away(err) {
		t.Errorf("%v", err)
	}
}
