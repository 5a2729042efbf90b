package evaluation

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
)

// soakSilence is the silence that counts as a hang: whatever is killed, who is concerned learns of it within 6 s (docs/architecture.md), and the
// machine may be busy.
const soakSilence = 20 * time.Second

// Failures that a soak looks for.
var (
	errWrongBytes = errors.New("wrong bytes")
	errCut        = errors.New("connection closed while nothing was killed or cut")
	errHang       = fmt.Errorf("no byte for %v", soakSilence)
	errStatus     = errors.New("not the response that was asked for")
)

// soakClient makes visits, one after the other.
type soakClient struct {
	soak   *soak
	number int
	random *rand.Rand

	// Of the visit.
	arm   lab.Arm
	doing string
	began time.Time
	conn  *net.TCPConn
	r     *bufio.Reader
	slow  bool
	over  func() error // the context's Err
}

// soakVisits are the kinds of visits, and how often in proportion.
var soakVisits = []struct {
	name   string
	weight int
	run    func(*soakClient, context.Context) error
}{
	{"keep-alive", 8, (*soakClient).keepAlive},
	{"slow reader", 2, (*soakClient).slowReader},
	{"pipelined", 3, (*soakClient).pipelined},
	{"abort by RST", 2, func(c *soakClient, ctx context.Context) error { return c.abort(ctx, true) }},
	{"abort by FIN", 2, func(c *soakClient, ctx context.Context) error { return c.abort(ctx, false) }},
	{"half-close", 2, (*soakClient).halfClose},
}

// visit makes one visit over one connection. An error is a *SoakError, or the context's.
func (c *soakClient) visit(ctx context.Context) error {
	c.arm = soakArms[c.random.IntN(len(soakArms))]
	all := 0
	for _, v := range soakVisits {
		all += v.weight
	}
	n := c.random.IntN(all)
	for _, v := range soakVisits {
		if n -= v.weight; n >= 0 {
			continue
		}
		c.doing, c.slow, c.over = v.name, v.name == "slow reader", ctx.Err
		if err := c.dial(ctx); err != nil || c.conn == nil {
			return err
		}
		defer c.conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) }) // wakes whoever waits; the error is the deadline's
		defer stop()
		c.soak.count("visits: " + v.name)
		return v.run(c, ctx)
	}
	return nil
}

// dial connects. Without an error and without a connection the server is away, as it may be.
func (c *soakClient) dial(ctx context.Context) error {
	c.began, c.conn = time.Now(), nil
	d := &net.Dialer{Timeout: soakSilence}
	if c.slow {
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			const receiveBuffer = 32 << 10
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}), err)
		}
	}
	d.SetMultipathTCP(false)
	conn, err := c.soak.lab.Client.Dial(d, "tcp", c.soak.lab.Addr(c.arm))
	if err != nil {
		if (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)) && c.soak.mayBeCut(c.began) {
			c.soak.count("connections refused")
			return pause(ctx, 20*time.Millisecond)
		}
		return c.failure("dial", 0, err)
	}
	c.conn = conn.(*net.TCPConn)
	c.r = bufio.NewReaderSize(conn, 16<<10)
	return nil
}

func (c *soakClient) failure(file string, got int64, err error) error {
	return &SoakError{Client: c.number, Arm: c.arm, Doing: c.doing, File: file, Got: got, Err: err}
}

// any chooses a file, large ones less often.
func (c *soakClient) any() soakFile {
	files := c.soak.files
	i := c.random.IntN(len(files))
	return files[min(i, c.random.IntN(len(files)))]
}

// largest is a file that an abort finds unfinished.
func (c *soakClient) largest() soakFile {
	largest := c.soak.files[0]
	for _, f := range c.soak.files {
		if len(f.content) > len(largest.content) {
			largest = f
		}
	}
	return largest
}

// send writes requests for files in one piece. Without an error, sent tells whether the connection took them.
func (c *soakClient) send(files ...soakFile) (sent bool, err error) {
	if err := c.over(); err != nil {
		return false, err
	}
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: soak\r\n\r\n", f.target)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(soakSilence)); err != nil {
		return false, c.failure(files[0].target, 0, err)
	}
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return false, c.ended(files[0].target, 0, err)
	}
	return true, nil
}

// ended judges the end of a connection in the middle of something.
func (c *soakClient) ended(file string, got int64, err error) error {
	closed := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.failure(file, got, errHang)
	case !closed:
		return c.failure(file, got, err)
	case !c.soak.mayBeCut(c.began):
		return c.failure(file, got, fmt.Errorf("%w: %w", errCut, err))
	}
	c.soak.count("responses cut")
	return nil
}

// receive reads a response and compares its first limit bytes; whole is false, without an error, when it was cut as may be.
func (c *soakClient) receive(f soakFile, limit int) (whole bool, err error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(soakSilence)); err != nil {
		return false, c.failure(f.target, 0, err)
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: http.MethodGet})
	if err != nil {
		return false, c.ended(f.target, 0, err)
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(f.content)) {
		return false, c.failure(f.target, 0, fmt.Errorf("%w: %s, %d bytes", errStatus, resp.Status, resp.ContentLength))
	}
	want := f.content[:min(limit, len(f.content))]
	piece := 256 << 10
	if c.slow {
		piece = 8 << 10
	}
	buf := make([]byte, min(piece, len(want)))
	got := 0
	for got < len(want) {
		if c.slow {
			time.Sleep(time.Millisecond)
		}
		if err := c.over(); err != nil {
			return false, err
		}
		if err := c.conn.SetReadDeadline(time.Now().Add(soakSilence)); err != nil {
			return false, c.failure(f.target, int64(got), err)
		}
		n, err := c.r.Read(buf[:min(len(buf), len(want)-got)])
		if !bytes.Equal(buf[:n], want[got:got+n]) {
			return false, c.failure(f.target, int64(got), c.whose(buf[:n], want[got:got+n]))
		}
		got += n
		if err != nil && got < len(want) {
			return false, c.ended(f.target, int64(got), err)
		}
	}
	if len(want) == len(f.content) {
		c.soak.count("responses whole")
	}
	return true, nil
}

// whose tells where bytes come from that are not those that were wanted.
func (c *soakClient) whose(got, want []byte) error {
	at := 0
	for got[at] == want[at] {
		at++
	}
	rest := got[at:]
	for _, f := range c.soak.files {
		if i := bytes.Index(f.content, rest); i >= 0 {
			return fmt.Errorf("%w: %d bytes further on, %d are those of %s from byte %d on", errWrongBytes, at, len(rest), f.target, i)
		}
	}
	return fmt.Errorf("%w: %d bytes further on, %d are of no file: %q", errWrongBytes, at, len(rest), rest[:min(len(rest), 80)])
}

// keepAlive makes a few requests, one after the other.
func (c *soakClient) keepAlive(ctx context.Context) error {
	for range 1 + c.random.IntN(12) {
		f := c.any()
		if sent, err := c.send(f); !sent {
			return err
		}
		if whole, err := c.receive(f, len(f.content)); !whole {
			return err
		}
		if c.random.IntN(4) == 0 { // a player that has enough for now
			if err := pause(ctx, time.Duration(c.random.Int64N(int64(300*time.Millisecond)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// slowReader has the servers wait for it.
func (c *soakClient) slowReader(context.Context) error {
	for range 1 + c.random.IntN(2) {
		f := c.any()
		if sent, err := c.send(f); !sent {
			return err
		}
		if whole, err := c.receive(f, len(f.content)); !whole {
			return err
		}
	}
	return nil
}

// pipelined sends several requests before it reads the first response.
func (c *soakClient) pipelined(context.Context) error {
	for range 1 + c.random.IntN(3) {
		var files []soakFile
		for range 2 + c.random.IntN(5) {
			files = append(files, c.any())
		}
		if sent, err := c.send(files...); !sent {
			return err
		}
		for _, f := range files {
			if whole, err := c.receive(f, len(f.content)); !whole {
				return err
			}
		}
	}
	return nil
}

// abort leaves in the middle of a response; what came is right.
func (c *soakClient) abort(_ context.Context, reset bool) error {
	if c.random.IntN(2) == 0 {
		f := c.any()
		if sent, err := c.send(f); !sent {
			return err
		}
		if whole, err := c.receive(f, len(f.content)); !whole {
			return err
		}
	}
	f := c.largest()
	if sent, err := c.send(f); !sent {
		return err
	}
	if whole, err := c.receive(f, c.random.IntN(len(f.content)/2+1)); !whole {
		return err
	}
	if reset {
		return c.conn.SetLinger(0)
	}
	return nil
}

// halfClose ends its direction behind a request: the response comes all the same, and then the server's end.
func (c *soakClient) halfClose(context.Context) error {
	f := c.any()
	if sent, err := c.send(f); !sent {
		return err
	}
	if err := c.conn.CloseWrite(); err != nil {
		return c.ended(f.target, 0, errors.Join(err, io.EOF))
	}
	if whole, err := c.receive(f, len(f.content)); !whole {
		return err
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(soakSilence)); err != nil {
		return c.failure(f.target, int64(len(f.content)), err)
	}
	n, err := io.Copy(io.Discard, c.r)
	switch {
	case n > 0:
		return c.failure(f.target, int64(len(f.content)), fmt.Errorf("%w: %d bytes behind the response", errWrongBytes, n))
	case err != nil:
		return c.ended(f.target, int64(len(f.content)), err)
	}
	return nil
}

// fetchAll requests every file of the soak once.
func (c *soakClient) fetchAll(ctx context.Context, arm lab.Arm) error {
	c.arm, c.doing, c.over = arm, "last requests", ctx.Err
	if err := c.dial(ctx); err != nil {
		return err
	}
	if c.conn == nil {
		return c.failure("dial", 0, syscall.ECONNREFUSED)
	}
	defer c.conn.Close()
	for _, f := range c.soak.files {
		sent, err := c.send(f)
		whole := false
		if sent {
			whole, err = c.receive(f, len(f.content))
		}
		if err != nil {
			return err
		}
		if !whole {
			return c.failure(f.target, 0, errCut)
		}
	}
	return nil
}
