package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
)

// onBoth runs a test on a new connection, and on one that has had a large response: leased, or back from the host.
func onBoth(t *testing.T, run func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client)) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm)+" new", func(t *testing.T) {
			run(t, l, files, arm, func() *client { return dial(t, l, arm) })
		})
		t.Run(string(arm)+" used", func(t *testing.T) {
			run(t, l, files, arm, func() *client {
				c := dial(t, l, arm)
				c.get("10m.mp4", files.files["10m.mp4"])
				return c
			})
		})
	}
	noLeases(t, l)
}

// TestPipeline: ten requests in one write.
func TestPipeline(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client) {
		c := connect()
		var requests strings.Builder
		var names []string
		for i := range 10 {
			name := files.names()[i%len(files.names())]
			names = append(names, name)
			requests.WriteString(c.request(http.MethodGet, name))
		}
		if !c.send(requests.String()) {
			return
		}
		for _, name := range names {
			resp, err := c.header(http.MethodGet)
			must(t, err)
			if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(files.files[name])) {
				t.Fatalf("%s: status %d, %d bytes", name, resp.StatusCode, resp.ContentLength)
			}
			c.take(files.files[name])
		}
		c.get("4k.m4s", files.files["4k.m4s"])
	})
}

// TestPost: a request body of 5 MB is answered with 405. The connection then goes on behind the body, or is closed; the body is never taken for
// a request.
func TestPost(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client) {
		const size = 5 << 20
		inside := connect().request(http.MethodGet, "4k.m4s") // what a body must not be taken for
		body := strings.Repeat(inside, size/len(inside)+1)[:size]
		c := connect()
		sent := make(chan error, 1)
		go func() {
			_, err := fmt.Fprintf(c.TCPConn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target("4k.m4s"), c.addr, size, body)
			sent <- err
		}()
		resp, err := c.header(http.MethodPost)
		if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
			t.Fatalf("%v, %v; want 405", resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if resp.Close {
			c.expectClosed()
			c.Close()
			if err := <-sent; err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, net.ErrClosed) {
				t.Errorf("send the body: %v", err)
			}
		} else {
			must(t, <-sent)
			c.get("10m.mp4", files.files["10m.mp4"])
		}
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
	})
}

// TestSmallPost: a body that the server reads away leaves the connection usable.
func TestSmallPost(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client) {
		c := connect()
		const size = 100_000 // less than net/http reads away, more than one segment
		c.send(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target("4k.m4s"), c.addr, size, strings.Repeat("x", size)))
		resp, err := c.header(http.MethodPost)
		if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || resp.Close {
			t.Fatalf("%v, %v; want 405 and the connection kept", resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		c.get("10m.mp4", files.files["10m.mp4"])
	})
}

// TestHTTP10: a body that ends with the connection, and keep-alive by request.
func TestHTTP10(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client) {
		c := connect()
		for _, last := range []bool{false, false, true} {
			keep := "Connection: keep-alive\r\n"
			if last {
				keep = ""
			}
			c.send(fmt.Sprintf("GET %s HTTP/1.0\r\n%s\r\n", target("10m.mp4"), keep))
			resp, err := c.header(http.MethodGet)
			if err != nil || resp.StatusCode != http.StatusOK || resp.Close != last {
				t.Fatalf("%v, %v; want 200 and close: %v", resp, err, last)
			}
			c.take(files.files["10m.mp4"])
		}
		c.expectClosed()
	})
}

// TestHead: a header without its body, between others.
func TestHead(t *testing.T) {
	onBoth(t, func(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connect func() *client) {
		c := connect()
		for range 3 {
			c.send(c.request(http.MethodHead, "10m.mp4"))
			resp, err := c.header(http.MethodHead)
			if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(files.files["10m.mp4"])) {
				t.Fatalf("%v, %v", resp, err)
			}
			c.get("64k.m4s", files.files["64k.m4s"])
		}
	})
}

// TestMPTCPClient: a client that offers MPTCP gets its files through the host like any other, over plain TCP.
func TestMPTCPClient(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			protocol := 0
			d := &net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) error {
				var err error
				cerr := raw.Control(func(fd uintptr) { protocol, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL) })
				return errors.Join(cerr, err)
			}}
			d.SetMultipathTCP(true)
			conn, err := l.Client.Dial(d, "tcp", l.Addr(arm))
			must(t, err)
			defer conn.Close()
			if protocol != unix.IPPROTO_MPTCP {
				t.Fatalf("the client's socket has protocol %d, want MPTCP; set net.mptcp.enabled=1", protocol)
			}
			c := wrapClient(t, conn.(*net.TCPConn), l.Addr(arm))
			for range 3 {
				c.get("10m.mp4", files.files["10m.mp4"])
				c.get("4k.m4s", files.files["4k.m4s"])
			}
			expectSends(t, l, arm, 6)
		})
	}
}

// TestConnectionsComeAndGo: short connections, many of them, some of which close before their response.
func TestConnectionsComeAndGo(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		for i := range 60 {
			c := dial(t, l, arm)
			switch i % 4 {
			case 0:
				c.get("64k.m4s", files.files["64k.m4s"])
			case 1:
				c.ask("10m.mp4") // and does not wait
			case 2:
				c.ask("10m.mp4")
				time.Sleep(time.Duration(i) * 50 * time.Microsecond) // at any moment of the handover
				c.reset()
				continue
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
	}
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
	if s := hostStatus(t, l); s.Breaches != 0 || s.Closed["kernel"] != 0 {
		t.Errorf("%d breaches, leases closed for %v", s.Breaches, s.Closed)
	}
}
