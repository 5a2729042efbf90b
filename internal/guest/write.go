package guest

import (
	"bytes"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// Write implements net.Conn. The head of a response is held back until its body comes, for at most headHold.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if len(c.head) > 0 {
		if err := c.writeHead(); err != nil {
			return 0, err
		}
	}
	if c.agent.policy.Mode != Off {
		if missing, ok := headBody(p); ok && c.wantsHead(missing) {
			c.holdHead(p)
			return len(p), nil
		}
	}
	return c.write(p)
}

// wantsHead tells whether a body of so many bytes may go through the host.
func (c *Conn) wantsHead(missing int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.failed != nil || c.outEnd || c.sendUntil.passed() {
		return false // the write itself meets the error
	}
	switch c.end.Phase() {
	case lease.Leased:
		return true
	case lease.Local, lease.Returning: // the body waits for RELEASED, and then it is local
		return c.agent.refusal(missing) == wire.ReasonOK
	}
	return false
}

// holdHead keeps a head for the body that follows. c.writing is held.
func (c *Conn) holdHead(p []byte) {
	c.head = bytes.Clone(p) // not kept for the next one: most connections are idle
	if c.headTimer == nil {
		c.headTimer = time.AfterFunc(headHold, c.flushHead)
	} else {
		c.headTimer.Reset(headHold)
	}
}

// takeHead returns the head that was held back, which is no longer. c.writing is held.
func (c *Conn) takeHead() []byte {
	head := c.head
	if len(head) > 0 {
		c.headTimer.Stop()
		c.head = nil
	}
	return head
}

// flushHead writes a head that waits in vain. A writer that is busy will do it. It does not wait for a client that takes nothing: what does not
// leave at once is written by a goroutine that nobody waits for, as the server was told that it is written.
func (c *Conn) flushHead() {
	c.flushing.Lock()
	defer c.flushing.Unlock()
	if !c.writing.TryLock() {
		return
	}
	head := c.takeHead()
	rest := head[c.writeNow(head):]
	if len(rest) == 0 {
		c.writing.Unlock()
		return
	}
	go func() {
		defer c.writing.Unlock()
		_, _ = c.write(rest) // the next write or read of the server meets the same error
	}()
}

// writeNow sends as much of p as the client's window and the buffers take, and returns how much. An error is left to who writes the rest.
// c.writing is held.
func (c *Conn) writeNow(p []byte) (n int) {
	if len(p) == 0 || c.settle() != nil {
		return 0
	}
	c.mu.Lock()
	local := c.end.Phase() == lease.Local
	c.mu.Unlock()
	if !local {
		n, _, _ = c.writeSome(p)
		return n
	}
	_ = c.raw.Write(func(fd uintptr) bool {
		n, _ = retryEINTR(func() (int, error) {
			return unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		return true
	})
	c.agent.stats.count(func(s *Counts) { s.LocalBytes += uint64(n) })
	return n
}

// writeHead writes the head that was held back. c.writing is held.
func (c *Conn) writeHead() error {
	head := c.takeHead()
	if len(head) == 0 {
		return nil
	}
	_, err := c.write(head)
	return err
}

// write sends p, wherever the connection is. c.writing is held.
func (c *Conn) write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.settle(); err != nil {
			return written, err
		}
		n, err, moved := c.writeSome(p[written:])
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
		if moved && n == 0 { // no credit, or a change of hands: wait for news
			if err := c.waitWritable(); err != nil {
				return written, err
			}
		}
	}
}

// writeSome sends what can be sent at once: all of p locally, or as much as the credit allows through the host.
func (c *Conn) writeSome(p []byte) (n int, err error, through bool) {
	c.mu.Lock()
	if c.end.Phase() == lease.Local {
		c.mu.Unlock() // nothing but ReadFrom, which needs c.writing, makes a local connection leave
		n, err = c.tcp.Write(p)
		c.agent.stats.count(func(s *Counts) { s.LocalBytes += uint64(n) })
		return n, err, false
	}
	defer c.mu.Unlock()
	if c.end.Phase() != lease.Leased || c.outEnd || c.closed || c.failed != nil {
		return 0, nil, true // settle has the error; after END or CLOSE another byte would be a breach
	}
	c.asked = time.Time{} // not by a file alone
	frame := frames.get()
	defer frames.put(frame)
	for n < len(p) && c.credit > 0 {
		part := p[n:min(len(p), n+min(c.credit, wire.MaxData))]
		var flags wire.Flags
		if n+len(part) < len(p) {
			flags = wire.FlagMore
		}
		*frame = wire.Append((*frame)[:0], c.session.ID, c.id, flags, wire.Data{Data: part})
		if err := c.session.Write(*frame); err != nil {
			return n, nil, true // the session's end will tell
		}
		c.credit -= len(part)
		c.dataSent += uint64(len(part))
		n += len(part)
	}
	c.agent.stats.count(func(s *Counts) { s.Relayed += uint64(n) })
	return n, nil, true
}

// settle waits until the connection is local or leased, and reports one that is over or takes no more bytes. c.writing is held.
func (c *Conn) settle() error {
	if err := c.lockSettled(); err != nil {
		return err
	}
	c.mu.Unlock()
	return nil
}

// lockSettled is settle, and holds c.mu unless it returns an error: a leased connection may leave at any time.
func (c *Conn) lockSettled() error {
	for {
		c.mu.Lock()
		phase := c.end.Phase()
		var err error
		switch {
		case c.closed:
			err = net.ErrClosed
		case c.failed != nil:
			err = c.failed
		case c.sendUntil.passed():
			err = os.ErrDeadlineExceeded
		case c.outEnd && phase == lease.Leased:
			err = os.NewSyscallError("write", unix.EPIPE)
		case phase == lease.Local || phase == lease.Leased:
			return nil
		}
		c.mu.Unlock()
		if err != nil {
			return c.opError("write", err)
		}
		c.poll(&c.agent.expects.changes, c.isSettled)
		if err := c.waitWritable(); err != nil {
			return err
		}
	}
}

// isSettled tells whether lockSettled need not wait.
func (c *Conn) isSettled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	phase := c.end.Phase()
	return c.closed || c.failed != nil || phase == lease.Local || phase == lease.Leased
}

// waitWritable waits for news or the write deadline.
func (c *Conn) waitWritable() error {
	select {
	case <-c.writable:
		return nil
	case <-c.sendUntil.wait():
		return c.opError("write", os.ErrDeadlineExceeded)
	}
}

// hostFile is what a range of a shared file looks like to ReadFrom; package mediafs has such files.
type hostFile interface {
	io.Seeker
	// HostFile names the file on the host and tells the read position, without touching the file.
	HostFile() (file wire.FileRef, offset int64, ok bool)
}

// ReadFrom implements io.ReaderFrom. A range of a host file, the *io.LimitedReader over it that io.CopyN makes, goes through the host where the
// policy, the kernel and the host allow; everything else is copied, with sendfile(2) where the connection is local.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if c.agent.policy.Mode == Off {
		return c.readFromLocal(r) // whatever it is: the connection never leaves
	}
	moves := c.agent.moveCount()
	n, done, err := c.readFromFile(r)
	if done || err != nil {
		return n, err
	}
	// A source that is no file may have nothing to say for a long time, in which others want to write.
	m, err := c.copyBody(r, moves)
	return n + m, err
}

// readFromFile sends r if it is a file. Otherwise, and when a part of it is left, done is false.
func (c *Conn) readFromFile(r io.Reader) (n int64, done bool, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.agent.moving() && isHostFile(r) && !isFile(r) {
		// It could not be read here meanwhile. The head waits for it, as nobody else writes: so it travels in the next host's first SEND.
		c.agent.awaitArrival(fileTimeout)
	}
	if n, done, err = c.sendRange(r); done || err != nil {
		return n, done, err
	}
	if err := c.writeHead(); err != nil {
		return n, false, err
	}
	if err := c.settle(); err != nil {
		return n, false, err
	}
	c.mu.Lock()
	local := c.end.Phase() == lease.Local
	c.mu.Unlock()
	if !local || !isFile(r) {
		return n, false, nil
	}
	m, err := c.readFromLocal(r) // nobody waits for a file, so c.writing may be held
	return n + m, true, err
}

// readFromLocal is ReadFrom of a connection that is local.
func (c *Conn) readFromLocal(r io.Reader) (int64, error) {
	n, err := c.tcp.ReadFrom(r)
	c.agent.stats.count(func(s *Counts) { s.LocalBytes += uint64(n) })
	return n, err
}

// isFile tells whether r is a regular file that the kernel can send, or a part of one.
func isFile(r io.Reader) bool {
	if limit, ok := r.(*io.LimitedReader); ok {
		r = limit.R
	}
	f, ok := r.(interface {
		syscall.Conn
		Stat() (fs.FileInfo, error)
	})
	if !ok {
		return false
	}
	if mounted, ok := r.(interface{ Here() bool }); ok { // asked only where it matters: a mount may be slow to tell
		return mounted.Here()
	}
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// writeTurn writes one piece of a body, when it is its turn.
func (c *Conn) writeTurn(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writeHead(); err != nil {
		return 0, err
	}
	return c.write(p)
}

// sendRange tries to send r through the host. done tells that all of it was sent; otherwise the caller sends the rest.
func (c *Conn) sendRange(r io.Reader) (n int64, done bool, err error) {
	limit, ok := r.(*io.LimitedReader)
	source := r
	if ok {
		source = limit.R
	}
	f, ok := source.(hostFile)
	if !ok {
		if limit == nil || limit.N > 0 {
			c.refuse(wire.ReasonNotHostFile)
		}
		return 0, false, nil
	}
	file, offset, ok := f.HostFile()
	if !ok {
		c.refuse(wire.ReasonNotHostFile)
		return 0, false, nil
	}
	count := max(file.Size-offset, 0)
	if limit != nil {
		count = min(count, limit.N)
	}
	if count <= 0 {
		return 0, false, nil
	}
	n, err = c.sendFile(wire.Send{File: file, Offset: offset, Count: count})
	if n > 0 {
		if limit != nil {
			limit.N -= n
		}
		if _, serr := f.Seek(offset+n, io.SeekStart); serr != nil && err == nil {
			err = serr
		}
	}
	return n, n == count, err
}

// refuse counts a range that is served locally.
func (c *Conn) refuse(reason wire.Reason) {
	if c.agent.policy.Mode != Off {
		c.agent.stats.fallback(reason)
	}
}

// writerFunc makes a function an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
