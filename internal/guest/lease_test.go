package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/lease"
	"spillway/internal/wire"
)

func TestHandover(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.handOver(s)
	if h.order.Count != bodySize || h.order.Offset != 0 || string(h.order.Header) != header(bodySize) || h.flags != 0 {
		t.Errorf("SEND is %+v, flags %d", h.order, h.flags)
	}
	if st := h.state.State; st.Local != h.server.local || st.Remote != h.server.remote || !st.KeepAlive.Enabled || st.MSS == 0 {
		t.Errorf("HANDOVER is %+v", st)
	}
	if h.server.phase() != lease.Handing {
		t.Errorf("phase is %v", h.server.phase())
	}
	h.say(h.id, 0, wire.Granted{})
	h.sent()
	if h.server.phase() != lease.Leased {
		t.Errorf("phase is %v", h.server.phase())
	}
	for i := range 3 { // one order after the other, no matter how small
		if i > 0 {
			s.say(h.id, 0, wire.Data{Data: []byte("next")})
			h.serverReads("next")
		}
		f, _ := newFile(10)
		done := send(h.server, header(10), f)
		order, head := hear[wire.Send](s)
		if head.ID != h.id || order.Count != 10 || string(order.Header) != header(10) {
			t.Errorf("SEND is %+v of lease %d, want %d", order, head.ID, h.id)
		}
		s.say(h.id, wire.FlagStarted, wire.Sent{Bytes: 10})
		await(t, done, 10, nil)
		if f.Len() != 0 {
			t.Errorf("the file's position is %d bytes before its end", f.Len())
		}
	}
	got := r.agent.Snapshot()
	if got.Counts.Handovers != 1 || got.Counts.Sends != 4 || got.Counts.SentBytes != bodySize+30 || got.Counts.LocalBytes != 0 ||
		got.Counts.Relayed != 0 || got.Leases != 1 || len(got.Fallbacks) != 0 {
		t.Errorf("snapshot is %+v", got)
	}
	if answers, orders := got.Steps[StepAnswer].N, got.Steps[StepOrder].N; answers != 2 || orders != 3 {
		t.Errorf("%d requests of a leased connection were timed, want 2; and %d orders, want 3", answers, orders)
	}
	h.server.Close()
	hear[wire.Close](s)
	h.over(wire.ReasonClosed)
	s.silent()
	s.lives()
}

// TestRange: a part of a file goes through the host, and what io.CopyN has left to read is right afterwards.
func TestRange(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	_, server := r.connect()
	f, _ := newFile(bodySize)
	if _, err := f.Seek(1000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	limited := &io.LimitedReader{R: f, N: 500}
	done := send(server, header(500), limited)
	_, head := hear[wire.Handover](s)
	if order, _ := hear[wire.Send](s); order.Offset != 1000 || order.Count != 500 {
		t.Errorf("SEND is %+v", order)
	}
	s.say(head.ID, 0, wire.Granted{})
	s.say(head.ID, wire.FlagStarted, wire.Sent{Bytes: 500})
	await(t, done, 500, nil)
	if limited.N != 0 || f.Len() != bodySize-1500 {
		t.Errorf("%d bytes of the range and %d of the file are left", limited.N, f.Len())
	}
	s.say(head.ID, 0, wire.Closed{Reason: wire.ReasonClientGone})
}

// TestRefused: whatever the host's reason, the client gets the bytes that it would get without a host.
func TestRefused(t *testing.T) {
	for _, reason := range []wire.Reason{
		wire.ReasonDraining, wire.ReasonLimit, wire.ReasonAddress, wire.ReasonKernel, wire.ReasonInvalid,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			h := r.handOver(s)
			first := h.body
			h.say(h.id, 0, wire.Refused{Reason: reason})
			await(t, h.done, bodySize, nil)
			h.clientReads([]byte(header(bodySize)), first)
			// It can be tried again, with another id.
			id := h.id
			h.begin()
			if h.id == id {
				t.Errorf("the second HANDOVER has the id of the first, %d", id)
			}
			h.say(h.id, 0, wire.Refused{Reason: reason})
			await(t, h.done, bodySize, nil)
			h.clientReads([]byte(header(bodySize)), h.body)
			if _, err := h.client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			h.serverReads("hello")
			got := r.agent.Snapshot()
			if got.Fallbacks[reason.String()] != 2 || got.Counts.Handovers != 0 || got.Counts.LocalBytes != 2*uint64(bodySize+len(header(bodySize))) {
				t.Errorf("snapshot is %+v", got)
			}
			s.lives()
		})
	}
}

// TestNotEligible: what the kernel or the agent refuses is served locally; the host hears nothing.
func TestNotEligible(t *testing.T) {
	ahead := bytes.Repeat([]byte("ahead "), maxUnread/6+1000)
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, r *rig, s *script, client *net.TCPConn, server *Conn)
		reason  wire.Reason
		reads   []byte // what the server must be able to read afterwards
	}{
		{"the client has closed its direction", func(t *testing.T, r *rig, _ *script, client *net.TCPConn, server *Conn) {
			if _, err := client.Write([]byte("last words")); err != nil {
				t.Fatal(err)
			}
			client.CloseWrite()
			time.Sleep(5 * time.Millisecond)
		}, wire.ReasonNotEstablished, []byte("last words")},
		{"an upload is coming", func(t *testing.T, r *rig, _ *script, client *net.TCPConn, server *Conn) {
			if _, err := client.Write(ahead); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}, wire.ReasonUnreadInput, ahead},
		{"draining", func(t *testing.T, r *rig, s *script, client *net.TCPConn, server *Conn) {
			s.say(0, 0, wire.Drain{})
			r.eventually("the agent knows", func() bool { return r.agent.Snapshot().Host == "draining" })
		}, wire.ReasonDraining, nil},
		{"the host is away", func(t *testing.T, r *rig, s *script, client *net.TCPConn, server *Conn) {
			s.stop()
			r.eventually("the agent knows", func() bool { return r.agent.Snapshot().Host == "away" })
		}, wire.ReasonHostAway, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			client, server := r.connect()
			c.prepare(t, r, s, client, server)
			f, content := newFile(bodySize)
			done := send(server, header(bodySize), f)
			got := make([]byte, len(header(bodySize))+bodySize)
			if n, err := io.ReadFull(client, got); err != nil || string(got) != header(bodySize)+string(content) {
				t.Fatalf("the client has %d bytes, %v", n, err)
			}
			await(t, done, bodySize, nil)
			if n := r.agent.Snapshot().Fallbacks[c.reason.String()]; n != 1 {
				t.Errorf("fallbacks are %v, want one for %v", r.agent.Snapshot().Fallbacks, c.reason)
			}
			read := make([]byte, len(c.reads))
			_ = server.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(server, read); err != nil || !bytes.Equal(read, c.reads) {
				t.Errorf("the server reads %d bytes, %v: not what the client has sent", len(read), err)
			}
			s.silent()
		})
	}
}

// TestClientOnGuest: the host never sees the packets of such a client, and takes a loopback address for a breach.
func TestClientOnGuest(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	client, server := r.accept(r.dialSelf())
	f, content := newFile(bodySize)
	done := send(server, header(bodySize), f)
	got := make([]byte, len(header(bodySize))+bodySize)
	if n, err := io.ReadFull(client, got); err != nil || string(got) != header(bodySize)+string(content) {
		t.Fatalf("the client has %d bytes, %v", n, err)
	}
	await(t, done, bodySize, nil)
	if n := r.agent.Snapshot().Fallbacks[wire.ReasonAddress.String()]; n != 1 {
		t.Errorf("fallbacks are %v", r.agent.Snapshot().Fallbacks)
	}
	s.silent()
	s.lives()
}

// TestLimit: no more connections than the host allows.
func TestLimit(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	var leases []*handing
	for range 16 {
		leases = append(leases, r.leased(s))
	}
	client, server := r.connect()
	f, content := newFile(1000)
	done := send(server, header(1000), f)
	if got, err := io.ReadAll(io.LimitReader(client, int64(len(header(1000))+1000))); err != nil || string(got) != header(1000)+string(content) {
		t.Fatalf("the client has %d bytes, %v", len(got), err)
	}
	await(t, done, 1000, nil)
	if n := r.agent.Snapshot().Fallbacks[wire.ReasonLimit.String()]; n != 1 {
		t.Errorf("fallbacks are %v", r.agent.Snapshot().Fallbacks)
	}
	for _, l := range leases {
		l.over(wire.ReasonClientGone)
	}
	s.silent()
}

// TestInputMoves: what the client had sent before the handover is read first, then what comes through the host; CREDIT is given for the second only.
func TestInputMoves(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	ahead := bytes.Repeat([]byte("ahead "), 10_000) // 60,000 bytes, of the 65,536 that may be there
	if _, err := h.client.Write(ahead); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	h.begin()
	h.say(h.id, 0, wire.Granted{})
	h.sent()
	later := bytes.Repeat([]byte("later "), 2*testWindow/6)
	go func() {
		for rest := later; len(rest) > 0; {
			n := min(len(rest), 1000)
			for { // as much as the credit allows
				s.mu.Lock()
				room := testWindow - s.referee[h.id].uncounted
				s.mu.Unlock()
				if room >= n {
					break
				}
				time.Sleep(time.Millisecond)
			}
			s.say(h.id, 0, wire.Data{Data: rest[:n]})
			rest = rest[n:]
		}
		s.say(h.id, 0, wire.End{})
	}()
	_ = h.server.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(h.server)
	if err != nil || !bytes.Equal(got, append(ahead, later...)) {
		t.Errorf("the server reads %d bytes, %v, want %d", len(got), err, len(ahead)+len(later))
	}
	h.over(wire.ReasonClientGone)
	if _, err := h.server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the client's end, and that of the lease, Read says %v", err)
	}
	s.lives()
}

// TestSentNothing: a SEND that failed before its first byte goes through the channel instead, with its head.
func TestSentNothing(t *testing.T) {
	for _, reason := range []wire.Reason{wire.ReasonNotFound, wire.ReasonChanged, wire.ReasonForbidden, wire.ReasonShareUnknown, wire.ReasonDraining} {
		t.Run(reason.String(), func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			forgotten := make(chan string, 1)
			r.agent.OnForget("media", func(path string) { forgotten <- path })
			h := r.handOver(s)
			h.say(h.id, 0, wire.Granted{})
			h.say(h.id, 0, wire.Sent{Reason: reason})
			var got []byte
			for len(got) < bodySize+len(header(bodySize)) {
				m, _ := hear[wire.Data](s)
				got = append(got, m.Data...)
				s.say(h.id, 0, wire.Credit{Bytes: uint32(len(m.Data))})
			}
			await(t, h.done, bodySize, nil)
			if string(got) != header(bodySize)+string(h.body) {
				t.Error("other bytes go through the channel")
			}
			if outdated := reason == wire.ReasonNotFound || reason == wire.ReasonChanged; (len(forgotten) == 1) != outdated {
				t.Errorf("%d files are forgotten, want %v", len(forgotten), outdated)
			}
			snap := r.agent.Snapshot()
			if snap.Fallbacks[reason.String()] != 1 || snap.Counts.Relayed != uint64(len(got)) || snap.Counts.Sends != 0 {
				t.Errorf("snapshot is %+v", snap)
			}
			h.next() // the connection is as good as before
			h.sent()
			h.over(wire.ReasonClientGone)
			s.lives()
		})
	}
}

// TestSentShort: the server must learn that the body is short, and how much of it has left.
func TestSentShort(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	h := r.handOver(s)
	h.say(h.id, 0, wire.Granted{})
	h.say(h.id, wire.FlagStarted, wire.Sent{Reason: wire.ReasonTruncated, Bytes: 777})
	await(t, h.done, 777, wire.ReasonTruncated)
	if err := h.server.Close(); err != nil {
		t.Error(err)
	}
	if _, head := hear[wire.Close](s); head.Flags != 0 {
		t.Errorf("flags of CLOSE are %d", head.Flags)
	}
	s.silent() // neither the head nor the rest of the body must follow
	h.over(wire.ReasonClosed)
}

// TestClosedByHost: the server meets the errors that it would meet locally.
func TestClosedByHost(t *testing.T) {
	for reason, want := range map[wire.Reason]error{
		wire.ReasonClientGone: unix.ECONNRESET, wire.ReasonClientStalled: unix.ETIMEDOUT, wire.ReasonKernel: wire.ReasonKernel,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			r := newRig(t, Policy{Mode: Lease})
			s := r.script()
			h := r.leased(s)
			h.next()
			read := make(chan error, 1)
			go func() {
				_, err := h.server.Read(make([]byte, 1))
				read <- err
			}()
			h.over(reason)
			await(t, h.done, 0, want)
			if err := <-read; !errors.Is(err, want) {
				t.Errorf("Read says %v, want %v", err, want)
			}
			for name, call := range map[string]func() error{
				"Write":      func() error { _, err := h.server.Write([]byte("x")); return err },
				"head":       func() error { _, err := h.server.Write([]byte(header(bodySize))); return err },
				"ReadFrom":   func() error { _, err := h.server.ReadFrom(openFile(h.body)); return err },
				"CloseWrite": func() error { return h.server.CloseWrite() },
			} {
				if err := call(); !errors.Is(err, want) {
					t.Errorf("%s says %v, want %v", name, err, want)
				}
			}
			s.lives()
		})
	}
}

// TestWriteDeadline: a SEND that does not end before the server's deadline resets the connection, in whatever phase.
func TestWriteDeadline(t *testing.T) {
	t.Run("leased", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.leased(s)
		h.next()
		_ = h.server.SetWriteDeadline(time.Now().Add(time.Millisecond))
		await(t, h.done, 0, os.ErrDeadlineExceeded)
		if _, head := hear[wire.Close](s); head.Flags != wire.FlagAbort {
			t.Errorf("flags of CLOSE are %d", head.Flags)
		}
		h.givenUp()
		// What comes of the SEND meanwhile is nobody's, and a HANDBACK must be answered.
		s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
		hear[wire.Keep](s)
		s.say(h.id, wire.FlagStarted, wire.Sent{Bytes: bodySize})
		h.givenUp()
		h.over(wire.ReasonClosed)
		h.rig.eventually("the lease is over", func() bool { return r.agent.Snapshot().Leases == 0 })
		s.lives()
	})
	t.Run("granted afterwards", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.handOver(s)
		_ = h.server.SetWriteDeadline(time.Now().Add(time.Millisecond))
		await(t, h.done, 0, os.ErrDeadlineExceeded)
		h.givenUp()
		s.say(h.id, 0, wire.Granted{})
		if _, head := hear[wire.Close](s); head.Flags != wire.FlagAbort {
			t.Errorf("flags of CLOSE are %d", head.Flags)
		}
		s.say(h.id, wire.FlagStarted, wire.Sent{Bytes: bodySize})
		h.givenUp()
		h.over(wire.ReasonClosed)
		s.lives()
	})
	t.Run("refused afterwards", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.handOver(s)
		_ = h.server.SetWriteDeadline(time.Now().Add(time.Millisecond))
		await(t, h.done, 0, os.ErrDeadlineExceeded)
		s.say(h.id, 0, wire.Refused{Reason: wire.ReasonLimit})
		r.eventually("it is local", func() bool { return h.server.phase() == lease.Local })
		h.givenUp()
		h.server.Close()
		if got, err := io.ReadAll(h.client); len(got) != 0 {
			t.Errorf("the client has %d bytes, %v", len(got), err)
		}
		s.lives()
	})
}

// givenUp checks that nothing more can be written, even with a new deadline: it would be taken for a part of the body.
func (h *handing) givenUp() {
	h.tb.Helper()
	_ = h.server.SetWriteDeadline(time.Time{})
	if n, err := h.server.Write([]byte("more")); n != 0 || err == nil {
		h.tb.Errorf("Write after the deadline = %d, %v", n, err)
	}
	if n, err := h.server.ReadFrom(openFile(h.body)); n != 0 || err == nil {
		h.tb.Errorf("ReadFrom after the deadline = %d, %v", n, err)
	}
}
