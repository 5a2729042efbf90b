package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/wire"
)

// point is a place in the protocol: the first frame of a type from one side.
type point struct {
	fromGuest bool
	typ       wire.Type
}

func (p point) String() string {
	if p.fromGuest {
		return "guest's " + p.typ.String()
	}
	return "host's " + p.typ.String()
}

// points that the story of TestEveryStep must pass, so that none is left out unnoticed.
var points = []point{
	{true, wire.TypeHandover}, {true, wire.TypeSend}, {true, wire.TypeData}, {true, wire.TypeCredit}, {true, wire.TypeTaken}, {true, wire.TypeClose},
	{false, wire.TypeGranted}, {false, wire.TypeSent}, {false, wire.TypeData}, {false, wire.TypeHandback}, {false, wire.TypeReleased}, {false, wire.TypeClosed},
}

// story is a lab with one client whose connection goes through everything.
type story struct {
	t      *testing.T
	lab    *lab.Lab
	files  *media
	tap    *tap
	server *ownServer
	socket string // the tap's

	mu     sync.Mutex
	client *client
}

// faults are what can happen at a point.
func (s *story) faults() map[string]func() {
	return map[string]func(){
		"daemon killed": func() { stopHost(s.t, s.lab, syscall.SIGKILL) },
		"server killed": func() { s.server.stop(syscall.SIGKILL) },
		"channel cut":   s.tap.cut,
		"channel stuck": func() { time.Sleep(300 * time.Millisecond) },
		"client resets": func() { s.onClient(func(c *client) { _ = c.SetLinger(0); _ = c.Close() }) },
		"client ends":   func() { s.onClient(func(c *client) { _ = c.CloseWrite() }) },
	}
}

func (s *story) onClient(f func(c *client)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.client)
}

// tell runs the story: handover, leased responses, a recall in the middle of a file, another handover, an upload, the end. It returns whether all
// of it happened; otherwise the connection was closed at some point. Wrong bytes and hangs are errors.
func (s *story) tell() bool {
	c := dial(s.t, s.lab, lab.Lease, receiveBuffer(smallBuffer))
	c.patience = hangLimit
	s.mu.Lock()
	s.client = c
	s.mu.Unlock()
	defer c.Close()
	const small, large = "4k.m4s", "10m.mp4"
	upload := strings.Repeat("upload ", 8000)
	for _, step := range []func() error{
		func() error { return s.get(c, "tablet/1 (1).m4s", nil) },
		func() error { return s.get(c, small, nil) },
		func() error { return s.get(c, large, func() { recall(s.t, s.lab) }) },
		func() error { return s.get(c, large, nil) },
		func() error { return s.post(c, small, upload) },
	} {
		if err := step(); err != nil {
			if !closedByPeer(err) && !errors.Is(err, net.ErrClosed) {
				s.t.Errorf("%v; want an answer or a closed connection within %v", err, hangLimit)
			}
			return false
		}
	}
	return true
}

// get asks for a file. In the middle of it it calls between, if there is one.
func (s *story) get(c *client, name string, between func()) error {
	want := s.files.files[name]
	if _, err := io.WriteString(c.TCPConn, c.request(http.MethodGet, name)); err != nil {
		return err
	}
	resp, err := c.header(http.MethodGet)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) {
		return fmt.Errorf("%s: %+v", name, resp)
	}
	got := 0
	if between != nil {
		if got, err = c.compare(want[:readSome], hangLimit); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		between()
	}
	if _, err = c.compare(want[got:], hangLimit); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// post sends a body that the server does not want.
func (s *story) post(c *client, name, body string) error {
	_, err := fmt.Fprintf(c.TCPConn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target(name), c.addr, len(body), body)
	if err != nil {
		return err
	}
	resp, err := c.header(http.MethodPost)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusMethodNotAllowed || len(bytes.TrimSpace(answer)) == 0) {
		err = fmt.Errorf("POST: %+v %q", resp, answer)
	}
	return err
}

// mend starts what a fault has ended, and waits until leases are given again and none is left over.
func (s *story) mend(fault string) {
	s.t.Helper()
	s.tap.watch(func(bool, wire.Type) func() { return nil })
	switch fault {
	case "daemon killed":
		must(s.t, s.lab.StartHost())
	case "server killed":
		s.server = startOwnServer(s.t, s.lab, lab.Lease, s.socket, s.files.dir)
	}
	waitArm(s.t, s.lab, lab.Lease)
	before := serverStats(s.t, s.lab, lab.Lease).Counts.Sends
	eventually(s.t, "leases are given again", func() bool {
		const name = "64k.m4s"
		fetch(s.t, s.lab, lab.Lease, name, s.files.files[name])
		return serverStats(s.t, s.lab, lab.Lease).Counts.Sends > before
	})
	eventually(s.t, "no lease is left", func() bool {
		return hostStatus(s.t, s.lab).Leases == 0 && serverStats(s.t, s.lab, lab.Lease).Leases == 0
	})
}

// TestEveryStep: whatever dies, and in whatever step of the protocol, before a frame or behind it: the client has right bytes, an answer or a closed
// connection, and the next one is served as ever.
func TestEveryStep(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	killServer(t, l, lab.Lease)
	s := &story{t: t, lab: l, files: files, socket: filepath.Join(t.TempDir(), "tap.sock")}
	s.tap = newTap(t, s.socket, channelSocket(l, lab.Lease))
	s.server = startOwnServer(t, l, lab.Lease, s.socket, files.dir)
	defer func() { s.server.stop(syscall.SIGTERM) }()
	s.mend("")

	var mu sync.Mutex
	passed := map[point]bool{}
	s.tap.watch(func(fromGuest bool, typ wire.Type) func() {
		mu.Lock()
		defer mu.Unlock()
		passed[point{fromGuest, typ}] = true
		return nil
	})
	if !s.tell() {
		t.Fatal("the story does not come to its end without a fault")
	}
	for _, p := range points {
		eventually(t, "the story has the "+p.String(), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return passed[p]
		})
	}
	s.mend("")
	for _, p := range points {
		for fault := range s.faults() {
			for _, place := range []string{"before", "behind"} {
				t.Run(fmt.Sprintf("%s %s the %v", fault, place, p), func(t *testing.T) { s.at(t, p, fault, place == "behind") })
			}
		}
	}
	checkRedirect(t, l)
}

// at tells the story with a fault.
func (s *story) at(t *testing.T, p point, fault string, behind bool) {
	outer := s.t
	s.t, s.server.t = t, t
	defer func() { s.t, s.server.t = outer, outer }()
	var once sync.Once
	happened := make(chan struct{})
	happen := func() {
		once.Do(func() {
			s.faults()[fault]()
			close(happened)
		})
	}
	s.tap.watch(func(fromGuest bool, typ wire.Type) func() {
		if fromGuest != p.fromGuest || typ != p.typ {
			return nil
		}
		if behind {
			return happen
		}
		happen()
		return nil
	})
	whole := s.tell()
	for tries := 1; ; tries++ {
		select {
		case <-happened:
		case <-time.After(time.Second):
			if tries < 5 { // a response may have found a reason to stay local
				whole = s.tell()
				continue
			}
			t.Errorf("the %v did not come", p)
		}
		break
	}
	if !whole && fault == "channel stuck" {
		t.Error("a channel that was slow for a moment cost the client its connection")
	}
	s.mend(fault)
}
