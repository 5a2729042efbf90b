package host

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/config"
	"spillway/internal/testkit"
	"spillway/internal/wire"
)

// TestRefused: HANDOVERs that begin no lease leave the session, and the guest's connection, as they are.
func TestRefused(t *testing.T) {
	r := newRig(t, func(r *rig) { r.cfg.VMs[0].MaxLeases = 1 })
	g, other := r.guest(0), r.guest(1)
	c := r.lease(g, 1)
	second := r.connect()
	m := second.freeze()

	other.send(1, 0, m, r.whole("small", ""))
	if got, _ := expect[wire.Refused](other, 1); got.Reason != wire.ReasonAddress {
		t.Errorf("another VM's address: %v", got.Reason)
	}
	g.send(2, 0, m)
	if got, _ := expect[wire.Refused](g, 2); got.Reason != wire.ReasonLimit {
		t.Errorf("a lease too many: %v", got.Reason)
	}
	g.send(1, 0, wire.Close{})
	expect[wire.Closed](g, 1)
	c.release()
	// The place is free as soon as CLOSED is there. The same connection cannot be restored twice, so a lease must die of it.
	g.send(2, 0, m)
	expect[wire.Granted](g, 2)
	if s := r.daemon.Status(); s.VMs[0].Refused["limit"] != 1 || s.VMs[1].Refused["address"] != 1 {
		t.Errorf("status %+v", s.VMs)
	}
}

// TestRefusedTwice: a connection that a lease has already cannot be handed over again.
func TestRefusedTwice(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(2, 0, c.handedOver)
	if got, _ := expect[wire.Refused](g, 2); got.Reason != wire.ReasonKernel {
		t.Errorf("refused: %v", got.Reason)
	}
	g.send(1, 0, r.whole("small", ""))
	c.clientReads(r.big[:4096])
}

// TestSendFails: a SEND that fails before its first byte has sent nothing, and the lease goes on.
func TestSendFails(t *testing.T) {
	r := newRig(t)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("big", filepath.Join(r.files, "link")))
	must(unix.Mkfifo(filepath.Join(r.files, "fifo"), 0o644))
	must(os.Mkdir(filepath.Join(r.files, "dir"), 0o755))
	r.write("changed", r.big)
	g := r.guest(0)
	c := r.lease(g, 1)
	cases := []struct {
		name   string
		change func(*wire.Send)
		want   wire.Reason
	}{
		{"unknown share", func(s *wire.Send) { s.File.Share = "nowhere" }, wire.ReasonShareUnknown},
		{"another VM's share", func(s *wire.Send) { s.File.Share = "private" }, wire.ReasonShareUnknown},
		{"missing", func(s *wire.Send) { s.File.Path = "none" }, wire.ReasonNotFound},
		{"symbolic link", func(s *wire.Send) { s.File.Path = "link" }, wire.ReasonForbidden},
		{"FIFO", func(s *wire.Send) { s.File.Path = "fifo" }, wire.ReasonNotRegular},
		{"directory", func(s *wire.Send) { s.File.Path = "dir" }, wire.ReasonNotRegular},
		{"other size", func(s *wire.Send) { s.File.Size++ }, wire.ReasonChanged},
		{"other time", func(s *wire.Send) { s.File.MTime++ }, wire.ReasonChanged},
	}
	for _, flags := range []wire.Flags{0, wire.FlagReturn} {
		for _, tt := range cases {
			order := r.whole("big", "head")
			tt.change(&order)
			g.send(1, flags, order)
			if m, flags := expect[wire.Sent](g, 1); m.Reason != tt.want || m.Bytes != 0 || flags != 0 {
				t.Errorf("%s: SENT %+v, flags %v", tt.name, m, flags)
			}
		}
	}
	g.send(1, 0, wire.Data{Data: []byte("served by the guest")})
	c.clientReads([]byte("served by the guest"))
	if s := r.status(); s.Failed["not-regular"] != 4 || s.Failed["changed"] != 4 {
		t.Errorf("status %+v", s)
	}
}

// TestTruncated: a file that becomes shorter under way gives the client a short body and an end, and nothing that was meant for later.
func TestTruncated(t *testing.T) {
	for _, change := range []string{"truncated", "rewritten"} {
		t.Run(change, func(t *testing.T) {
			r := newRig(t)
			content := make([]byte, 64<<20) // more than all socket buffers between
			copy(content, r.big)
			r.write("huge", content)
			g := r.guest(0)
			c := r.lease(g, 1)
			g.send(1, 0, r.whole("huge", "head\n"), wire.Data{Data: []byte("not the rest of the file")})
			c.clientReads([]byte("head\n"))
			path := filepath.Join(r.files, "huge")
			want := wire.ReasonTruncated
			if change == "truncated" {
				if err := os.Truncate(path, 40<<20); err != nil {
					t.Fatal(err)
				}
			} else {
				want = wire.ReasonChanged
				past := time.Now().Add(-time.Hour)
				if err := os.Chtimes(path, past, past); err != nil { // what any write does to it too
					t.Fatal(err)
				}
			}
			n := 0
			buf := make([]byte, 1<<20)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					k, err := c.client.Read(buf)
					n += k
					if err != nil {
						return
					}
				}
			}()
			m, flags := expect[wire.Sent](g, 1)
			// What truncation looks like depends on where the sender is: both reasons are right for a shorter file.
			if m.Reason != want && m.Reason != wire.ReasonChanged || flags != wire.FlagStarted || m.Bytes >= int64(len(content)) {
				t.Errorf("SENT %+v, flags %v", m, flags)
			}
			g.send(1, 0, r.whole("small", ""))
			if m, flags := expect[wire.Sent](g, 1); m.Reason == wire.ReasonOK || flags != wire.FlagStarted {
				t.Errorf("SEND after the failure: %+v, flags %v", m, flags)
			}
			g.send(1, 0, wire.Close{})
			expect[wire.Closed](g, 1)
			<-done
			if int64(n) != m.Bytes {
				t.Errorf("the client got %d bytes, SENT says %d", n, m.Bytes)
			}
		})
	}
}

// TestFiles: STAT and READ through the channel.
func TestFiles(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	ref := r.ref("big")
	g.send(1, 0, wire.Stat{Share: "media", Path: "big"})
	if m, _ := expect[wire.Attr](g, 1); m != (wire.Attr{Size: ref.Size, MTime: ref.MTime}) {
		t.Errorf("ATTR %+v", m)
	}
	for path, want := range map[string]wire.Reason{"none": wire.ReasonNotFound} {
		g.send(2, 0, wire.Stat{Share: "media", Path: path})
		if m, _ := expect[wire.Attr](g, 2); m.Reason != want {
			t.Errorf("ATTR of %s: %+v", path, m)
		}
	}
	g.send(3, 0, wire.Stat{Share: "private", Path: "big"})
	if m, _ := expect[wire.Attr](g, 3); m.Reason != wire.ReasonShareUnknown {
		t.Errorf("ATTR of another VM's share: %+v", m)
	}
	g.send(4, 0, wire.Read{File: ref, Offset: ref.Size - wire.MaxRead, Count: wire.MaxRead})
	if m, _ := expect[wire.Bytes](g, 4); string(m.Data) != string(r.big[len(r.big)-wire.MaxRead:]) {
		t.Errorf("BYTES %v with %d bytes", m.Reason, len(m.Data))
	}
	g.send(5, 0, wire.Read{File: ref, Offset: ref.Size - 10, Count: 100})
	if m, _ := expect[wire.Bytes](g, 5); string(m.Data) != string(r.big[len(r.big)-10:]) {
		t.Errorf("BYTES %v with %d bytes at the end", m.Reason, len(m.Data))
	}
	ref.MTime++
	g.send(6, 0, wire.Read{File: ref, Count: 1})
	if m, _ := expect[wire.Bytes](g, 6); m.Reason != wire.ReasonChanged || len(m.Data) != 0 {
		t.Errorf("BYTES %+v", m)
	}
}

// TestBreaches: what breaks the protocol ends the session with its leases, and no other session.
func TestBreaches(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.cfg.VMs[0].Addresses = []netip.Addr{netip.MustParseAddr(testkit.Guest4)}
		r.cfg.VMs[1].Addresses = []netip.Addr{netip.MustParseAddr(testkit.Guest6)}
	})
	neighbour, spared := r.guest(1), r.connect6()
	neighbour.send(1, 0, spared.freeze())
	expect[wire.Granted](neighbour, 1)
	sends := func(messages ...wire.Message) func(*fakeGuest, *connection) {
		return func(g *fakeGuest, _ *connection) { g.send(1, 0, messages...) }
	}
	raw := func(change func(frame []byte)) func(*fakeGuest, *connection) {
		return func(g *fakeGuest, _ *connection) {
			frame := wire.Append(nil, g.id, 1, 0, wire.Data{Data: []byte("x")})
			change(frame)
			_, _ = g.conn.Write(frame)
		}
	}
	order := r.whole("big", "")
	lying := order
	lying.Count = lying.File.Size + 1
	escape := order
	escape.File.Path = "../etc/passwd"
	cases := map[string]func(*fakeGuest, *connection){
		"live id":             func(g *fakeGuest, c *connection) { g.send(1, 0, c.handedOver) },
		"second SEND":         sends(order, order),
		"TAKEN out of turn":   sends(wire.Taken{}),
		"KEEP out of turn":    sends(wire.Keep{}),
		"too much credit":     sends(wire.Credit{Bytes: 1}),
		"DATA after END":      sends(wire.End{}, wire.Data{Data: []byte("x")}),
		"SEND after CLOSE":    sends(order, wire.Close{}, order),
		"CLOSE twice":         sends(order, wire.Close{}, wire.Close{}),
		"END twice":           sends(wire.End{}, wire.End{}),
		"a host's frame":      sends(wire.Granted{}),
		"range beyond file":   sends(lying),
		"path out of share":   sends(escape),
		"length beyond limit": raw(func(f []byte) { f[2] = 2 }),
		"unknown type":        raw(func(f []byte) { f[4] = 99 }),
		"unknown flag":        raw(func(f []byte) { f[5] = 0x80 }),
		"reserved bytes":      raw(func(f []byte) { f[6] = 1 }),
		"another session":     raw(func(f []byte) { f[12]++ }),
		"lying length":        raw(func(f []byte) { f[0]++; f[8] = 0xff }), // swallows a byte of the frame behind it
		"window exceeded": func(g *fakeGuest, c *connection) {
			// A client that reads nothing, so that no credit comes.
			for range 200 {
				_, _ = g.conn.Write(wire.Append(nil, g.id, 1, 0, wire.Data{Data: r.big[:wire.MaxData]}))
			}
		},
	}
	for name, breach := range cases {
		t.Run(name, func(t *testing.T) {
			r.tb = t
			g := r.guest(0)
			c := r.lease(g, 1)
			breach(g, c)
			if name == "lying length" {
				g.send(1, 0, wire.Data{Data: []byte("y")}, wire.Data{Data: []byte("y")})
			}
			g.expectEnd()
			go func() {
				_, _ = io.Copy(io.Discard, c.client) // what is under way is finished
				c.client.Close()
			}()
			r.eventually("the lease ends", func() bool { return r.status().Leases == 0 })
			c.release()
		})
	}
	if s := r.status(); s.Breaches != uint64(len(cases)) {
		t.Errorf("%d breaches counted, want %d", s.Breaches, len(cases))
	}
	r.tb = t
	neighbour.send(1, 0, r.whole("big", ""))
	spared.clientReads(r.big)
}

// TestFlood: more requests than a session may have waiting are answered with a reason, then end it. Unknown leases are ignored.
func TestFlood(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	for id := range uint32(1000) {
		g.send(1000+id, 0, wire.Data{Data: []byte("x")}, wire.End{}, wire.Close{}, wire.Taken{}, wire.Keep{}, wire.Credit{Bytes: 1})
	}
	g.send(1, 0, wire.Stat{Share: "media", Path: "big"})
	expect[wire.Attr](g, 1)
	if s := r.status(); s.Dropped != 6000 {
		t.Errorf("dropped %d frames, want 6000", s.Dropped)
	}
	// READs that the guest does not take the answers of: the channel fills, the desk fills, the session ends. The handler never waits.
	flood := r.guest(1)
	frame := wire.Append(nil, flood.id, 5, 0, wire.Read{File: r.ref("big"), Count: wire.MaxRead})
	answers := flood.of(5)
	for len(answers) < cap(answers) {
		answers <- recorded{} // the fake guest cannot add another one, and so stops reading
	}
	_ = flood.conn.SetWriteDeadline(time.Now().Add(patience))
	for r.daemon.Status().VMs[1].Breaches == 0 {
		if _, err := flood.conn.Write(frame); err != nil {
			t.Fatalf("the host does not read on: %v", err)
		}
	}
	flood.conn.Close()
	for range answers {
		if len(answers) == 0 {
			break
		}
	}
	g.send(2, 0, wire.Stat{Share: "media", Path: "big"})
	expect[wire.Attr](g, 2)
}

// TestNewRefuses: a configuration that this host cannot serve is refused with an error that says why, and nothing is left open.
func TestNewRefuses(t *testing.T) {
	r := newRig(t)
	for name, tt := range map[string]struct {
		change func(*config.Host)
		want   string
	}{
		"own address": {func(c *config.Host) {
			c.VMs[0].Addresses = append(c.VMs[0].Addresses, netip.MustParseAddr(testkit.Host4))
		}, "VM one: 10.78.0.1 is an address of this host"},
		"no directory": {func(c *config.Host) { c.Shares[1].Path = "/nonexistent" }, "/nonexistent"},
		"no group":     {func(c *config.Host) { c.VMs[1].Group = "no-such-group" }, "VM two: its group: group: unknown group no-such-group; use"},
		"bad channel":  {func(c *config.Host) { c.VMs[1].Channels = []string{"vsock:x"} }, "vsock:x"},
		"invalid":      {func(c *config.Host) { c.VMs = nil }, "vm"},
	} {
		cfg := r.cfg
		cfg.VMs, cfg.Shares = slices.Clone(cfg.VMs), slices.Clone(cfg.Shares)
		tt.change(&cfg)
		_, err := newDaemon(cfg, r.logger(), r.environment())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}
