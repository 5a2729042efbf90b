package host

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"spillway/internal/wire"
)

// touch does to a file what any write in place does to it too.
func (r *rig) touch(name string) {
	r.tb.Helper()
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(r.files, name), past, past); err != nil {
		r.tb.Fatal(err)
	}
}

// TestMaxOpenFiles: the limit counts files, however many clients are being sent each of them.
func TestMaxOpenFiles(t *testing.T) {
	r, content := newRigWithMore(t, func(r *rig) { r.cfg.VMs[0].MaxOpenFiles = 1 })
	g := r.guest(0)
	const clients = 3
	conns := make([]*connection, clients)
	for i := range conns {
		id := uint32(1 + i)
		conns[i] = r.lease(g, id)
		g.send(id, 0, r.whole("more", "head\n"))
		conns[i].clientReads([]byte("head\n")) // and no more, so that all of them are under way together
	}
	other := r.lease(g, 10)
	g.send(10, 0, r.whole("small", ""))
	if m, flags := expect[wire.Sent](g, 10); m.Reason != wire.ReasonLimit || flags != 0 {
		t.Errorf("SEND of a second file: %+v, flags %v", m, flags)
	}
	g.send(11, 0, wire.Read{File: r.ref("small"), Count: 1})
	if m, _ := expect[wire.Bytes](g, 11); m.Reason != wire.ReasonLimit {
		t.Errorf("READ of a second file: %v", m.Reason)
	}
	for i, c := range conns {
		c.clientReads(content)
		if m, _ := expect[wire.Sent](g, uint32(1+i)); m.Reason != wire.ReasonOK {
			t.Errorf("SENT %+v", m)
		}
	}
	// The place is free, also after a SEND that fails.
	missing := r.whole("small", "")
	missing.File.Path = "none"
	g.send(10, 0, missing)
	if m, _ := expect[wire.Sent](g, 10); m.Reason != wire.ReasonNotFound {
		t.Errorf("SENT %+v", m)
	}
	g.send(10, 0, r.whole("small", ""))
	other.clientReads(r.big[:4096])
	if m, _ := expect[wire.Sent](g, 10); m.Reason != wire.ReasonOK {
		t.Errorf("SENT %+v", m)
	}
}

// TestChangedWhileQueued: a body whose file was changed while it was being queued is not completed, as far as it can be helped. No file can
// be changed from outside between the last sendfile and the check, so the step is called by itself.
func TestChangedWhileQueued(t *testing.T) {
	for _, taken := range []bool{false, true} {
		r := newRig(t)
		content := r.big[:48<<10]
		r.write("part", content)
		g := r.guest(0)
		c := r.connect()
		if err := c.client.SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		g.send(1, 0, c.freeze(), r.whole("part", ""))
		expect[wire.Granted](g, 1)
		expect[wire.Sent](g, 1) // the sender is idle now
		if taken {
			c.clientReads(content)
		}
		var l *leaseConn
		r.daemon.vms[0].eachLease(func(only *leaseConn) { l = only })
		if taken {
			r.eventually("the client has acknowledged all", func() bool {
				n, err := l.socket.outstanding()
				return err == nil && n == 0
			})
		}
		o := &order{file: r.ref("part"), count: int64(len(content))}
		f, reason := r.daemon.vms[0].acquire(t.Context(), o.file, 0)
		if reason != wire.ReasonOK {
			t.Fatal(reason)
		}
		r.touch("part")
		over := l.complete(f, o)
		r.daemon.vms[0].release(f, o.file)
		if taken {
			if m, flags := expect[wire.Sent](g, 1); over != wire.ReasonOK || m.Reason != wire.ReasonChanged || flags != wire.FlagStarted {
				t.Errorf("lease over: %v; SENT %+v, flags %v", over, m, flags)
			}
			continue
		}
		l.stop(over) // as the sender does with the reason of its step
		if m, _ := expect[wire.Closed](g, 1); m.Reason != wire.ReasonChanged {
			t.Errorf("CLOSED %v", m.Reason)
		}
		c.clientReset()
		c.release()
		if s := r.status(); s.Failed["changed"] != 1 {
			t.Errorf("status %+v", s)
		}
	}
}
