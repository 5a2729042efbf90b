package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"net"
	"os"
	"time"
)

const (
	// DefaultStallAfter is the silence within a request that counts as a stall: less than the smallest RTO of Linux (TCP_RTO_MIN
	// in include/net/tcp.h, 200 ms), more than a delayed ACK (TCP_DELACK_MIN, 40 ms).
	DefaultStallAfter = 150 * time.Millisecond

	// DefaultTimeout is the silence after which a request is given up.
	DefaultTimeout = 30 * time.Second

	// bufferBytes is ClientOptions.BufferBytes by default.
	bufferBytes = 256 << 10
)

// ClientOptions tunes a [Client]. The zero value means the defaults.
type ClientOptions struct {
	// Dial connects to the server; net.Dialer's when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// StallAfter is the silence within a request that counts as a stall.
	StallAfter time.Duration
	// Timeout is the silence after which a request fails with ErrStalled.
	Timeout time.Duration
	// BufferBytes is what one read can take. The header of a response must fit in, too.
	BufferBytes int
}

// Client asks for files over one keep-alive connection, one after the other. It dials when it has no connection: at first, after
// a response that closed it, and after an error. It is not safe for concurrent use.
type Client struct {
	addr  string
	opts  ClientOptions
	dials int

	conn       net.Conn // nil: dial
	buf        []byte
	begin, end int // the unread bytes in buf
	request    []byte
}

// NewClient returns a client of the server at addr (host:port). It dials later.
func NewClient(addr string, opts ClientOptions) *Client {
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	if opts.StallAfter <= 0 {
		opts.StallAfter = DefaultStallAfter
	}
	if opts.Timeout <= 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.BufferBytes <= 0 {
		opts.BufferBytes = bufferBytes
	}
	return &Client{addr: addr, opts: opts, buf: make([]byte, opts.BufferBytes)}
}

// Dials is how many connections the client has had.
func (c *Client) Dials() int { return c.dials }

// Close closes the connection, if there is one. The client may be used again.
func (c *Client) Close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn, c.begin, c.end = nil, 0, 0
	return err
}

// Result is what one request brought. It is filled as far as the request came, also when Get fails.
type Result struct {
	Status     int
	Bytes      int64             // of the body
	FirstByte  time.Duration     // from before the request was written to the response's first byte
	Elapsed    time.Duration     // from before the request was written to the body's last byte
	LongestGap time.Duration     // the longest wait for a byte
	Stalls     int               // waits longer than ClientOptions.StallAfter
	SHA256     [sha256.Size]byte // of the body, when it was asked for
}

// Get asks for target (an escaped path) and reads the response. Dialling is not part of the times. The SHA-256 is computed between
// reads, which slows a fast connection down: measure in one pass and verify in another.
//
// Every error is a *RequestError, and the connection is closed then. A status other than 200 is no error.
func (c *Client) Get(ctx context.Context, target string, withSHA256 bool) (Result, error) {
	if err := c.connect(ctx); err != nil {
		return Result{}, &RequestError{Target: target, Op: "dial", Err: err}
	}
	// A context that ends makes the pending read fail at once.
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	x := exchange{c: c, interrupted: ctx.Err}
	if withSHA256 {
		x.hash = sha256.New()
	}
	closing, err := x.run(target)
	late := !stop() // the context ended, too late: the deadline is spoilt
	if err != nil {
		c.Close()
		if ctxErr := ctx.Err(); ctxErr != nil {
			err = ctxErr
		}
		return x.result, &RequestError{Target: target, Op: x.op, Received: x.result.Bytes, Err: err}
	}
	if closing || late {
		c.Close()
	}
	return x.result, nil
}

func (c *Client) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	conn, err := c.opts.Dial(ctx, "tcp", c.addr)
	if err != nil {
		return err
	}
	c.conn = conn
	c.dials++
	return nil
}

// exchange is one request and its response.
type exchange struct {
	c           *Client
	interrupted func() error // the context's Err
	hash        hash.Hash    // nil: not wanted
	start       time.Time
	op          string // what is being done, for the error
	begun       bool   // the response's first byte is there
	result      Result
}

// run sends the request and reads the response; closing says that the server closes the connection behind it.
func (x *exchange) run(target string) (closing bool, err error) {
	c := x.c
	c.request = append(c.request[:0], "GET "...)
	c.request = append(c.request, target...)
	c.request = append(c.request, " HTTP/1.1\r\nHost: "...)
	c.request = append(c.request, c.addr...)
	c.request = append(c.request, "\r\n\r\n"...)

	x.op = "send request"
	x.start = time.Now()
	if err := c.conn.SetWriteDeadline(x.start.Add(c.opts.Timeout)); err != nil {
		return false, err
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return false, err
	}
	x.op = "read header"
	head, err := x.readHead()
	if err != nil {
		return false, err
	}
	x.result.Status = head.status
	x.op = "read body"
	if err := x.readBody(head.length); err != nil {
		return false, err
	}
	x.result.Elapsed = time.Since(x.start)
	if x.hash != nil {
		x.hash.Sum(x.result.SHA256[:0])
	}
	return head.closing, nil
}

// fill reads once, into the free end of the buffer, and watches the silence before.
func (x *exchange) fill() error {
	c := x.c
	if c.begin == c.end {
		c.begin, c.end = 0, 0
	}
	if c.end == len(c.buf) {
		return ErrHeaderTooLarge
	}
	asked := time.Now()
	if err := c.conn.SetReadDeadline(asked.Add(c.opts.Timeout)); err != nil {
		return err
	}
	// After the deadline: if the context ended before, this sees it; if it ends later, its deadline replaces ours.
	if err := x.interrupted(); err != nil {
		return err
	}
	n, err := c.conn.Read(c.buf[c.end:])
	now := time.Now()
	if gap := now.Sub(asked); n > 0 || err != nil {
		x.result.LongestGap = max(x.result.LongestGap, gap)
		if gap > c.opts.StallAfter {
			x.result.Stalls++
		}
	}
	if n > 0 && !x.begun {
		x.begun = true
		x.result.FirstByte = now.Sub(x.start)
	}
	c.end += n
	switch {
	case n > 0:
		return nil // an error comes again
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrStalled
	default:
		return err
	}
}

// readBody takes length bytes. The buffer is empty afterwards: a server that sends more has sent something wrong.
func (x *exchange) readBody(length int64) error {
	c := x.c
	for {
		got := c.buf[c.begin:c.end]
		c.begin, c.end = 0, 0
		if x.result.Bytes+int64(len(got)) > length {
			return ErrUnexpectedBytes
		}
		if x.hash != nil {
			x.hash.Write(got)
		}
		x.result.Bytes += int64(len(got))
		if x.result.Bytes == length {
			return nil
		}
		if err := x.fill(); err != nil {
			return shortBody(err, x.result.Bytes, length)
		}
	}
}
