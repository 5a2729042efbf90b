package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

// phases of a connection, and how a test gets there. In the first response is under way until leased.
var phases = []struct {
	name  string
	phase lease.Phase
	reach func(h *handing)
}{
	{"handing", lease.Handing, func(*handing) {}},
	{"sending", lease.Leased, func(h *handing) { h.say(h.id, 0, wire.Granted{}) }},
	{"idle", lease.Leased, func(h *handing) { h.say(h.id, 0, wire.Granted{}); h.sent() }},
	{"returning", lease.Returning, func(h *handing) {
		h.say(h.id, 0, wire.Granted{})
		h.sent()
		h.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
		hear[wire.Taken](h.script)
	}},
}

// atPhase runs f in each phase but local, with a Read that is blocked since before the handover.
func atPhase(t *testing.T, f func(t *testing.T, h *handing, phase lease.Phase, read <-chan error)) {
	for _, p := range phases {
		t.Run(p.name, func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			h := &handing{script: s, tb: t, rig: r}
			h.client, h.server = r.connect()
			read := make(chan error, 1)
			go func() {
				_, err := h.server.Read(make([]byte, 1))
				read <- err
			}()
			h.begin()
			p.reach(h)
			r.eventually(p.name, func() bool { return h.server.phase() == p.phase })
			f(t, h, p.phase, read)
		})
	}
}

func (h *handing) sends() bool { // whether the first response is under way
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	return h.server.sending
}

// TestSessionLost: everything that waits returns, the guest's socket is gone, and the client of a connection whose owner nobody can know is reset.
func TestSessionLost(t *testing.T) {
	atPhase(t, func(t *testing.T, h *handing, phase lease.Phase, read <-chan error) {
		sends := h.sends()
		h.stop()
		if sends {
			select {
			case got := <-h.done:
				if got.err == nil || got.n != 0 {
					t.Errorf("ReadFrom = %d, %v", got.n, got.err)
				}
			case <-time.After(patience):
				t.Fatal("ReadFrom does not return")
			}
		}
		select {
		case err := <-read:
			if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
				t.Errorf("Read says %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Read does not return")
		}
		if _, err := h.server.Write([]byte("x")); err == nil {
			t.Error("Write reports no error")
		}
		if err := h.server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if phase != lease.Leased {
			// Of a tail the client has all but the withheld byte by then.
			_ = h.client.SetReadDeadline(time.Now().Add(patience))
			if got, err := io.ReadAll(h.client); !errors.Is(err, unix.ECONNRESET) || !strings.HasPrefix("tai", string(got)) {
				t.Errorf("the client reads %q, %v, want a reset", got, err)
			}
		} else {
			_ = h.client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := h.client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client reads %v, but the connection is the host's", err)
			}
		}
		if c := h.rig.agent.Snapshot().Counts; c.Lost != 1 {
			t.Errorf("counts are %+v", c)
		}
		// The next connection is served without the host.
		_, server := h.rig.connect()
		f, _ := newFile(1000)
		await(t, send(server, header(1000), f), 1000, nil)
	})
}

// TestSessionLostLocal: a local connection does not notice.
func TestSessionLostLocal(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	client, server := r.connect()
	s.stop()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("Read = %d, %v", n, err)
	}
	// And it can be leased in the next session.
	s = r.script()
	h := &handing{script: s, tb: t, rig: r, client: client, server: server}
	h.begin()
	s.say(h.id, 0, wire.Granted{})
	h.sent()
	h.over(wire.ReasonClientGone)
}

// TestClose: Close returns at once and wakes everybody, whatever the phase; the host hears CLOSE once, when it owns the connection, and with ABORT if a
// file is under way, of which no more is to be sent.
func TestClose(t *testing.T) {
	atPhase(t, func(t *testing.T, h *handing, phase lease.Phase, read <-chan error) {
		sends := h.sends()
		if err := h.server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := h.server.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second Close: %v", err)
		}
		select {
		case err := <-read:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read says %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Read does not return")
		}
		if sends {
			await(t, h.done, 0, net.ErrClosed)
		}
		switch phase {
		case lease.Handing:
			h.say(h.id, 0, wire.Granted{})
			h.hearClose(wire.FlagAbort)
			h.over(wire.ReasonClosed)
		case lease.Leased:
			want := wire.Flags(0)
			if sends {
				want = wire.FlagAbort
			}
			h.hearClose(want)
			if sends { // it may have been sent already
				h.say(h.id, wire.FlagStarted, wire.Sent{Bytes: bodySize})
			}
			h.over(wire.ReasonClosed)
		case lease.Returning:
			h.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
			got, err := io.ReadAll(h.client)
			if want := map[bool]string{true: "tail", false: ""}[sends]; string(got) != want || err != nil {
				t.Errorf("the client reads %q, %v, want %q and the end", got, err, want)
			}
		}
		h.rig.eventually("nothing is leased", func() bool { return h.rig.agent.Snapshot().Leases == 0 })
		h.silent()
		h.lives()
	})
}

func (h *handing) hearClose(want wire.Flags) {
	h.tb.Helper()
	if _, head := hear[wire.Close](h.script); head.Flags != want {
		h.tb.Errorf("CLOSE has the flags %v, want %v", head.Flags, want)
	}
}

// TestCloseRefused: a server that closes while a handover is under way that the host then refuses.
func TestCloseRefused(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.handOver(s)
	if err := h.server.Close(); err != nil {
		t.Error(err)
	}
	await(t, h.done, 0, net.ErrClosed)
	h.say(h.id, 0, wire.Refused{Reason: wire.ReasonLimit})
	if got, err := io.ReadAll(h.client); len(got) != 0 || err != nil {
		t.Errorf("the client reads %d bytes, %v", len(got), err)
	}
	s.lives()
}

// TestCloseWrite: END instead of a FIN, once; reading goes on.
func TestCloseWrite(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.leased(s)
	if err := h.server.CloseWrite(); err != nil {
		t.Error(err)
	}
	hear[wire.End](s)
	for name, call := range map[string]func() error{
		"Write":    func() error { _, err := h.server.Write([]byte("x")); return err },
		"head":     func() error { _, err := h.server.Write([]byte(header(bodySize))); return err },
		"ReadFrom": func() error { _, err := h.server.ReadFrom(openFile(h.body)); return err },
	} {
		if err := call(); !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s after CloseWrite says %v", name, err)
		}
	}
	h.say(h.id, 0, wire.Data{Data: []byte("hello")})
	h.serverReads("hello")
	h.server.Close()
	hear[wire.Close](s)
	h.over(wire.ReasonClosed)
	s.silent()
	s.lives()
}

// TestAbortRead is what net/http does around each handler: a Read in the background, that a deadline in the past ends, and no deadline again. It
// must neither hang nor lose a byte, in whatever phase, and while the phase changes.
func TestAbortRead(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	aborts := make(chan struct{})
	stopped := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-aborts:
				stopped <- n
				return
			default:
			}
			done := make(chan error, 1)
			go func() {
				_, err := h.server.Read(make([]byte, 1))
				done <- err
			}()
			if n%3 == 0 {
				time.Sleep(100 * time.Microsecond)
			}
			_ = h.server.SetReadDeadline(longAgo)
			select {
			case err := <-done:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Read says %v, want a time-out", err)
				}
			case <-time.After(patience):
				t.Error("Read does not see the deadline")
			}
			_ = h.server.SetReadDeadline(time.Time{})
			n++
		}
	}()
	for i := range 30 {
		h.begin()
		switch i % 3 {
		case 0:
			s.say(h.id, 0, wire.Refused{Reason: wire.ReasonLimit})
			h.clientReads([]byte(header(bodySize)), h.body)
			await(t, h.done, bodySize, nil)
		case 1:
			s.say(h.id, 0, wire.Granted{})
			h.sent()
			s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
			hear[wire.Taken](s)
			s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		case 2:
			s.say(h.id, 0, wire.Granted{})
			h.sent()
			time.Sleep(time.Millisecond)
			s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
			hear[wire.Taken](s)
			s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
		}
		r.eventually("it is local", func() bool { return h.server.phase() == lease.Local })
	}
	close(aborts)
	if n := <-stopped; n == 0 {
		t.Error("nothing was aborted")
	}
	if _, err := h.client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	h.serverReads("hello")
	s.lives()
}

// TestReadAcrossHandovers: a server that reads all the time gets what the client says, in order, while handovers that fail take bytes out of the
// socket behind its back.
func TestReadAcrossHandovers(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	stop := make(chan struct{})
	var said []byte
	var wait sync.WaitGroup
	wait.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				h.client.CloseWrite()
				return
			default:
			}
			p := []byte{byte(i), byte(i >> 8), byte(i >> 16)}
			if _, err := h.client.Write(p); err != nil {
				t.Error(err)
				return
			}
			said = append(said, p...)
			if i%16 == 0 {
				time.Sleep(10 * time.Microsecond)
			}
		}
	})
	var heard []byte
	wait.Go(func() {
		p := make([]byte, 1000)
		for {
			_ = h.server.SetReadDeadline(time.Now().Add(patience))
			n, err := h.server.Read(p)
			heard = append(heard, p[:n]...)
			if err != nil {
				if err != io.EOF {
					t.Errorf("after %d bytes: %v", len(heard), err)
				}
				return
			}
		}
	})
	refusals := 0
	for range 300 {
		// The head is written at once, so that its byte is often unacknowledged, which Extract refuses after the input was read.
		f, content := newFile(1000)
		if _, err := h.server.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		done := make(chan sending, 1)
		go func() {
			n, err := h.server.ReadFrom(f)
			done <- sending{n, err}
		}()
	answer:
		for {
			select {
			case got := <-s.frames:
				if got.head.Type == wire.TypeHandover {
					refusals++
					s.say(got.head.ID, 0, wire.Refused{Reason: wire.ReasonLimit})
				}
			case got := <-done:
				if got.n != 1000 || got.err != nil {
					t.Fatalf("ReadFrom = %d, %v", got.n, got.err)
				}
				break answer
			case <-time.After(patience):
				t.Fatal("ReadFrom does not return")
			}
		}
		h.clientReads([]byte("x"), content)
	}
	close(stop)
	wait.Wait()
	if !bytes.Equal(heard, said) {
		t.Errorf("the server read %d bytes of %d, or in another order", len(heard), len(said))
	}
	t.Logf("%d handovers were refused by the host; here: %v", refusals, r.agent.Snapshot().Fallbacks)
	s.lives()
}

// TestConcurrentClose closes a connection in the middle of whatever its writer does. The referee sees breaches, goleak and the agent what is left.
func TestConcurrentClose(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	answered := make(chan struct{})
	quit := make(chan struct{})
	go func() { // a host that grants, sends and closes at once
		defer close(answered)
		for {
			select {
			case got := <-s.frames:
				switch got.message.(type) {
				case wire.Handover:
					s.say(got.head.ID, 0, wire.Granted{})
				case wire.Send:
					s.say(got.head.ID, wire.FlagStarted, wire.Sent{Bytes: 1000})
				case wire.Data:
					s.say(got.head.ID, 0, wire.Credit{Bytes: uint32(len(got.message.(wire.Data).Data))})
				case wire.Close:
					s.say(got.head.ID, 0, wire.Closed{Reason: wire.ReasonClosed})
				}
			case <-quit:
				return
			}
		}
	}()
	for i := range 200 {
		client, server := r.connect()
		var wait sync.WaitGroup
		wait.Go(func() {
			for {
				f, _ := newFile(1000)
				_, err := server.Write([]byte(header(1000)))
				if err == nil {
					_, err = server.ReadFrom(f)
				}
				if err == nil {
					_, err = server.Write([]byte("and more"))
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.EPIPE) { // EPIPE: after CloseWrite
						t.Errorf("the writer meets %v", err)
					}
					return
				}
			}
		})
		wait.Go(func() {
			for {
				if _, err := server.Read(make([]byte, 1)); err != nil {
					return
				}
			}
		})
		wait.Go(func() {
			for range 3 {
				_ = server.SetReadDeadline(time.Now().Add(far))
			}
		})
		time.Sleep(time.Duration(i*10) * time.Microsecond)
		if i%4 == 3 {
			_ = server.CloseWrite()
		}
		if err := server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		wait.Wait()
		client.Close()
	}
	r.eventually("nothing is leased", func() bool { return r.agent.Snapshot().Leases == 0 })
	close(quit)
	<-answered
	s.lives()
}
