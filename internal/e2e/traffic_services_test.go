package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// service is a server that is not net/http: it has the connection to itself. r is where it reads, conn where it writes; the connection is closed
// when it returns.
type service func(s *trafficServer, conn net.Conn, r *bufio.Reader, key string)

// services by the name that a client says, on a connection of its own or in place of a path of HTTP.
var services = map[string]service{
	"echo":               func(_ *trafficServer, c net.Conn, r *bufio.Reader, _ string) { _, _ = io.Copy(c, r); _ = closeWrite(c) },
	"count":              countUntilEnd,
	"end-first":          endFirst,
	"ranges":             sendRanges,
	"both-ways":          bothWays,
	"writer-beside-copy": writerBesideCopy,
	"read-deadlines":     readDeadlines,
	"write-deadline":     writeDeadline,
	"closed":             callsAfterClose,
	"close-in-read":      closeInRead,
	"close-in-write":     closeInWrite,
	"close-in-file":      closeInFile,
	"write-to-gone":      writeToGone,
	"read-from-gone":     readFromGone,
	"options":            setOptions,
	"linger":             lingerReset,
	"small-pieces":       smallPieces,
}

// serveHijacked gives an HTTP connection to a service.
func (s *trafficServer) serveHijacked(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
	services[strings.TrimPrefix(r.URL.Path, "/raw/")](s, conn, rw.Reader, r.URL.Query().Get("note"))
}

// serveRaw serves connections that begin with a line: the name of a service and a key for its notes. Then comes the preamble.
func (s *trafficServer) serveRaw(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			r := bufio.NewReader(conn)
			line, err := r.ReadString('\n')
			name, key, _ := strings.Cut(strings.TrimSpace(line), " ")
			if err != nil || services[name] == nil || s.preamble(conn) != nil {
				return // the client notices
			}
			services[name](s, conn, r, key)
		}()
	}
}

func closeWrite(c net.Conn) error {
	w, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("no CloseWrite")
	}
	return w.CloseWrite()
}

// countUntilEnd answers when the client has closed its direction.
func countUntilEnd(_ *trafficServer, c net.Conn, r *bufio.Reader, _ string) {
	n, err := checkPattern(r)
	fmt.Fprintf(c, "%d bytes, %s", n, kindOf(err))
}

// endFirst closes its direction before the client says anything.
func endFirst(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	_, err := io.WriteString(c, "last words")
	s.note(key, "write: %s", kindOf(err))
	s.note(key, "close: %s", kindOf(closeWrite(c)))
	_, err = c.Write([]byte("more"))
	s.note(key, "write after close: %s", kindOf(err))
	n, err := checkPattern(r)
	s.note(key, "read: %d, %s", n, kindOf(err))
}

// sendRanges sends ranges of files and bytes in between, with no protocol around them.
func sendRanges(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	for i, p := range partRanges {
		f, err := s.files.Open("10m.mp4")
		if err == nil {
			_, err = f.(io.Seeker).Seek(p[0], io.SeekStart)
		}
		var n int64
		if err == nil {
			n, err = io.CopyN(c, f, p[1])
			f.Close()
		}
		_, werr := fmt.Fprintf(c, "<%d>", i)
		s.note(key, "%d: %d bytes, %s, %s", i, n, kindOf(err), kindOf(werr))
	}
}

// bothWaysBytes are sent in each direction at the same time.
const bothWaysBytes = 20 << 20

// bothWays copies in both directions at once.
func bothWays(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	sent := make(chan string, 1)
	go func() {
		n, err := io.Copy(c, newPattern(bothWaysBytes))
		sent <- fmt.Sprintf("down: %d, %s, %s", n, kindOf(err), kindOf(closeWrite(c)))
	}()
	n, err := checkPattern(r)
	s.note(key, "up: %d, %s", n, kindOf(err))
	s.note(key, "%s", <-sent)
}

// silence is a source that says a word, and then nothing until its end.
type silence struct {
	word       string
	begun, end chan struct{}
}

func (s *silence) Read(p []byte) (int, error) {
	if n := copy(p, s.word); n > 0 {
		s.word = s.word[n:]
		return n, nil
	}
	close(s.begun)
	<-s.end
	return 0, io.EOF
}

// writerBesideCopy copies from a source that has nothing to say for the time being, while another goroutine writes, and closes the direction.
func writerBesideCopy(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	source := &silence{"from the source;", make(chan struct{}), make(chan struct{})}
	copied := make(chan string, 1)
	go func() {
		n, err := io.Copy(c, source)
		copied <- fmt.Sprintf("copy: %d, %s", n, kindOf(err))
	}()
	<-source.begun
	wrote := make(chan string, 1)
	go func() {
		_, err := io.WriteString(c, "beside it;")
		wrote <- fmt.Sprintf("write: %s", kindOf(err))
		wrote <- fmt.Sprintf("close: %s", kindOf(closeWrite(c)))
	}()
	for range 2 {
		select {
		case line := <-wrote:
			s.note(key, "%s", line)
		case <-time.After(hangLimit):
			s.note(key, "a writer waits for another one's source")
		}
	}
	close(source.end)
	s.note(key, "%s", <-copied)
}

// readDeadlines lets deadlines pass in every order. The client speaks when it has heard "now".
func readDeadlines(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	b := make([]byte, 5)
	step := func(what string, t time.Time) {
		err := c.SetReadDeadline(t)
		n, rerr := c.Read(b)
		var timeout net.Error
		s.note(key, "%s: %s, %d %q, %s, time-out: %v", what, kindOf(err), n, b[:n], kindOf(rerr), errors.As(rerr, &timeout) && timeout.Timeout())
	}
	step("past", time.Unix(1, 0))
	step("soon", time.Now().Add(20*time.Millisecond))
	go func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }() // what net/http does around a handler
	step("moved into the past", time.Now().Add(20*time.Millisecond))
	_, _ = io.WriteString(c, "now")
	step("far", time.Now().Add(patience))
	_ = c.SetDeadline(time.Unix(1, 0))
	_, err := c.Write([]byte("never"))
	s.note(key, "write past the deadline: %s", kindOf(err))
	_, err = c.Write(nil)
	s.note(key, "write nothing past the deadline: %s", kindOf(err))
	n, err := c.Read(nil)
	s.note(key, "read nothing past the deadline: %d, %s", n, kindOf(err))
	s.note(key, "no deadline: %s", kindOf(c.SetDeadline(time.Time{})))
	_, _ = io.WriteString(c, "now")
	n, err = io.ReadFull(r, b)
	s.note(key, "then: %d %q, %s", n, b[:n], kindOf(err))
}

// deadlineBytes are more than all buffers on the way hold.
const deadlineBytes = 64 << 20

// writeDeadline writes to a client that does not read until a deadline passes, and then the rest when the client reads.
func writeDeadline(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	content := make([]byte, deadlineBytes)
	_, _ = newPattern(deadlineBytes).Read(content)
	go func() {
		s.gate(key) // the client has the first bytes
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	}()
	n, err := c.Write(content)
	s.note(key, "part of it: %v, %s", n > 0 && n < len(content), kindOf(err))
	_, err = c.Write(content[n:])
	s.note(key, "again: %s", kindOf(err))
	_ = c.SetWriteDeadline(time.Time{})
	s.note(key, "go")
	m, err := c.Write(content[n:])
	s.note(key, "the rest: %v, %s", n+m == len(content), kindOf(err))
}

// callsAfterClose tells what each method says on a closed connection.
func callsAfterClose(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	s.note(key, "close: %s", kindOf(c.Close()))
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"close again", c.Close},
		{"read", func() error { _, err := c.Read(make([]byte, 1)); return err }},
		{"read nothing", func() error { _, err := c.Read(nil); return err }},
		{"write", func() error { _, err := c.Write([]byte("x")); return err }},
		{"write nothing", func() error { _, err := c.Write(nil); return err }},
		{"copy", func() error { _, err := io.Copy(c, newPattern(10)); return err }},
		{"close write", func() error { return closeWrite(c) }},
		{"deadline", func() error { return c.SetDeadline(time.Now()) }},
		{"read deadline", func() error { return c.SetReadDeadline(time.Now()) }},
		{"write deadline", func() error { return c.SetWriteDeadline(time.Now()) }},
	} {
		err := call.do()
		_, op := err.(*net.OpError)
		s.note(key, "%s: %s, OpError: %v", call.name, kindOf(err), op)
	}
	s.note(key, "addresses: %v, %v", c.LocalAddr() != nil, c.RemoteAddr() != nil)
}

func closeInRead(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	time.AfterFunc(20*time.Millisecond, func() { c.Close() })
	_, err := c.Read(make([]byte, 1))
	s.note(key, "read: %s", kindOf(err))
}

// closeInWrite closes under a writer whose client does not read.
func closeInWrite(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	go s.closeWhenTold(c, key)
	n, err := c.Write(make([]byte, deadlineBytes))
	s.note(key, "write: part of it: %v, %s", n < deadlineBytes, kindOf(err))
}

// closeWhenTold closes when the client has seen the first bytes.
func (s *trafficServer) closeWhenTold(c net.Conn, key string) {
	s.gate(key)
	s.note(key, "close: %s", kindOf(c.Close()))
}

// closeInFile closes while a file is sent to a client that does not read.
func closeInFile(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	f, err := s.files.Open(bigFile)
	if err != nil {
		return
	}
	defer f.Close()
	go s.closeWhenTold(c, key)
	_, err = io.Copy(c, f)
	s.note(key, "file: %s", kindOf(err))
}

// writeToGone writes until the connection, which the client resets, is no more.
func writeToGone(s *trafficServer, c net.Conn, _ *bufio.Reader, key string) {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			s.note(key, "write: %s", kindOf(err))
			return
		}
	}
}

func readFromGone(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := checkPattern(r)
	s.note(key, "read: %d, %s", n, kindOf(err))
	_, err = c.Read(make([]byte, 1))
	s.note(key, "again: error %v", err != nil)
}

// setOptions calls the setters of *net.TCPConn that servers call where they find them.
func setOptions(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	type setters interface {
		SetNoDelay(bool) error
		SetKeepAlive(bool) error
		SetKeepAlivePeriod(time.Duration) error
		SetKeepAliveConfig(net.KeepAliveConfig) error
		SetLinger(int) error
	}
	o, ok := c.(setters)
	if !ok {
		s.note(key, "no setters")
		return
	}
	for name, err := range map[string]error{
		"delay": o.SetNoDelay(false), "no delay": o.SetNoDelay(true), "off": o.SetKeepAlive(false), "on": o.SetKeepAlive(true),
		"period": o.SetKeepAlivePeriod(time.Minute), "config": o.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 2 * time.Minute}),
		"linger": o.SetLinger(-1),
	} {
		if err != nil {
			s.note(key, "%s: %v", name, err)
		}
	}
	s.note(key, "set")
	_, _ = io.Copy(c, r) // and the connection works as before
}

// lingerReset is how servers reset a connection.
func lingerReset(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	_, _ = r.ReadByte()
	if o, ok := c.(interface{ SetLinger(int) error }); ok {
		s.note(key, "linger: %s", kindOf(o.SetLinger(0)))
	}
	s.note(key, "close: %s", kindOf(c.Close()))
}

// smallPieces writes byte by byte, and heads that no body follows.
func smallPieces(s *trafficServer, c net.Conn, r *bufio.Reader, key string) {
	for i := range 500 {
		_, err := c.Write([]byte{byte(i)})
		if i%100 == 99 {
			_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
		}
		if err != nil {
			s.note(key, "%d: %v", i, err)
		}
	}
	b, err := r.ReadByte()
	s.note(key, "heard %q, %s", b, kindOf(err))
}
