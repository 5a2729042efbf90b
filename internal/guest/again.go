package guest

import (
	"io"
	"time"

	"spillway/internal/tcprepair"
)

// againAfter is how many bytes of a body the guest sends by itself before it looks whether the VM has arrived at a host that can take the rest. After each time that its client had
// not acknowledged everything in time, it is twice as much, up to againMax.
const (
	againAfter = 64 << 10
	againMax   = 16 << 20
)

// Pauses of awaitAcked, and its end: longer than a queue on a way to a client should be.
const (
	ackedPause = 500 * time.Microsecond
	ackedLimit = 200 * time.Millisecond
)

// copyBody sends r by the guest's own means. When the VM has moved since the response began (moves of them had been before), the host that it has come to gets the
// rest of it: a response may be as long as a film.
func (c *Conn) copyBody(r io.Reader, moves uint64) (n int64, err error) {
	if !isHostFile(r) {
		return io.Copy(writerFunc(c.writeTurn), r)
	}
	buf, piece := make([]byte, againAfter), int64(againAfter)
	for {
		c.agent.awaitArrival(fileTimeout) // reading would wait for it, too
		if now := c.agent.moveCount(); now != moves {
			if c.awaitAcked() {
				moves = now
				m, done, err := c.readFromFile(r)
				n += m
				if done || err != nil {
					return n, err
				}
			} else {
				piece = min(2*piece, againMax)
			}
		}
		m, err := io.CopyBuffer(writerFunc(c.writeTurn), io.LimitReader(r, piece), buf)
		n += m
		if err != nil || m < piece {
			return n, err
		}
	}
}

// isHostFile tells whether r is a file of the host's, or a part of one.
func isHostFile(r io.Reader) bool {
	if limit, ok := r.(*io.LimitedReader); ok {
		r = limit.R
	}
	_, ok := r.(hostFile)
	return ok
}

// awaitAcked waits until the client has acknowledged everything, without which no connection changes hands.
func (c *Conn) awaitAcked() bool {
	for limit := time.Now().Add(ackedLimit); time.Now().Before(limit); time.Sleep(ackedPause) {
		unacked := 0
		var err error
		if cerr := c.raw.Control(func(fd uintptr) { unacked, err = tcprepair.UnackedBytes(int(fd)) }); cerr != nil || err != nil {
			return false
		}
		if unacked == 0 {
			return true
		}
	}
	return false
}

// moveCount is how often this VM has arrived at a host after a move.
func (a *Agent) moveCount() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.moves
}
