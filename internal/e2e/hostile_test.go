package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"spillway/internal/lab"
	"spillway/internal/wire"
)

// Where the guest's own connections of the arm offload end.
var (
	own4 = netip.MustParseAddrPort("10.87.0.2:8081")
	own6 = netip.MustParseAddrPort("[fd87::2]:8081")
)

// newHostileLab is a lab whose arm offload has no server, so that a rogue can take its channel.
func newHostileLab(t *testing.T) (*lab.Lab, *media) {
	t.Helper()
	files := newMedia(t)
	l := newLab(t, files)
	killServer(t, l, lab.Offload)
	return l, files
}

// survives checks that the daemon is the same, serves its other channel, and holds nothing for the rogue.
func survives(t *testing.T, l *lab.Lab, files *media) {
	t.Helper()
	before := serverStats(t, l, lab.Lease).Counts
	fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	expectSends(t, l, lab.Lease, before.Sends+1)
	if before.Sessions != 1 {
		t.Errorf("%d sessions of the other channel, want 1", before.Sessions)
	}
}

// TestHostileAddress: a guest cannot take connections that are not its own.
func TestHostileAddress(t *testing.T) {
	l, files := newHostileLab(t)
	r := newRogue(t, l, lab.Offload)
	for i, local := range []string{
		"10.87.0.3:80", "10.88.0.1:8080", "10.87.0.1:80", "10.88.0.2:80", "8.8.8.8:443", "[fd88::1]:8080", "[fd87::1]:80", "[fd87::3]:80", "[2001:db8::1]:1",
	} {
		id := uint32(100 + i)
		say(r, id, 0, wire.Handover{State: forged(netip.MustParseAddrPort(local), 40000)})
		if m := r.answer(id); m != (wire.Refused{Reason: wire.ReasonAddress}) {
			t.Errorf("HANDOVER of %s: %#v, want REFUSED for its address", local, m)
		}
	}
	// And it can take its own, in both families: the refusals were for the address.
	for i, local := range []netip.AddrPort{own4, own6} {
		id := uint32(200 + i)
		say(r, id, 0, wire.Handover{State: forged(local, 40000)})
		if m := r.answer(id); m != (wire.Granted{}) {
			t.Errorf("HANDOVER of %v: %#v, want GRANTED", local, m)
		}
	}
	// The same connection a second time.
	say(r, 300, 0, wire.Handover{State: forged(own4, 40000)})
	if m, ok := r.answer(300).(wire.Refused); !ok {
		t.Errorf("HANDOVER of a leased connection: %#v, want REFUSED", m)
	}
	survives(t, l, files)
	r.close()
	noLeasesOfHost(t, l)
}

func noLeasesOfHost(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, "the daemon has no lease", func() bool { return hostStatus(t, l).Leases == 0 })
}

// TestHostileSend: what the guest says of files is checked, and each refusal leaves the lease usable.
func TestHostileSend(t *testing.T) {
	l, files := newHostileLab(t)
	must(t, os.Symlink("/etc/passwd", files.dir+"/passwd"))
	must(t, os.Symlink("10m.mp4", files.dir+"/link"))
	r := newRogue(t, l, lab.Offload)
	const id = 77
	say(r, id, 0, wire.Handover{State: forged(own4, 40001)})
	if m := r.answer(id); m != (wire.Granted{}) {
		t.Fatalf("HANDOVER: %#v", m)
	}
	good := fileRef(t, files, "4k.m4s")
	for _, c := range []struct {
		change func(*wire.Send)
		want   wire.Reason
	}{
		{func(s *wire.Send) { s.File.Share = "private" }, wire.ReasonShareUnknown},
		{func(s *wire.Send) { s.File.Path = "missing" }, wire.ReasonNotFound},
		{func(s *wire.Send) { s.File.Path = "tablet" }, wire.ReasonNotRegular},
		{func(s *wire.Send) { s.File.Path = "passwd" }, wire.ReasonForbidden},
		{func(s *wire.Send) { s.File.Path = "link" }, wire.ReasonForbidden},
		{func(s *wire.Send) { s.File.Path = "4k.m4s/x" }, wire.ReasonNotFound},
		{func(s *wire.Send) { s.File.Size++ }, wire.ReasonChanged},
		{func(s *wire.Send) { s.File.MTime-- }, wire.ReasonChanged},
	} {
		send := wire.Send{File: good, Count: good.Size, Header: []byte("header")}
		c.change(&send)
		say(r, id, 0, send)
		if m := r.answer(id); m != (wire.Sent{Reason: c.want}) {
			t.Errorf("SEND of %+v: %#v, want SENT for %v", send.File, m, c.want)
		}
		say(r, id, 0, wire.Stat{Share: send.File.Share, Path: send.File.Path})
		if m, ok := r.answer(id).(wire.Attr); !ok || c.want != wire.ReasonChanged && m != (wire.Attr{Reason: c.want}) {
			t.Errorf("STAT of %+v: %#v, want the reason %v", send.File, m, c.want)
		}
	}
	say(r, id, 0, wire.Send{File: good, Count: good.Size})
	if m := r.answer(id); m != (wire.Sent{Bytes: good.Size}) {
		t.Errorf("a SEND that is right: %#v", m)
	}
	survives(t, l, files)
	r.close()
	stopHost(t, l, syscall.SIGKILL) // which does not wait for the client, who is nobody, to acknowledge what was sent
}

// TestHostileBreach: each breach of the protocol ends the rogue's session and nothing else.
func TestHostileBreach(t *testing.T) {
	l, files := newHostileLab(t)
	const id = 16
	big := fileRef(t, files, "10m.mp4")
	send := func(r *rogue, change func(*wire.Send)) {
		s := wire.Send{File: big, Count: big.Size}
		change(&s)
		say(r, id, 0, s)
	}
	raw := func(length uint32, kind wire.Type, flags byte, reserved uint16, session uint32, payload []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, length)
		b = append(b, byte(kind), flags)
		b = binary.LittleEndian.AppendUint16(b, reserved)
		b = binary.LittleEndian.AppendUint32(b, id)
		b = binary.LittleEndian.AppendUint32(b, session)
		return append(b, payload...)
	}
	stuck := 0
	for i, c := range []struct {
		name   string
		leased bool
		sends  bool // an order that is good is under way at the breach
		do     func(r *rogue)
	}{
		{"second SEND under way", true, true, func(r *rogue) { send(r, func(*wire.Send) {}); send(r, func(*wire.Send) {}) }},
		{"DATA beyond the window", true, true, func(r *rogue) {
			send(r, func(*wire.Send) {}) // which keeps the DATA waiting
			for range 5 {
				say(r, id, 0, wire.Data{Data: make([]byte, wire.MaxData)})
			}
		}},
		{"CREDIT for nothing", true, false, func(r *rogue) { say(r, id, 0, wire.Credit{Bytes: 1}) }},
		{"CREDIT of 4 GB", true, false, func(r *rogue) { say(r, id, 0, wire.Credit{Bytes: 1<<32 - 1}) }},
		{"range beyond the file", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.Offset = 1 }) }},
		{"negative offset", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.Offset = -1 }) }},
		{"negative count", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.Count = -1 }) }},
		{"sum beyond 63 bits", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.Offset, s.Count = 1<<62, 1<<62 }) }},
		{"path with ..", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.File.Path = "../secret" }) }},
		{"absolute path", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.File.Path = "/etc/passwd" }) }},
		{"path with NUL", true, false, func(r *rogue) { send(r, func(s *wire.Send) { s.File.Path = "a\x00b" }) }},
		{"TAKEN without HANDBACK", true, false, func(r *rogue) { say(r, id, 0, wire.Taken{}) }},
		{"KEEP without HANDBACK", true, false, func(r *rogue) { say(r, id, 0, wire.Keep{}) }},
		{"HANDOVER of a lease that lives", true, false, func(r *rogue) { say(r, id, 0, wire.Handover{State: forged(own4, 40003)}) }},
		{"SEND after END", true, false, func(r *rogue) { say(r, id, 0, wire.End{}); send(r, func(*wire.Send) {}) }},
		{"a host's frame", true, false, func(r *rogue) { say(r, id, 0, wire.Granted{}) }},
		{"length above the limit", false, false, func(r *rogue) { r.write(raw(wire.MaxPayload+1, wire.TypeData, 0, 0, r.session, nil)) }},
		{"length of 4 GB", false, false, func(r *rogue) { r.write(raw(1<<32-1, wire.TypeStat, 0, 0, r.session, nil)) }},
		{"unknown type", false, false, func(r *rogue) { r.write(raw(0, 200, 0, 0, r.session, nil)) }},
		{"unknown flag", false, false, func(r *rogue) { r.write(raw(0, wire.TypeEnd, 0x80, 0, r.session, nil)) }},
		{"reserved bytes", false, false, func(r *rogue) { r.write(raw(0, wire.TypeEnd, 0, 1, r.session, nil)) }},
		{"another session", false, false, func(r *rogue) { r.write(raw(0, wire.TypeEnd, 0, 0, r.session+2, nil)) }},
		{"string longer than its frame", false, false, func(r *rogue) { r.write(raw(3, wire.TypeStat, 0, 0, r.session, []byte{64, 'a', 'b'})) }},
		{"READ of nothing", false, false, func(r *rogue) { say(r, id, 0, wire.Read{File: big}) }},
		{"READ of too much", false, false, func(r *rogue) { say(r, id, 0, wire.Read{File: big, Count: wire.MaxRead + 1}) }},
		{"HANDOVER cut short", false, false, func(r *rogue) {
			whole := wire.Append(nil, r.session, id, 0, wire.Handover{State: forged(own4, 40003)})
			binary.LittleEndian.PutUint32(whole, uint32(len(whole)-wire.HeaderSize-10))
			r.write(whole[:len(whole)-10])
		}},
		{"HANDOVER with an MSS of 1", false, false, func(r *rogue) {
			s := forged(own4, 40003)
			s.MSS = 1
			say(r, id, 0, wire.Handover{State: s})
		}},
		{"garbage", false, false, func(r *rogue) { r.write(bytes.Repeat([]byte{0xa5}, 100_000)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRogue(t, l, lab.Offload)
			if c.leased {
				say(r, id, 0, wire.Handover{State: forged(own4, uint16(41000+i))})
				if m := r.answer(id); m != (wire.Granted{}) {
					t.Fatalf("HANDOVER: %#v", m)
				}
			}
			before := hostStatus(t, l).Breaches
			c.do(r)
			r.expectEnd(c.name)
			eventually(t, "the breach is counted", func() bool { return hostStatus(t, l).Breaches > before })
			r.close()
		})
		if c.sends {
			stuck++
		}
	}
	survives(t, l, files)
	// What was ordered before a breach is finished, or its client, who is nobody here, given up after the stall time-out; the other
	// leases end.
	eventually(t, "the other leases are over", func() bool { return hostStatus(t, l).Leases == stuck })
	stopHost(t, l, syscall.SIGKILL) // which does not wait for the stuck ones
	if err := l.StartHost(); err != nil {
		t.Fatal(err)
	}
	waitArm(t, l, lab.Lease)
	restartServer(t, l, lab.Offload) // an honest guest finds its channel again
	fetch(t, l, lab.Offload, "10m.mp4", files.files["10m.mp4"])
	expectSends(t, l, lab.Offload, 1)
}

// Floods: so many frames of each kind, so much memory and so many bytes of log for all of them.
const (
	floodFrames    = 200_000
	restartFrames  = 20_000 // where each frame begins a session
	maxGrowthBytes = 64 << 20
	maxLogBytes    = 256 << 10
)

// TestHostileFlood: whatever a guest floods its channel with, the daemon's memory stays bounded and other channels are served meanwhile.
func TestHostileFlood(t *testing.T) {
	l, files := newHostileLab(t)
	for range 3 { // what the daemon needs for its work is not the flood's
		fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	}
	ref := fileRef(t, files, "4k.m4s")
	random := rand.NewChaCha8([32]byte{1})
	noise := make([]byte, 1<<16)
	_, _ = random.Read(noise)
	base := residentBytes(t, l)
	for _, f := range []struct {
		name   string
		frames int
		read   bool
		frame  func(session, i uint32) []byte
	}{
		{"PING unread", floodFrames, false, func(s, i uint32) []byte { return wire.Append(nil, s, 0, 0, wire.Ping{Token: uint64(i)}) }},
		{"STAT unread", floodFrames, false, func(s, i uint32) []byte {
			return wire.Append(nil, s, 16+i, 0, wire.Stat{Share: "media", Path: "4k.m4s"})
		}},
		{"STAT", floodFrames, true, func(s, i uint32) []byte {
			return wire.Append(nil, s, 16+i, 0, wire.Stat{Share: "media", Path: fmt.Sprintf("missing/%d", i)})
		}},
		{"READ", floodFrames, true, func(s, i uint32) []byte {
			return wire.Append(nil, s, 16+i, 0, wire.Read{File: ref, Count: uint32(ref.Size)})
		}},
		{"HANDOVER of others", floodFrames, true, func(s, i uint32) []byte {
			return wire.Append(nil, s, 16+i, 0, wire.Handover{State: forged(netip.MustParseAddrPort("10.87.0.3:80"), uint16(i)|1)})
		}},
		{"DATA of no lease", floodFrames, true, func(s, i uint32) []byte { return wire.Append(nil, s, 16+i, 0, wire.Data{Data: noise[:100]}) }},
		{"GREET", restartFrames, true, func(_, _ uint32) []byte { return wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version}) }},
		{"noise", floodFrames, true, func(_, i uint32) []byte { at := i % (1<<16 - 100); return noise[at : at+100] }},
	} {
		t.Run(f.name, func(t *testing.T) {
			logged := logBytes(t, l)
			stop := make(chan struct{})
			var honest sync.WaitGroup
			served := 0
			honest.Go(func() {
				c := dial(t, l, lab.Lease)
				for {
					if !c.get("tablet/1 (1).m4s", files.files["tablet/1 (1).m4s"]) {
						return
					}
					served++
					select {
					case <-stop:
						return
					default:
					}
				}
			})
			flood(t, l, lab.Offload, f.frames, f.read, f.frame)
			close(stop)
			honest.Wait()
			grown := residentBytes(t, l) - base
			t.Logf("%d responses of the other channel meanwhile, memory grown by %d KiB since the first flood", served, grown>>10)
			if grown > maxGrowthBytes {
				t.Errorf("the daemon has grown by %d bytes", grown)
			}
			if n := logBytes(t, l) - logged; n > maxLogBytes {
				t.Errorf("the daemon has logged %d bytes, want %d at most", n, maxLogBytes)
			}
		})
	}
	survives(t, l, files)
	if s := serverStats(t, l, lab.Lease); s.Counts.Lost != 0 {
		t.Errorf("%+v; want no lease of the other channel lost", s)
	}
	noLeasesOfHost(t, l)
	restartServer(t, l, lab.Offload)
	fetch(t, l, lab.Offload, "10m.mp4", files.files["10m.mp4"])
}

// TestHostileRestarts: a guest that begins a new session, or a new connection, again and again does not fill the log.
func TestHostileRestarts(t *testing.T) {
	l, files := newHostileLab(t)
	const restarts = 5000
	for _, c := range []struct {
		name string
		run  func(r *rogue) *rogue
	}{
		{"sessions", func(r *rogue) *rogue {
			r.write(wire.Append(nil, 0, 0, 0, wire.Greet{Version: wire.Version}))
			for {
				header, _, err := r.frames.Sync()
				must(t, err)
				if header.Session != r.session {
					r.session = header.Session
					r.write(wire.Append(nil, r.session, 0, 0, wire.Ready{Version: wire.Version}))
					return r
				}
			}
		}},
		{"connections", func(r *rogue) *rogue {
			next := newRogue(t, l, lab.Offload)
			r.close()
			return next
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := logBytes(t, l)
			r := newRogue(t, l, lab.Offload)
			for range restarts {
				r = c.run(r)
			}
			r.close()
			if n := logBytes(t, l) - before; n > maxLogBytes {
				t.Errorf("%d restarts have logged %d bytes, want %d at most", restarts, n, maxLogBytes)
			}
		})
	}
	survives(t, l, files)
}

// residentBytes is the daemon's memory (VmRSS).
func residentBytes(t *testing.T, l *lab.Lab) int {
	t.Helper()
	found := processes(func(p process) bool { return strings.Contains(p.cmdline, l.Dir+"/host.toml") })
	if len(found) != 1 {
		t.Fatalf("host daemons: %v, want one", found)
	}
	text, err := os.ReadFile("/proc/" + found[0].pid + "/status")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// logBytes is the size of the daemon's log.
func logBytes(t *testing.T, l *lab.Lab) int64 {
	t.Helper()
	info, err := os.Stat(l.LogPath("host"))
	must(t, err)
	return info.Size()
}
