package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
	"spillway/internal/netns"
)

// client is one connection from the client's namespace on which a test writes its requests byte for byte. Its methods report failures with
// Error and return false, so that they can be used in any goroutine.
type client struct {
	*net.TCPConn
	t        testing.TB
	addr     string
	r        *bufio.Reader
	patience time.Duration // for a response's header, and the whole of it where it is not read bit by bit
}

// smallBuffer is for clients whose kernel must not take much of a body that they do not read. Bytes.
const smallBuffer = 32 << 10

// dial connects to an arm. options set up the socket before it connects.
func dial(t testing.TB, l *lab.Lab, arm lab.Arm, options ...func(fd int) error) *client {
	t.Helper()
	return dialAddr(t, l, l.Addr(arm), options...)
}

func dialAddr(t testing.TB, l *lab.Lab, addr string, options ...func(fd int) error) *client {
	t.Helper()
	return dialFrom(t, l.Client, addr, options...)
}

// dialFrom is dialAddr from another namespace.
func dialFrom(t testing.TB, from *netns.Namespace, addr string, options ...func(fd int) error) *client {
	t.Helper()
	d := &net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) error {
		var errs []error
		err := raw.Control(func(fd uintptr) {
			for _, o := range options {
				errs = append(errs, o(int(fd)))
			}
		})
		return errors.Join(append(errs, err)...)
	}}
	d.SetMultipathTCP(false)
	conn, err := from.Dial(d, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) // most tests have closed it
	return wrapClient(t, conn.(*net.TCPConn), addr)
}

func wrapClient(t testing.TB, conn *net.TCPConn, addr string) *client {
	return &client{conn, t, addr, bufio.NewReader(conn), patience}
}

// receiveBuffer is an option of dial.
func receiveBuffer(bytes int) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes) }
}

// send writes text as it is.
func (c *client) send(text string) bool {
	c.t.Helper()
	if err := c.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
		c.t.Error(err)
		return false
	}
	if _, err := io.WriteString(c.TCPConn, text); err != nil {
		c.t.Errorf("send request: %v", err)
		return false
	}
	return true
}

func (c *client) request(method, name string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n\r\n", method, target(name), c.addr)
}

func (c *client) ask(name string) bool { c.t.Helper(); return c.send(c.request(http.MethodGet, name)) }

// header reads the header of a response.
func (c *client) header(method string) (*http.Response, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.r, &http.Request{Method: method})
}

// begin asks for a file and reads the header and the first n bytes of the body.
func (c *client) begin(name string, want []byte, n int) bool {
	c.t.Helper()
	if !c.ask(name) {
		return false
	}
	resp, err := c.header(http.MethodGet)
	if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) {
		c.t.Errorf("%s: response %+v, error %v; want 200 and %d bytes", name, resp, err, len(want))
		return false
	}
	return c.take(want[:n])
}

// take reads exactly the bytes want.
func (c *client) take(want []byte) bool {
	c.t.Helper()
	got, err := c.compare(want, c.patience)
	if err != nil {
		c.t.Errorf("after %d of %d bytes: %v", got, len(want), err)
	}
	return err == nil
}

// rest reads n bytes, or as many as come.
func (c *client) rest(n int) ([]byte, error) {
	buf := make([]byte, n)
	for got := 0; got < n; {
		if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
			return buf[:got], err
		}
		m, err := c.r.Read(buf[got:])
		got += m
		if err != nil {
			return buf[:got], err
		}
	}
	return buf, nil
}

var errWrongByte = errors.New("wrong byte")

// compare reads want and returns how many bytes of it came. patience is for each read.
func (c *client) compare(want []byte, patience time.Duration) (got int, err error) {
	buf := make([]byte, 64<<10)
	for got < len(want) {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return got, err
		}
		n, err := c.r.Read(buf[:min(len(buf), len(want)-got)])
		if !bytes.Equal(buf[:n], want[got:got+n]) {
			return got, errWrongByte
		}
		got += n
		if err != nil {
			return got, err
		}
	}
	return got, nil
}

// takeCut reads the rest of a body whose connection is cut: right bytes, fewer than want, and an end within hangLimit.
func (c *client) takeCut(want []byte) {
	c.t.Helper()
	got, err := c.compare(want, hangLimit)
	switch {
	case err == nil:
		c.t.Errorf("the whole body came (%d bytes more); it should have been cut", got)
	case !closedByPeer(err):
		c.t.Errorf("after %d of %d bytes: %v; want the connection to be closed within %v", got, len(want), err, hangLimit)
	}
}

// closedByPeer tells whether err is the end of a connection, by FIN or RST.
func closedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// expectClosed checks that no byte more comes and that the connection is closed.
func (c *client) expectClosed() {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(hangLimit)); err != nil {
		c.t.Error(err)
		return
	}
	if n, err := io.Copy(io.Discard, c.r); n > 0 || err != nil && !closedByPeer(err) {
		c.t.Errorf("%d bytes and %v; want the connection to be closed within %v", n, err, hangLimit)
	}
}

// get asks for a file and checks the whole response.
func (c *client) get(name string, want []byte) bool {
	c.t.Helper()
	return c.begin(name, want, len(want))
}

// getStatus asks for a target as it is written and returns the status and the body.
func (c *client) getStatus(target string) (status int, body []byte) {
	c.t.Helper()
	if !c.send("GET " + target + " HTTP/1.1\r\nHost: " + c.addr + "\r\n\r\n") {
		return 0, nil
	}
	resp, err := c.header(http.MethodGet)
	if err != nil {
		c.t.Errorf("%s: %v", target, err)
		return 0, nil
	}
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		c.t.Errorf("%s: body: %v", target, err)
	}
	return resp.StatusCode, body
}

// reset closes the connection with a RST.
func (c *client) reset() {
	c.t.Helper()
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		c.t.Errorf("reset: %v", err)
	}
}

// fetch gets one file over a connection of its own.
func fetch(t testing.TB, l *lab.Lab, arm lab.Arm, name string, want []byte) {
	t.Helper()
	c := dial(t, l, arm)
	c.get(name, want)
	if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// httpClient is net/http from the client's namespace.
func httpClient(t testing.TB, l *lab.Lab) *http.Client {
	c := l.HTTPClient()
	t.Cleanup(c.CloseIdleConnections)
	return c
}
