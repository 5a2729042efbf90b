package e2e

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"spillway/internal/wire"
)

// tap is a channel between a server and the daemon that sees each frame pass.
type tap struct {
	t        *testing.T
	listener net.Listener
	target   string // the daemon's socket
	working  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // of the connection that is open
	frame seen
}

// seen is called with each frame before it is passed on; what it returns is called behind it. The frames of one direction come one after the other.
type seen func(fromGuest bool, typ wire.Type) (behind func())

// newTap listens at socket. It closes when the test ends.
func newTap(t *testing.T, socket, target string) *tap {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	p := &tap{t: t, listener: l, target: target, frame: func(bool, wire.Type) func() { return nil }}
	p.working.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.working.Wait()
	})
	return p
}

func (p *tap) accept() {
	for {
		guest, err := p.listener.Accept()
		if err != nil {
			return
		}
		host, err := net.Dial("unix", p.target)
		if err != nil { // the daemon is away, which the server sees like this
			guest.Close()
			continue
		}
		p.cut()
		p.mu.Lock()
		p.conns = []net.Conn{guest, host}
		p.mu.Unlock()
		p.working.Go(func() { p.pass(guest, host, true) })
		p.working.Go(func() { p.pass(host, guest, false) })
	}
}

// cut ends the connection that is open. The server comes again by itself.
func (p *tap) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// watch sets what is called with each frame.
func (p *tap) watch(frame seen) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frame = frame
}

// pass copies frames until one end closes, which closes the other.
func (p *tap) pass(from, to net.Conn, fromGuest bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, wire.HeaderSize+wire.MaxPayload)
	for {
		if _, err := io.ReadFull(from, buf[:wire.HeaderSize]); err != nil {
			return
		}
		length := binary.LittleEndian.Uint32(buf)
		if length > wire.MaxPayload {
			p.t.Errorf("a frame of %d bytes", length)
			return
		}
		frame := buf[:wire.HeaderSize+length]
		if _, err := io.ReadFull(from, frame[wire.HeaderSize:]); err != nil {
			return
		}
		p.mu.Lock()
		see := p.frame
		p.mu.Unlock()
		behind := see(fromGuest, wire.Type(frame[4]))
		if _, err := to.Write(frame); err != nil {
			return
		}
		if behind != nil {
			behind()
		}
	}
}
