package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newServer serves the given bodies under /name on loopback.
func newServer(t *testing.T, bodies map[string][]byte) (addr string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := bodies[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func newClient(t *testing.T, addr string, opts ClientOptions) *Client {
	t.Helper()
	c := NewClient(addr, opts)
	t.Cleanup(func() { c.Close() })
	return c
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

func TestClientKeepsOneConnection(t *testing.T) {
	bodies := map[string][]byte{}
	sizes := []int{0, 1, 4096, bufferBytes - 1, bufferBytes, bufferBytes + 1, 3_000_000}
	for _, n := range sizes {
		bodies[fmt.Sprint(n)] = randomBytes(n)
	}
	c := newClient(t, newServer(t, bodies), ClientOptions{})
	for range 3 {
		for _, n := range sizes {
			res, err := c.Get(t.Context(), fmt.Sprintf("/%d", n), true)
			if err != nil {
				t.Fatal(err)
			}
			if res.Status != 200 || res.Bytes != int64(n) || res.SHA256 != sha256.Sum256(bodies[fmt.Sprint(n)]) {
				t.Errorf("%d bytes: %+v", n, res)
			}
			if res.FirstByte <= 0 || res.Elapsed < res.FirstByte || res.LongestGap <= 0 || res.LongestGap > res.Elapsed {
				t.Errorf("%d bytes: the times contradict each other: %+v", n, res)
			}
		}
		res, err := c.Get(t.Context(), "/missing", false)
		if err != nil || res.Status != 404 {
			t.Errorf("missing file: %+v, %v", res, err)
		}
		if res.SHA256 != [sha256.Size]byte{} {
			t.Error("a sum was computed that nobody asked for")
		}
	}
	if c.Dials() != 1 {
		t.Errorf("%d connections, want 1", c.Dials())
	}
}

// newRawServer listens on loopback. On each connection it reads one request, answers with just these bytes, and closes.
func newRawServer(t *testing.T, answer string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, answer) // the client may have had enough
				}
			})
		}
	})
	return ln.Addr().String()
}

func TestResponses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, test := range []struct {
		name, answer string
		wantBytes    int64
		wantErr      error
		wantOp       string
	}{
		{"plain", ok + "content-length: 3\r\n\r\nabc", 3, nil, ""},
		{"interim response", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok + "Content-Length: 3\r\n\r\nabc", 3, nil, ""},
		{"not modified", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", 0, nil, ""},
		{"no reason phrase", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0, nil, ""},
		{"short", ok + "Content-Length: 4\r\n\r\nabc", 3, ErrShortBody, "read body"},
		{"long", ok + "Content-Length: 2\r\n\r\nabc", 0, ErrUnexpectedBytes, "read body"},
		{"chunked", ok + "Transfer-Encoding: chunked\r\n\r\n", 0, ErrNoLength, "read header"},
		{"no length", ok + "\r\n", 0, ErrNoLength, "read header"},
		{"negative length", ok + "Content-Length: -1\r\n\r\n", 0, ErrMalformed, "read header"},
		{"two lengths", ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 0, ErrMalformed, "read header"},
		{"no colon", ok + "nonsense\r\n\r\n", 0, ErrMalformed, "read header"},
		{"not HTTP", "SSH-2.0-x\r\n\r\n", 0, ErrMalformed, "read header"},
		{"bad status", "HTTP/1.1 2x0 OK\r\n\r\n", 0, ErrMalformed, "read header"},
		{"endless header", ok + strings.Repeat("A: b\r\n", bufferBytes/6), 0, ErrHeaderTooLarge, "read header"},
		{"nothing", "", 0, io.EOF, "read header"},
	} {
		c := newClient(t, newRawServer(t, test.answer), ClientOptions{})
		res, err := c.Get(t.Context(), "/f", false)
		if !errors.Is(err, test.wantErr) || res.Bytes != test.wantBytes {
			t.Errorf("%s: %d bytes, %v; want %d bytes, %v", test.name, res.Bytes, err, test.wantBytes, test.wantErr)
		}
		var failed *RequestError
		if errors.As(err, &failed) != (test.wantErr != nil) || (failed != nil && (failed.Op != test.wantOp || failed.Received != test.wantBytes)) {
			t.Errorf("%s: %+v, want op %q", test.name, failed, test.wantOp)
		}
		if err != nil && c.conn != nil {
			t.Errorf("%s: the connection is still open after an error", test.name)
		}
		c.Close()
	}
}

func TestClientDialsAgain(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		fails        bool
	}{
		{"Connection: close", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na", false},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", false},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", true},
	} {
		c := newClient(t, newRawServer(t, test.answer), ClientOptions{})
		for range 3 {
			if _, err := c.Get(t.Context(), "/", false); (err != nil) != test.fails {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		if c.Dials() != 3 {
			t.Errorf("%s: %d connections for three requests, want 3", test.name, c.Dials())
		}
		c.Close()
	}
}

// TestStalls runs on a clock of its own: the pauses are exact.
func TestStalls(t *testing.T) {
	for _, test := range []struct {
		name   string
		pauses [3]time.Duration // before the header, within the header, within the body
		want   int
	}{
		{"none", [3]time.Duration{}, 0},
		{"just not", [3]time.Duration{150 * time.Millisecond, 150 * time.Millisecond, 150 * time.Millisecond}, 0},
		{"first byte", [3]time.Duration{151 * time.Millisecond, 0, 0}, 1},
		{"header", [3]time.Duration{0, 151 * time.Millisecond, 0}, 1},
		{"body", [3]time.Duration{0, 0, 210 * time.Millisecond}, 1},
		{"all", [3]time.Duration{time.Second, time.Second, 2 * time.Second}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				go func() {
					defer server.Close()
					if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
						t.Error(err)
						return
					}
					for i, part := range []string{"HTTP/1.1 200 OK\r\n", "Content-Length: 6\r\n\r\nabc", "def"} {
						time.Sleep(test.pauses[i])
						if _, err := io.WriteString(server, part); err != nil {
							t.Error(err)
							return
						}
					}
				}()
				c := NewClient("media", ClientOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
				defer c.Close()
				res, err := c.Get(t.Context(), "/", false)
				if err != nil {
					t.Fatal(err)
				}
				sum, longest := time.Duration(0), time.Duration(0)
				for _, p := range test.pauses {
					sum += p
					longest = max(longest, p)
				}
				want := Result{Status: 200, Bytes: 6, FirstByte: test.pauses[0], Elapsed: sum, LongestGap: longest, Stalls: test.want}
				if res != want {
					t.Errorf("got  %+v\nwant %+v", res, want)
				}
			})
		})
	}
}

func TestSilenceIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer server.Close()
		go func() {
			_, _ = http.ReadRequest(bufio.NewReader(server))
			_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
		}()
		c := NewClient("media", ClientOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
		start := time.Now()
		res, err := c.Get(t.Context(), "/", false)
		if !errors.Is(err, ErrStalled) || res.Stalls != 1 || res.Bytes != 3 {
			t.Errorf("%+v, %v; want ErrStalled", res, err)
		}
		if took := time.Since(start); took != DefaultTimeout {
			t.Errorf("given up after %s, want %s", took, DefaultTimeout)
		}
	})
}

func TestContextEndsARequest(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // accept, never answer
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		cancel()
		_, _ = io.Copy(io.Discard, conn)
	}()
	c := newClient(t, ln.Addr().String(), ClientOptions{})
	_, err = c.Get(ctx, "/", false)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want context.Canceled", err)
	}
	if _, err := c.Get(ctx, "/", false); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with an ended context: %v", err)
	}
}

func TestPass(t *testing.T) {
	bodies := map[string][]byte{}
	var targets []Target
	for i := range 20 {
		name := fmt.Sprintf("seg-%d.m4s", i)
		bodies[name] = randomBytes(10_000 + i)
		sum := sha256.Sum256(bodies[name])
		targets = append(targets, Target{Path: "/" + name, Bytes: int64(len(bodies[name])), SHA256: hex.EncodeToString(sum[:])})
	}
	targets[3].Path = "/missing"
	targets[5].Bytes++
	targets[7].SHA256 = targets[8].SHA256
	addr := newServer(t, bodies)
	for _, test := range []struct {
		verify    bool
		wantWrong int64
	}{{true, 3}, {false, 2}} {
		var rec Recorder
		calls := 0
		c := newClient(t, addr, ClientOptions{})
		if err := Pass(t.Context(), c, targets, test.verify, &rec, func(Result) { calls++ }); err != nil {
			t.Fatal(err)
		}
		if rec.Wrong() != test.wantWrong || rec.Summary().N != 20-int(test.wantWrong) || calls != 20 {
			t.Errorf("verify %v: %d wrong, %d right, %d calls; errors: %v", test.verify, rec.Wrong(), rec.Summary().N, calls, rec.Errors())
		}
		for _, err := range rec.Errors() {
			var wrong *WrongBodyError
			if !errors.As(err, &wrong) {
				t.Errorf("unexpected reason: %v", err)
			}
		}
		if row := rec.Row("vm", "mobile"); row.ElapsedS <= 0 || row.MBPerS <= 0 || row.Bytes < 10_000*int64(row.N) {
			t.Errorf("row: %+v", row)
		}
	}
}

func TestPassEnds(t *testing.T) {
	targets := []Target{{Path: "/a"}, {Path: "/a"}}
	refused := errors.New("refused")
	var rec Recorder
	c := NewClient("media", ClientOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, refused }})
	if err := Pass(t.Context(), c, targets, false, &rec, nil); !errors.Is(err, refused) || rec.Wrong() != 0 {
		t.Errorf("no server: %v, %d wrong", err, rec.Wrong())
	}

	// A connection that breaks is a wrong response; the pass goes on.
	c = newClient(t, newRawServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), ClientOptions{})
	if err := Pass(t.Context(), c, targets, false, &rec, nil); err != nil || rec.Wrong() != 2 || c.Dials() != 2 {
		t.Errorf("broken connections: %v, %d wrong, %d dials", err, rec.Wrong(), c.Dials())
	}

	ctx, cancel := context.WithCancel(t.Context())
	c = newClient(t, newServer(t, map[string][]byte{"a": nil}), ClientOptions{})
	if err := Pass(ctx, c, targets, false, &rec, func(Result) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}
