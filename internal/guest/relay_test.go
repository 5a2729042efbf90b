package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/redirect"
	"spillway/internal/session"
	"spillway/internal/tcprepair"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// relay is a host that really takes connections over, in a namespace between client and guest. It is the host daemon with everything left out that
// a guest cannot see: no limits, no sendfile, and it gives nothing back.
type relay struct {
	tb      testing.TB
	ns      *testkit.Namespace
	freezer *tcprepair.Freezer
	session *session.Session
	files   map[string][]byte
	running sync.WaitGroup

	mu      sync.Mutex
	leases  map[uint32]*relayed
	referee referee
	maximum int // DATA bytes that have waited for a client at most
}

// relayed is one lease.
type relayed struct {
	relay *relay
	id    uint32
	conn  *net.TCPConn

	mu     sync.Mutex
	change sync.Cond
	work   []recorded
	credit int // DATA bytes that may be sent to the guest
	ended  bool
	queued int // DATA bytes in work
}

// newRelay makes a rig in three namespaces, whose host is a relay for the files of the map.
func newRelay(tb testing.TB, policy Policy, files map[string][]byte) (*rig, *relay) {
	tb.Helper()
	testkit.CheckFDs(tb)
	n := testkit.Triple(tb)
	h := &relay{tb: tb, ns: n.Host, files: files, leases: map[uint32]*relayed{}, referee: referee{}}
	n.Host.Must(tb, func() error {
		installed, err := redirect.Install(redirect.Config{})
		if err == nil {
			tb.Cleanup(func() {
				if err := installed.Remove(); err != nil {
					tb.Errorf("remove the redirect: %v", err)
				}
			})
		}
		return err
	})
	var err error
	if h.freezer, err = tcprepair.NewFreezer(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { h.freezer.Close() })
	r := &rig{tb: tb}
	r.start(n.Guest, ":0", policy)
	r.dial = func() *net.TCPConn { return r.dialFrom(n.Client, "", testkit.Guest4) }
	tb.Cleanup(h.running.Wait)
	r.channelTo(func(s *session.Session) session.Handler {
		h.session = s
		return h
	})
	return r, h
}

// End implements session.Handler: what is under way is finished.
func (h *relay) End(error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.leases {
		l.add(recorded{message: wire.Close{}})
	}
}

// Frame implements session.Handler.
func (h *relay) Frame(head wire.Header, payload []byte) error {
	m, err := wire.Parse(head.Type, bytes.Clone(payload))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.referee.guestSays(head, m); err != nil {
		h.tb.Error(err)
		return err
	}
	if m, ok := m.(wire.Handover); ok {
		return h.take(head.ID, m)
	}
	l := h.leases[head.ID]
	if l == nil {
		return nil
	}
	if m, ok := m.(wire.Credit); ok {
		l.mu.Lock()
		l.credit += int(m.Bytes)
		l.change.Broadcast()
		l.mu.Unlock()
		return nil
	}
	l.add(recorded{head, m})
	if d, ok := m.(wire.Data); ok {
		l.mu.Lock()
		l.queued += len(d.Data)
		h.maximum = max(h.maximum, l.queued)
		l.mu.Unlock()
	}
	return nil
}

// take restores a connection. h.mu is held.
func (h *relay) take(id uint32, m wire.Handover) error {
	var fd int
	err := h.ns.Do(func() (err error) {
		fd, err = h.freezer.NewTransparent(unix.AF_INET)
		return err
	})
	if err == nil {
		m.State.NoDelay = true
		err = tcprepair.Restore(fd, &m.State)
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	f := os.NewFile(uintptr(fd), "leased")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	l := &relayed{relay: h, id: id, conn: conn.(*net.TCPConn), credit: testWindow}
	l.change.L = &l.mu
	h.leases[id] = l
	h.running.Go(l.send)
	h.running.Go(l.receive)
	return h.session.Write(wire.Append(nil, h.session.ID, id, 0, wire.Granted{}))
}

func (l *relayed) add(r recorded) {
	l.mu.Lock()
	l.work = append(l.work, r)
	l.change.Broadcast()
	l.mu.Unlock()
}

func (l *relayed) say(flags wire.Flags, m wire.Message) {
	l.relay.mu.Lock()
	l.relay.referee.hostSays(l.id, m)
	l.relay.mu.Unlock()
	_ = l.relay.session.Write(wire.Append(nil, l.relay.session.ID, l.id, flags, m))
}

// send does what the guest says, in order.
func (l *relayed) send() {
	reason := wire.ReasonClosed
	for {
		l.mu.Lock()
		for len(l.work) == 0 {
			l.change.Wait()
		}
		r := l.work[0]
		l.work = l.work[1:]
		l.mu.Unlock()
		var err error
		switch m := r.message.(type) {
		case wire.Data:
			_, err = l.conn.Write(m.Data)
			l.mu.Lock()
			l.queued -= len(m.Data)
			l.mu.Unlock()
			l.say(0, wire.Credit{Bytes: uint32(len(m.Data))})
		case wire.Send:
			content, ok := l.relay.files[m.File.Path]
			if !ok {
				l.say(0, wire.Sent{Reason: wire.ReasonNotFound})
				continue
			}
			_, err = l.conn.Write(append(m.Header, content[m.Offset:m.Offset+m.Count]...))
			l.say(wire.FlagStarted, wire.Sent{Bytes: m.Count})
		case wire.End:
			err = l.conn.CloseWrite()
		case wire.Close:
			if r.head.Flags&wire.FlagAbort != 0 {
				_ = l.conn.SetLinger(0)
			}
			err = io.EOF
		}
		if err == nil {
			continue
		}
		if err != io.EOF {
			reason = wire.ReasonClientGone
		}
		l.mu.Lock()
		l.ended = true
		l.change.Broadcast()
		l.mu.Unlock()
		l.conn.Close()
		l.relay.mu.Lock()
		delete(l.relay.leases, l.id)
		l.relay.mu.Unlock()
		l.say(0, wire.Closed{Reason: reason})
		return
	}
}

// receive passes on what the client says.
func (l *relayed) receive() {
	buf := make([]byte, wire.MaxData)
	for {
		l.mu.Lock()
		for l.credit == 0 && !l.ended {
			l.change.Wait()
		}
		limit := min(l.credit, len(buf))
		ended := l.ended
		l.mu.Unlock()
		if ended {
			return
		}
		n, err := l.conn.Read(buf[:limit])
		if n > 0 {
			l.mu.Lock()
			l.credit -= n
			l.mu.Unlock()
			l.say(0, wire.Data{Data: buf[:n]})
		}
		switch {
		case err == io.EOF:
			l.say(0, wire.End{})
			return
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.add(recorded{message: wire.Close{}})
			return
		}
	}
}

// leasedPair is a connection that the relay has, with no byte under way.
func (r *rig) leasedPair() (client *net.TCPConn, server *Conn) {
	r.tb.Helper()
	client, server = r.connect()
	done := send(server, header(1), &file{bytes.NewReader([]byte("x")), wire.FileRef{Share: "media", Path: "one", Size: 1, MTime: 1}})
	if _, err := io.ReadFull(client, make([]byte, len(header(1))+1)); err != nil {
		r.tb.Fatal(err)
	}
	await(r.tb, done, 1, nil)
	return client, server
}
