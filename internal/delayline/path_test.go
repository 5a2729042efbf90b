package delayline

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"spillway/internal/testkit"
)

// exact compares counters without those of the machine's speed.
var exact = cmpopts.IgnoreFields(Counters{}, "LateMean", "LateMax")

// send sends n numbered datagrams so large that each is a packet of bytes.
func send(t *testing.T, from *net.UDPConn, to net.Addr, n, bytes int) {
	t.Helper()
	const headers = 20 + 8 // IPv4, UDP
	datagram := make([]byte, bytes-headers)
	for i := range n {
		binary.BigEndian.PutUint32(datagram, uint32(i))
		if _, err := from.WriteTo(datagram, to); err != nil {
			t.Fatal(err)
		}
	}
}

// receive reads n datagrams and returns their numbers.
func receive(t *testing.T, at *net.UDPConn, n int) (numbers []int) {
	t.Helper()
	_ = at.SetReadDeadline(time.Now().Add(patience))
	var datagram [2048]byte
	for range n {
		if _, _, err := at.ReadFrom(datagram[:]); err != nil {
			t.Fatalf("after %d of %d datagrams: %v", len(numbers), n, err)
		}
		numbers = append(numbers, int(binary.BigEndian.Uint32(datagram[:])))
	}
	return numbers
}

// waitFor waits until the counters are as wanted.
func waitFor(t *testing.T, r *rig, wantThere, wantBack Counters) {
	t.Helper()
	var diff string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		there, back := r.path.Counters()
		if diff = cmp.Diff([]Counters{wantThere, wantBack}, []Counters{there, back}, exact); diff == "" {
			return
		}
	}
	t.Errorf("counters (-want +got):\n%s", diff)
}

func upTo(n int) []int {
	var all []int
	for i := range n {
		all = append(all, i)
	}
	return all
}

// TestDelay: a question and its answer take twice the delay, in either family.
func TestDelay(t *testing.T) {
	const delay = 30 * time.Millisecond
	r := newRig(t, Config{Delay: delay}, true)
	r.start(t)
	for _, ends := range [][2]netip.Addr{{left4.Addr(), right4.Addr()}, {left6.Addr(), right6.Addr()}} {
		left, right := packetConn(t, r.left.Namespace, ends[0]), packetConn(t, r.right.Namespace, ends[1])
		for i := range 5 {
			began := time.Now()
			if _, err := left.WriteTo([]byte{0, 0, 0, byte(i)}, right.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, right, 1); got[0] != i {
				t.Errorf("datagram %d came, want %d", got[0], i)
			}
			if there := time.Since(began); there < delay {
				t.Errorf("%v: the way there took %v, want %v or more", ends, there, delay)
			}
			if _, err := right.WriteTo([]byte{0, 0, 0, byte(i)}, left.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			receive(t, left, 1)
			if both := time.Since(began); both < 2*delay {
				t.Errorf("%v: the way there and back took %v, want %v or more", ends, both, 2*delay)
			}
		}
	}
	for _, c := range r.bothCounters() {
		if c.LateMean <= 0 || c.LateMax < c.LateMean {
			t.Errorf("lateness is %v on average and %v at most", c.LateMean, c.LateMax)
		}
	}
}

// TestOrder: everything comes, in order and counted, in both directions at once.
func TestOrder(t *testing.T) {
	const n, bytes = 5000, 100
	r := newRig(t, Config{Delay: 5 * time.Millisecond, BitsPerSecond: 1e9}, false)
	r.start(t)
	left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
	for range 2 {
		send(t, left, right.LocalAddr(), n/2, bytes)
		send(t, right, left.LocalAddr(), n/2, bytes)
		for _, at := range []*net.UDPConn{left, right} {
			if got := receive(t, at, n/2); !slices.Equal(got, upTo(n/2)) {
				t.Errorf("datagrams came in the order %v", got)
			}
		}
	}
	want := Counters{Packets: n, Bytes: n * bytes}
	waitFor(t, r, want, want)
}

// TestRate: packets leave the line no faster than the rate allows.
func TestRate(t *testing.T) {
	const n, bytes, rate = 20, 1250, 1e6 // 10 ms each
	r := newRig(t, Config{BitsPerSecond: rate}, false)
	r.start(t)
	left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
	began := time.Now()
	send(t, left, right.LocalAddr(), n, bytes)
	receive(t, right, n)
	if took, want := time.Since(began), n*bytes*8*time.Second/rate; took < want {
		t.Errorf("%d bytes took %v, want %v or more", n*bytes, took, want)
	}
}

// TestBound: of packets that are all there when the line begins, those are dropped at the tail that the bound has no room for.
func TestBound(t *testing.T) {
	const n, bytes, room = 50, 1000, 10
	cfg := Config{BitsPerSecond: MinBitsPerSecond, QueueBytes: room * bytes} // 8 s a packet
	r := newRig(t, cfg, false)
	left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
	send(t, left, right.LocalAddr(), n, bytes)
	r.start(t)
	waitFor(t, r, Counters{QueueFull: n - room, UnderWay: room}, Counters{})
}

// TestLoss: a seed loses the same packets each time.
func TestLoss(t *testing.T) {
	const n, bytes = 1000, 100
	arrived := func(seed uint64) []int {
		cfg := Config{Loss: 0.1, Seed: seed}
		lostPackets := 0
		s := newSchedule(cfg, 0)
		for range n {
			if _, v := s.admit(0, bytes); v == lost {
				lostPackets++
			}
		}
		r := newRig(t, cfg, false)
		r.start(t)
		left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
		send(t, left, right.LocalAddr(), n, bytes)
		came := receive(t, right, n-lostPackets)
		waitFor(t, r, Counters{Packets: int64(len(came)), Bytes: int64(len(came)) * bytes, Lost: int64(lostPackets)}, Counters{})
		return came
	}
	first := arrived(7)
	if len(first) == n || !slices.IsSorted(first) {
		t.Errorf("%d of %d came, in order: %v", len(first), n, slices.IsSorted(first))
	}
	if again := arrived(7); !slices.Equal(first, again) {
		t.Error("the same seed loses other packets")
	}
	if slices.Equal(first, arrived(8)) {
		t.Error("another seed loses the same packets")
	}
}

// TestMTU: a packet that fills a device crosses, in either family; a larger one is refused by the sender's kernel.
func TestMTU(t *testing.T) {
	r := newRig(t, Config{Delay: time.Millisecond}, true)
	r.start(t)
	for _, c := range []struct {
		left, right netip.Addr
		headers     int
		level, opt  int
	}{
		{left4.Addr(), right4.Addr(), 20 + 8, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},
		{left6.Addr(), right6.Addr(), 40 + 8, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER},
	} {
		left, right := packetConn(t, r.left.Namespace, c.left), packetConn(t, r.right.Namespace, c.right)
		raw, err := left.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), c.level, c.opt, unix.IP_PMTUDISC_DO) }); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		full := make([]byte, defaultMTU-c.headers)
		rand.NewChaCha8([32]byte{1}).Read(full)
		if _, err := left.WriteTo(full, right.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_ = right.SetReadDeadline(time.Now().Add(patience))
		got := make([]byte, 2*defaultMTU)
		if n, _, err := right.ReadFrom(got); err != nil || !bytes.Equal(got[:n], full) {
			t.Errorf("%v: %d bytes came of %d, %v", c.left, n, len(full), err)
		}
		if _, err := left.WriteTo(append(full, 0), right.LocalAddr()); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%v: a packet that is too large: %v", c.left, err)
		}
	}
}

// TestTCP: a stream comes whole, over super-packets where there is no loss, and by single packets where there is; what is counted is what the line would
// have carried in both cases.
func TestTCP(t *testing.T) {
	content := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	for name, c := range map[string]struct {
		cfg   Config
		super bool
	}{
		"super-packets": {Config{Delay: 2 * time.Millisecond}, true},
		"rate":          {Config{Delay: 2 * time.Millisecond, BitsPerSecond: 1e9}, true},
		"loss":          {Config{Delay: 2 * time.Millisecond, Loss: 0.002, Seed: 3}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.cfg, true)
			r.start(t)
			for _, addr := range []netip.Addr{right4.Addr(), right6.Addr()} {
				there, _ := r.path.Counters()
				stream(t, r, addr, content)
				now, _ := r.path.Counters()
				const smallest = 40 // bytes of a packet's headers
				if n, want := now.Packets-there.Packets, int64(len(content)/(defaultMTU-smallest)); n < want {
					t.Errorf("%v: %d packets for %d bytes, want %d or more", addr, n, len(content), want)
				}
				if n, want := now.Bytes-there.Bytes, int64(len(content)); n < want {
					t.Errorf("%v: %d bytes on the line, want %d or more", addr, n, want)
				}
			}
			d := r.path.directions[0]
			d.mu.Lock()
			defer d.mu.Unlock()
			if (d.writes < d.count.Packets) != c.super {
				t.Errorf("%d packets crossed in %d pieces", d.count.Packets, d.writes)
			}
		})
	}
}

// stream sends content from left to right over TCP.
func stream(t *testing.T, r *rig, addr netip.Addr, content []byte) {
	t.Helper()
	l := r.right.Listen(t, "tcp", netip.AddrPortFrom(addr, 0).String())
	sums := make(chan [32]byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sums <- [32]byte{}
			return
		}
		h := sha256.New()
		_, _ = io.Copy(h, c)
		c.Close()
		sums <- [32]byte(h.Sum(nil))
	}()
	c := r.left.Dial(t, "tcp", l.Addr().String())
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case sum := <-sums:
		if sum != sha256.Sum256(content) {
			t.Errorf("%v: another content came", addr)
		}
	case <-time.After(patience):
		t.Fatalf("%v: the stream does not end", addr)
	}
}

// TestRefused: a packet for a device that is down is counted, and the path goes on.
func TestRefused(t *testing.T) {
	const n, bytes = 10, 100
	r := newRig(t, Config{Delay: time.Millisecond}, false)
	r.start(t)
	left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
	r.setDown(t, r.right)
	send(t, left, right.LocalAddr(), n, bytes)
	waitFor(t, r, Counters{Refused: n}, Counters{})
	if err := r.right.Up("line0"); err != nil {
		t.Fatal(err)
	}
	send(t, left, right.LocalAddr(), n, bytes)
	receive(t, right, n)
	waitFor(t, r, Counters{Refused: n, Packets: n, Bytes: n * bytes}, Counters{})
}

// TestEnd: when the path ends its devices are gone, with what was under way.
func TestEnd(t *testing.T) {
	r := newRig(t, Config{Delay: MaxDelay}, false)
	r.start(t)
	left, right := packetConn(t, r.left.Namespace, left4.Addr()), packetConn(t, r.right.Namespace, right4.Addr())
	send(t, left, right.LocalAddr(), 10, 100)
	waitFor(t, r, Counters{UnderWay: 10}, Counters{})
	r.stop(t)
	for _, ns := range r.namespaces() {
		if err := ns.Up("line0"); err == nil || !strings.Contains(err.Error(), "line0") {
			t.Errorf("%s: the device is still there: %v", ns.Name, err)
		}
	}
}

// TestUnused: a path that never runs is closed.
func TestUnused(t *testing.T) {
	r := newRig(t, Config{}, false)
	if err := r.path.Close(); err != nil {
		t.Error(err)
	}
	if err := r.left.Up("line0"); err == nil {
		t.Error("the device is still there")
	}
}

// TestDeviceGone: a path whose device is removed ends, and says why.
func TestDeviceGone(t *testing.T) {
	r := newRig(t, Config{Delay: time.Millisecond}, false)
	r.run()
	r.remove(t, r.right)
	select {
	case err := <-r.done:
		if !errors.Is(err, unix.EBADFD) || !strings.Contains(err.Error(), "device") {
			t.Errorf("the path ends with %v", err)
		}
	case <-time.After(patience):
		t.Error("the path does not end")
	}
}

func TestOpenDeviceFails(t *testing.T) {
	r := newRig(t, Config{}, false)
	r.start(t)
	err := r.left.Do(func() error {
		f, err := OpenDevice("line0", Config{})
		if err == nil {
			f.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "line0") {
		t.Errorf("a device that is there already: %v", err)
	}
	if f, err := OpenDevice("a-name-that-is-too-long", Config{}); err == nil {
		f.Close()
		t.Error("a name that is too long")
	}
}

// TestNewFails: a configuration that cannot be, and a file that is no device, are refused, and the files are closed.
func TestNewFails(t *testing.T) {
	testkit.CheckFDs(t)
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := open(), open()
	if _, err := New(Config{Loss: 2}, a, b); err == nil || !strings.Contains(err.Error(), "loss of 2") {
		t.Errorf("New says %v", err)
	}
	if err := a.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file was left open: %v", err)
	}
	if _, err := New(Config{}, open(), open()); err == nil || !strings.Contains(err.Error(), "no TUN device") {
		t.Errorf("New says %v", err)
	}
}
