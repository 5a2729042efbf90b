package e2e

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// rogue is a guest that speaks the protocol by hand. An arm's channel belongs to whoever has connected last.
type rogue struct {
	t       *testing.T
	conn    net.Conn
	frames  *wire.Reader
	session uint32
}

// newRogue takes the place of an arm's server, which must be dead, and agrees a session.
func newRogue(t *testing.T, l *lab.Lab, arm lab.Arm) *rogue {
	t.Helper()
	conn, err := net.Dial("unix", channelSocket(l, arm))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &rogue{t: t, conn: conn, frames: wire.NewGuestReader(conn)}
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	r.write(wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version}))
	header, _, err := r.frames.Sync()
	must(t, err)
	r.session = header.Session
	r.write(wire.Append(nil, r.session, 0, 0, wire.Ready{Version: wire.Version}))
	return r
}

func (r *rogue) write(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatalf("write to the channel: %v", err)
	}
}

// say sends one frame of the session.
func say[M wire.Message](r *rogue, id uint32, flags wire.Flags, m M) {
	r.t.Helper()
	r.write(wire.Append(nil, r.session, id, flags, m))
}

// next returns the next frame that is not the session's own, or an error when the session is over.
func (r *rogue) next() (wire.Header, wire.Message, error) {
	for {
		header, payload, err := r.frames.Next()
		if err != nil {
			return header, nil, err
		}
		if header.Session != r.session {
			return header, nil, errSessionOver
		}
		switch header.Type {
		case wire.TypeHello, wire.TypePong:
			continue
		case wire.TypePing:
			say(r, 0, 0, wire.Pong{})
			continue
		}
		m, err := wire.Parse(header.Type, payload)
		return header, m, err
	}
}

var errSessionOver = errors.New("the host has offered a new session")

// answer waits for a frame of the given id and returns its message.
func (r *rogue) answer(id uint32) wire.Message {
	r.t.Helper()
	for {
		header, m, err := r.next()
		if err != nil {
			r.t.Fatalf("no answer for id %d: %v", id, err)
		}
		if header.ID == id {
			return m
		}
	}
}

// expectEnd waits for the end of the session.
func (r *rogue) expectEnd(after string) {
	r.t.Helper()
	for {
		_, _, err := r.next()
		switch {
		case err == nil: // what crossed with the end
		case errors.Is(err, errSessionOver), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return
		default:
			r.t.Fatalf("%s: %v; want the host to end the session", after, err)
		}
	}
}

func (r *rogue) close() { r.conn.Close() }

// forged is a connection that exists in the mind of a guest only. The remote address is nobody's, so that nobody resets it.
func forged(local netip.AddrPort, port uint16) tcpstate.State {
	const sequence, window = 1_000_000, 1 << 20
	remote := netip.MustParseAddr("10.88.0.77")
	if local.Addr().Is6() {
		remote = netip.MustParseAddr("fd88::77")
	}
	return tcpstate.State{
		Local: local, Remote: netip.AddrPortFrom(remote, port),
		SendSeq: sequence, RecvSeq: sequence, MSS: 1448, Options: tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale,
		SendWScale: 10, RecvWScale: 10, Timestamp: 1000,
		Window:  tcpstate.Window{SndWl1: sequence, SndWnd: window, MaxWindow: window, RcvWnd: window, RcvWup: sequence},
		NoDelay: true,
	}
}

// fileRef is how a guest refers to a file of the share.
func fileRef(t *testing.T, files *media, name string) wire.FileRef {
	t.Helper()
	info, err := os.Stat(files.dir + "/" + name)
	must(t, err)
	return wire.FileRef{Share: "media", Path: name, Size: info.Size(), MTime: info.ModTime().UnixNano()}
}

// flood writes frames that make returns until there were count of them, joining each session that the host offers meanwhile. With read false it
// takes nothing from the channel.
func flood(t *testing.T, l *lab.Lab, arm lab.Arm, count int, read bool, frame func(session, i uint32) []byte) {
	t.Helper()
	r := newRogue(t, l, arm)
	var session atomic.Uint32
	session.Store(r.session)
	gone := make(chan struct{})
	if read {
		go func() {
			defer close(gone)
			for {
				header, _, err := r.frames.Next()
				if err != nil {
					return
				}
				if header.Session != session.Load() {
					session.Store(header.Session)
					_, _ = r.conn.Write(wire.Append(nil, header.Session, 0, 0, wire.Ready{Version: wire.Version})) // the next write fails too
				}
			}
		}()
	} else {
		close(gone)
	}
	const batch = 500
	var buf []byte
	for i := 0; i < count; i += batch {
		buf = buf[:0]
		for j := range batch {
			buf = append(buf, frame(session.Load(), uint32(i+j))...)
		}
		must(t, r.conn.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		if _, err := r.conn.Write(buf); err != nil {
			// The host has closed the channel, or takes nothing from one that takes nothing from it: begin again.
			r.close()
			<-gone
			flood(t, l, arm, count-i-batch, read, frame)
			return
		}
	}
	r.close()
	<-gone
}
