package guest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/session"
	"spillway/internal/wire"
)

// longAgo is a deadline that wakes whoever is blocked.
var longAgo = time.Unix(1, 0)

// Conn is a client's connection that is local or leased (net.Conn, io.ReaderFrom, CloseWrite).
type Conn struct {
	agent         *Agent
	tcp           *net.TCPConn
	raw           syscall.RawConn
	local, remote netip.AddrPort

	flushing  sync.Mutex  // held by whoever flushes a head, so that Close waits for it
	writing   sync.Mutex  // held by the one writer: Write, ReadFrom, CloseWrite
	head      []byte      // guarded by writing: the head of a response that waits for its body
	headTimer *time.Timer // guarded by writing

	turn      turn
	readable  chan struct{} // capacity 1: something changed for the reader
	writable  chan struct{} // capacity 1: something changed for the writer
	readUntil deadline      // for the reader while the connection is not local
	sendUntil deadline      // for the writer, likewise

	mu           sync.Mutex
	end          lease.Guest
	socket       *socket          // end's
	link         *link            // of the lease, or the last one
	session      *session.Session // of the lease
	id           uint32           // of the lease
	began        time.Time        // the handover
	readDeadline time.Time        // as the server set it
	in           inbox
	early        int  // bytes at the beginning of in that are older than the lease: its window does not count them
	unCredited   int  // bytes that were read from in since the last CREDIT
	inEnd        bool // END: the client sends no more
	credit       int  // DATA bytes that may be sent
	dataSent     uint64
	outEnd       bool        // END sent, or the socket's writing side shut down
	sending      bool        // a SEND is under way
	sendCount    int64       // its bytes
	asked        time.Time   // the request's first byte; zero when it has been answered
	ordered      time.Time   // the SEND under way; zero for that of a handover
	results      chan result // what became of it
	closed       bool        // the server called Close
	resets       bool        // Close is to send a RST: SetLinger(0)
	aborted      bool        // the host was told to reset the connection
	offeredAt    time.Time   // HANDBACK
	takenAt      time.Time   // the answer to it
	kept         bool        // a handback of this lease was declined: what it took says nothing
	failed       error       // why the connection is over for the server
}

// result is news for the writer that waits for a SEND.
type result struct {
	kind    wire.Type   // TypeRefused, TypeSent, TypeHandback (recalled in the middle); 0: the connection is over
	reason  wire.Reason // of TypeRefused and TypeSent
	bytes   int64       // of TypeSent and TypeHandback
	started bool        // of TypeSent
}

func newConn(agent *Agent, tcp *net.TCPConn) (*Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &Conn{
		agent: agent, tcp: tcp, raw: raw,
		local: addrPort(tcp.LocalAddr()), remote: addrPort(tcp.RemoteAddr()),
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		readUntil: newDeadline(), sendUntil: newDeadline(),
		results: make(chan result, 2), // a SEND has at most two: its own, and that the connection is over
	}
	c.socket = &socket{raw: raw, local: c.local, freezer: agent.freezer, start: agent.start, stays: agent.policy.Mode == Lease}
	c.end.Socket = c.socket
	return c, nil
}

// addrPort is a TCP address with IPv4-mapped addresses of a dual-stack socket as IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.tcp.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.tcp.RemoteAddr() }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.flushHead()
	if len(p) == 0 {
		return 0, c.checkOpen("read")
	}
	woken := false
	for {
		n, err, local := c.readInbox(p)
		if waits := n == 0 && err == nil && !local; woken && !waits {
			c.wake() // the news may be for other readers too
			woken = false
		}
		if n > 0 || err != nil {
			return c.heard(n), err
		}
		if !local {
			c.poll(&c.agent.expects.requests, c.hasNews)
			select {
			case <-c.readable:
				woken = true
			case <-c.readUntil.wait():
			}
			continue
		}
		if n, err, moved := c.readLocal(p); !moved {
			return c.heard(n), err
		}
	}
}

// heard notes that the client has said n bytes, which it returns.
func (c *Conn) heard(n int) int {
	if n > 0 {
		c.turn.heard(c.agent.costs)
	}
	return n
}

// poll asks the host for what is expected instead of sleeping at once. c.mu is not held.
func (c *Conn) poll(e *session.Expectation, done func() bool) {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s != nil {
		s.Poll(e, done)
	}
}

// hasNews tells whether a reader need not wait.
func (c *Conn) hasNews() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in.len() > 0 || c.inEnd || c.closed || c.failed != nil || c.end.Phase() == lease.Local
}

// readInbox reads what has come through the host. Without that and without an error there is nothing to be had but from our own socket, if the
// connection is local.
func (c *Conn) readInbox(p []byte) (n int, err error, local bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return 0, c.opError("read", net.ErrClosed), false
	case c.readUntil.passed():
		return 0, c.opError("read", os.ErrDeadlineExceeded), false
	case c.in.len() > 0:
		n = c.in.take(p)
		c.giveCredit(n)
		if c.in.len() == 0 {
			_ = c.deadlineToSocket() // the read that meets it has the error
		}
		return n, nil, false
	case c.inEnd:
		return 0, io.EOF, false
	case c.failed != nil:
		return 0, c.opError("read", c.failed), false
	}
	return 0, nil, c.end.Phase() == lease.Local
}

// readLocal reads from the guest's own socket. moved tells that the connection went to the host meanwhile.
func (c *Conn) readLocal(p []byte) (n int, err error, moved bool) {
	perr := c.raw.Read(func(fd uintptr) bool {
		// Whoever holds c.mu may be closing the socket, which waits for us.
		if !c.mu.TryLock() {
			moved = true
			return true
		}
		defer c.mu.Unlock()
		// A handover that failed may have moved bytes to the inbox: they come first.
		if c.end.Phase() != lease.Local || c.in.len() > 0 {
			moved = true
			return true
		}
		n, err = retryEINTR(func() (int, error) { return unix.Read(int(fd), p) })
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case moved:
		return 0, nil, true
	case perr != nil:
		// A handover wakes the reader with a deadline of its own, and leaves it while the inbox has something to read (deadlineToSocket).
		if errors.Is(perr, os.ErrDeadlineExceeded) && !c.readUntil.passed() {
			return 0, nil, true
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed && c.failed != nil {
			perr = c.failed
		}
		return 0, c.opError("read", cause(perr)), false
	case err != nil:
		return 0, c.opError("read", os.NewSyscallError("read", err)), false
	case n == 0:
		return 0, io.EOF, false
	}
	return n, nil, false
}

// retryEINTR repeats a system call that a signal interrupted.
func retryEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// cause strips the *net.OpError that opError puts around it again.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// opError gives an error the form that net.TCPConn's have.
func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// checkOpen is the error of a call that does nothing else on a connection that the server has closed.
func (c *Conn) checkOpen(op string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError(op, net.ErrClosed)
	}
	return nil
}

// giveCredit lets the host send more of the client's bytes when half of the window has been read. c.mu is held.
func (c *Conn) giveCredit(n int) {
	early := min(n, c.early)
	c.early -= early
	n -= early
	if c.end.Phase() != lease.Leased {
		return
	}
	c.unCredited += n
	if c.unCredited >= int(c.session.Hello.Window)/2 {
		c.say(wire.Credit{Bytes: uint32(c.unCredited)}, 0)
		c.unCredited = 0
	}
}

// say sends one small frame of the lease. c.mu is held. An error is no news: the session's end tells.
func (c *Conn) say(m wire.Message, flags wire.Flags) {
	_ = c.session.Write(wire.Append(nil, c.session.ID, c.id, flags, m))
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.readDeadline = t
	c.readUntil.set(t)
	return c.deadlineToSocket()
}

// deadlineToSocket gives our own socket the server's read deadline while bytes are to be had from there. Otherwise it keeps the one in the past
// with which handover has woken its readers: they must not be lost to the netpoller. c.mu is held.
func (c *Conn) deadlineToSocket() error {
	if c.end.Phase() != lease.Local || c.in.len() > 0 {
		return nil
	}
	return c.tcp.SetReadDeadline(c.readDeadline)
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if err := c.checkOpen("set"); err != nil {
		return err
	}
	c.sendUntil.set(t)
	return c.tcp.SetWriteDeadline(t)
}

// Close implements net.Conn. Bytes that were written still reach the client. A file that is being sent is not sent to its end: the connection is
// reset, as it is after a write deadline.
func (c *Conn) Close() error {
	c.flushHead()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	defer c.wake()
	switch c.end.Phase() {
	case lease.Local:
		return c.tcp.Close()
	case lease.Leased:
		c.sayClose() // our socket stays, silent, until CLOSED
	}
	// Handing and Returning: what comes of it decides (event). Gone: closed already.
	return nil
}

// sayClose lets the host close the connection. c.mu is held.
func (c *Conn) sayClose() {
	if c.sending || c.resets {
		c.sayAbort()
		return
	}
	c.say(wire.Close{}, 0)
}

// sayAbort lets the host reset the connection. c.mu is held.
func (c *Conn) sayAbort() {
	c.aborted = true
	c.say(wire.Close{}, wire.FlagAbort)
}

// CloseWrite tells the client that no more bytes come, as (*net.TCPConn).CloseWrite: the write deadline does not matter to it.
func (c *Conn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	_ = c.writeHead() // fails when the write deadline has passed, or when the direction is closed, as a write of the server would
	for {
		c.mu.Lock()
		phase := c.end.Phase()
		switch {
		case c.closed:
			c.mu.Unlock()
			return c.opError("close", net.ErrClosed)
		case c.failed != nil:
			c.mu.Unlock()
			return c.opError("close", c.failed)
		case phase == lease.Local:
			defer c.mu.Unlock()
			c.outEnd = true
			return c.tcp.CloseWrite()
		case phase == lease.Leased:
			defer c.mu.Unlock()
			if !c.outEnd {
				c.outEnd = true
				c.say(wire.End{}, 0)
			}
			return nil
		}
		c.mu.Unlock()
		<-c.writable
	}
}

// wake makes reader and writer look again.
func (c *Conn) wake() {
	for _, w := range []chan struct{}{c.readable, c.writable} {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}
