package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// handler is what net/http serves in a traffic server: each path is something that servers do. What the client cannot see goes into notes.
func (s *trafficServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/media/", s.serveFile)
	mux.HandleFunc("/dynamic", s.serveDynamic)
	mux.HandleFunc("/parts", s.serveParts)
	mux.HandleFunc("/wrong-length", s.serveWrongLength)
	mux.HandleFunc("/panic", s.servePanic)
	mux.HandleFunc("/events", s.serveEvents)
	mux.HandleFunc("/wait", s.serveWait)
	mux.HandleFunc("/websocket", s.serveWebSocket)
	mux.HandleFunc("/raw/", s.serveHijacked)
	mux.HandleFunc("/count", s.serveCount)
	mux.HandleFunc("/both-ways", s.serveBothWays)
	mux.HandleFunc("/deadline", s.serveDeadline)
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	})
	mux.HandleFunc("/limited", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 100_000))
		fmt.Fprintf(w, "%d, %v", n, err)
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "hinted")
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Before")
		_, _ = io.Copy(w, r.Body) // the client checks
		w.Header().Set("X-Before", "announced")
		w.Header().Set(http.TrailerPrefix+"X-After", "not announced")
		w.Header().Set(http.TrailerPrefix+"X-Yours", r.Trailer.Get("X-Client"))
	})
	slow := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("late") != "" {
			<-r.Context().Done()
		}
		_, _ = fmt.Fprint(w, strings.Repeat("in time ", 1000)) // if it is late, whoever comes first counts
	}
	mux.Handle("/timeout", http.TimeoutHandler(http.HandlerFunc(slow), 100*time.Millisecond, "too late"))
	mux.Handle("/enough-time", http.TimeoutHandler(http.HandlerFunc(slow), time.Minute, "too late"))
	return mux
}

// number is an integer of the query.
func number(r *http.Request, name string) int64 {
	n, _ := strconv.ParseInt(r.URL.Query().Get(name), 10, 64) // 0: not given
	return n
}

func (s *trafficServer) serveFile(w http.ResponseWriter, r *http.Request) {
	f, err := s.files.Open(strings.TrimPrefix(r.URL.Path, "/media/"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	http.ServeContent(w, r, info.Name(), info.ModTime(), f.(io.ReadSeeker))
}

// serveDynamic sends n bytes that are no file.
func (s *trafficServer) serveDynamic(w http.ResponseWriter, r *http.Request) {
	n := number(r, "n")
	w.Header().Set("Content-Type", "application/octet-stream")
	var written int64
	var err error
	switch r.URL.Query().Get("how") {
	case "chunked":
		written, err = io.Copy(onlyWriter{w}, newPattern(n))
	case "length":
		w.Header().Set("Content-Length", fmt.Sprint(n))
		written, err = io.Copy(onlyWriter{w}, newPattern(n))
	case "copy": // (*http.response).ReadFrom, and so the connection's
		w.Header().Set("Content-Length", fmt.Sprint(n))
		written, err = io.Copy(w, newPattern(n))
	case "until close":
		w.Header().Set("Connection", "close")
		w.Header().Set("Transfer-Encoding", "identity")
		written, err = io.Copy(onlyWriter{w}, newPattern(n))
	}
	if key := r.URL.Query().Get("note"); key != "" {
		s.note(key, "all: %v, error: %v", written == n, err != nil)
	}
}

// onlyWriter hides ReadFrom.
type onlyWriter struct{ io.Writer }

// partRanges are the parts of serveParts.
var partRanges = [][2]int64{{0, 1000}, {5000, 200_000}, {100, 1}, {4096, 65536}}

// serveParts is multipart/byteranges by hand: ranges of a file, and other bytes between them.
func (s *trafficServer) serveParts(w http.ResponseWriter, r *http.Request) {
	f, err := s.files.Open("10m.mp4")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	file := f.(io.ReadSeeker)
	head := func(p [2]int64) string {
		return fmt.Sprintf("\r\n--part\r\nContent-Range: bytes %d-%d/*\r\n\r\n", p[0], p[0]+p[1]-1)
	}
	const end = "\r\n--part--\r\n"
	length := int64(len(end))
	for _, p := range partRanges {
		length += int64(len(head(p))) + p[1]
	}
	w.Header().Set("Content-Type", "multipart/byteranges; boundary=part")
	w.Header().Set("Content-Length", fmt.Sprint(length))
	for _, p := range partRanges {
		_, err := io.WriteString(w, head(p))
		if _, serr := file.Seek(p[0], io.SeekStart); serr != nil {
			err = serr
		}
		n, cerr := io.CopyN(w, file, p[1])
		if err != nil || cerr != nil || n != p[1] {
			s.note(r.URL.Query().Get("note"), "part %v: %d bytes, %v, %v", p, n, err, cerr)
		}
	}
	_, _ = io.WriteString(w, end) // the client notices
}

// serveWrongLength promises another length than it sends.
func (s *trafficServer) serveWrongLength(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", r.URL.Query().Get("promise"))
	var err error
	if r.URL.Query().Get("file") != "" {
		f, oerr := s.files.Open("64k.m4s")
		if oerr != nil {
			return
		}
		defer f.Close()
		_, err = io.Copy(w, f)
	} else {
		for n := number(r, "n"); n > 0 && err == nil; n -= 1000 {
			_, err = w.Write(make([]byte, min(n, 1000)))
		}
	}
	s.note(r.URL.Query().Get("note"), "too long: %v", errors.Is(err, http.ErrContentLength))
}

// servePanic panics behind some bytes.
func (s *trafficServer) servePanic(w http.ResponseWriter, r *http.Request) {
	if length := r.URL.Query().Get("length"); length != "" {
		w.Header().Set("Content-Length", length)
	}
	if n := number(r, "n"); n > 0 {
		_, _ = w.Write(make([]byte, n))
		_ = http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler) // as any other panic, without the stack in the log
}

// serveEvents sends events of two lines, flushes each second line, and goes on when the test has seen both.
func (s *trafficServer) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range number(r, "n") {
		fmt.Fprintf(w, "id: %d\n", i)
		fmt.Fprintf(w, "data: %s\n", strings.Repeat("x", int(i)*500))
		_ = http.NewResponseController(w).Flush()
		s.gate(r.URL.Query().Get("note") + fmt.Sprint(i))
	}
}

// serveWait answers when the client has gone, or when the test says so.
func (s *trafficServer) serveWait(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("note")
	if n := number(r, "n"); n > 0 {
		_, _ = io.Copy(w, newPattern(n))
		_ = http.NewResponseController(w).Flush()
	}
	s.note(key, "waits")
	select {
	case <-r.Context().Done():
		s.note(key, "the client is gone")
	case <-s.gateChannel(key):
		s.note(key, "goes on")
	case <-time.After(2 * patience):
		s.note(key, "nothing happens")
	}
	fmt.Fprint(w, "the end")
}

// serveCount reads an upload. With hold it waits for the test before.
func (s *trafficServer) serveCount(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("hold") != "" {
		key := r.URL.Query().Get("note")
		s.note(key, "holds")
		s.gate(key)
	}
	n, err := checkPattern(r.Body)
	fmt.Fprintf(w, "%d bytes, %s", n, kindOf(err))
}

// serveBothWays answers while it reads.
func (s *trafficServer) serveBothWays(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		s.note(r.URL.Query().Get("note"), "full duplex: %v", err)
	}
	buf := make([]byte, 8<<10)
	for {
		n, err := r.Body.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil || err != nil {
			return
		}
		_ = rc.Flush() // the client notices
	}
}

// serveDeadline lets the deadlines of a response pass, and tells what became of it.
func (s *trafficServer) serveDeadline(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("note")
	rc := http.NewResponseController(w)
	switch r.URL.Query().Get("which") {
	case "read":
		_ = rc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := io.ReadAll(r.Body)
		s.note(key, "read: %s", kindOf(err))
		fmt.Fprint(w, "read enough")
	case "write":
		_ = rc.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := io.Copy(onlyWriter{w}, newPattern(1<<30))
		s.note(key, "write: %s", kindOf(err))
	case "file":
		_ = rc.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		f, err := s.files.Open(bigFile)
		if err != nil {
			s.note(key, "open: %v", err)
			return
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		s.note(key, "file: %s", kindOf(err))
	}
}

// multiRange reads what http.ServeContent answers to a request for several ranges.
func multiRange(resp *http.Response) string {
	_, boundary, _ := strings.Cut(resp.Header.Get("Content-Type"), "boundary=")
	var parts []string
	for r := multipart.NewReader(resp.Body, boundary); ; {
		p, err := r.NextPart()
		if err != nil {
			return fmt.Sprintf("%v, %s", parts, kindOf(err))
		}
		parts = append(parts, describePart(p.Header, p))
	}
}

func describePart(h textproto.MIMEHeader, r io.Reader) string {
	return fmt.Sprintf("%s: %s", h.Get("Content-Range"), digest(r))
}

// pattern is content of any length that costs no memory: each eight bytes tell their place.
type pattern struct{ offset, size int64 }

func newPattern(size int64) *pattern { return &pattern{0, size} }

func (p *pattern) Read(b []byte) (int, error) {
	if p.offset >= p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-p.offset))
	var word [8]byte
	for done := 0; done < n; {
		const odd = 0x9e3779b97f4a7c15 // so that no two words are alike
		binary.LittleEndian.PutUint64(word[:], uint64(p.offset/8)*odd)
		k := copy(b[done:n], word[p.offset%8:])
		done, p.offset = done+k, p.offset+int64(k)
	}
	return n, nil
}

// checkPattern reads r to its end and returns how many bytes of the pattern it was.
func checkPattern(r io.Reader) (int64, error) {
	want := newPattern(1 << 62)
	got, expected := make([]byte, 32<<10), make([]byte, 32<<10)
	for total := int64(0); ; {
		n, err := r.Read(got)
		_, _ = want.Read(expected[:n])
		if string(got[:n]) != string(expected[:n]) {
			return total, errWrongByte
		}
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
