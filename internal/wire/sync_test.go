package wire

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func wantSync(t *testing.T, r *Reader, c messageCase) {
	t.Helper()
	h, payload, err := r.Sync()
	if err != nil {
		t.Fatalf("Sync does not find %s: %v", c.name, err)
	}
	if diff := cmp.Diff(c.header(), h); diff != "" {
		t.Fatalf("%s: header (-want +got):\n%s", c.name, diff)
	}
	if !bytes.Equal(payload, c.payload()) {
		t.Fatalf("%s: the payload differs", c.name)
	}
	if cap(payload) != len(payload) {
		t.Fatalf("%s: who appends to the payload writes into the buffer", c.name)
	}
}

// TestLongestOpening: a search that waited for more than the longest frame with a magic could wait for bytes that never come.
func TestLongestOpening(t *testing.T) {
	longest := 0
	for _, m := range []Message{Greet{}, Hello{}, Ready{}} {
		longest = max(longest, len(m.appendTo(nil)))
	}
	if longest != maxOpening {
		t.Errorf("the longest payload with a magic has %d bytes, not %d", longest, maxOpening)
	}
}

func concat(parts ...[]byte) []byte { return slices.Concat(parts...) }

// changed returns frame with v at off.
func changed(frame []byte, off int, v ...byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame[off:], v)
	return frame
}

// TestSync feeds streams of unknown history. wants is what Sync must find, one call after the other, before the end of the stream.
func TestSync(t *testing.T) {
	var (
		greet  = messageCase{name: "greet", msg: Greet{Version: Version}}
		ready  = messageCase{name: "ready", msg: Ready{Version: Version}}
		hello  = messageCase{name: "hello", msg: Hello{Version: Version, Window: 1 << 18, MaxLeases: 100}}
		second = messageCase{name: "second hello", msg: Hello{Version: Version, Window: 1 << 19, MaxLeases: 200}}
		data   = Append(nil, testSession, testLease, FlagMore, Data{Data: bytes.Repeat([]byte("media"), 1000)})
		ping   = Append(nil, testSession, 0, 0, Ping{Token: 1})
		sample = "SPILLWAY"
	)
	inData := func(frame []byte) []byte { return Append(nil, testSession, testLease, 0, Data{Data: frame}) }
	for _, c := range []struct {
		name   string
		host   bool // which end reads
		stream []byte
		wants  []messageCase
	}{
		{"nothing", false, nil, nil},
		{"at once", false, hello.frame(), []messageCase{hello}},
		{"garbage before", false, concat(bytes.Repeat([]byte{0xff}, 999), hello.frame()), []messageCase{hello}},
		{"zeros before", false, concat(make([]byte, 999), hello.frame()), []messageCase{hello}},
		{"less garbage than a header", false, concat([]byte("xyz"), hello.frame()), []messageCase{hello}},
		{"more garbage than the buffer", false, concat(bytes.Repeat([]byte(sample), readBufferSize), hello.frame()), []messageCase{hello}},
		{"whole frames before", false, concat(data, ping, data, hello.frame()), []messageCase{hello}},
		{"a frame without its beginning", false, concat(data[777:], hello.frame()), []messageCase{hello}},
		{"a frame without its end", false, concat(data[:777], hello.frame()), []messageCase{hello}},
		{"a frame without its payload", false, concat(data[:HeaderSize], hello.frame()), []messageCase{hello}},
		{"a header without its end", false, concat(data[:HeaderSize-1], hello.frame()), []messageCase{hello}},
		{"two", false, concat(hello.frame(), second.frame()), []messageCase{hello, second}},
		{"two with frames between", false, concat(hello.frame(), data, ping, second.frame()), []messageCase{hello, second}},

		{"the host takes GREET and READY", true, concat(ping, greet.frame(), ready.frame()), []messageCase{greet, ready}},
		{"the host takes READY before GREET", true, concat(ping, ready.frame(), greet.frame()), []messageCase{ready, greet}},
		{"the host takes no HELLO", true, concat(hello.frame(), greet.frame()), []messageCase{greet}},
		{"the guest takes no GREET", false, concat(greet.frame(), hello.frame()), []messageCase{hello}},
		{"the guest takes no READY", false, concat(ready.frame(), hello.frame()), []messageCase{hello}},

		{"magic without header", false, concat([]byte(magicHello), hello.frame()), []messageCase{hello}},
		{"magic with a part of its header", false, concat(hello.frame()[5:], second.frame()), []messageCase{second}},
		{"magic repeated", false, concat(bytes.Repeat([]byte(magicHello), 50), hello.frame()), []messageCase{hello}},
		{"magic without its end", false, concat(hello.frame()[:HeaderSize+magicSize-1], second.frame()), []messageCase{second}},
		{"magic in lower case", false, concat(changed(hello.frame(), HeaderSize, 's'), second.frame()), []messageCase{second}},
		{"magic under an unknown type", false, concat(changed(hello.frame(), 4, 7), second.frame()), []messageCase{second}},
		{"magic under a type without it", false, concat(changed(hello.frame(), 4, byte(TypePing)), second.frame()), []messageCase{second}},
		{"HELLO's magic under GREET", true, concat(changed(hello.frame(), 4, byte(TypeGreet)), greet.frame()), []messageCase{greet}},
		{"GREET's magic under READY", true, concat(changed(ready.frame(), HeaderSize, []byte(magicGreet)...), greet.frame()), []messageCase{greet}},
		{"magic with flags", false, concat(changed(hello.frame(), 5, 1), second.frame()), []messageCase{second}},
		{"magic with reserved bytes", false, concat(changed(hello.frame(), 6, 1), second.frame()), []messageCase{second}},
		{"magic with id", false, concat(changed(hello.frame(), 8, 1), second.frame()), []messageCase{second}},
		{"magic without session", false, concat(changed(hello.frame(), 12, 0, 0, 0, 0), second.frame()), []messageCase{second}},
		{"GREET with a session", true, concat(changed(greet.frame(), 12, 1), ready.frame()), []messageCase{ready}},

		// Wrong lengths: the frame is skipped as soon as its header is there, and nothing behind it is lost.
		{"length too large for any frame", false, concat(changed(hello.frame(), 0, 1, 0, 1), second.frame()), []messageCase{second}},
		{"length of a large frame", false, concat(changed(hello.frame(), 0, 0, 0, 1), second.frame()), []messageCase{second}},
		{"length above by 38", false, concat(changed(hello.frame(), 0, 64), second.frame()), []messageCase{second}},
		{"length above by 1", false, concat(changed(hello.frame(), 0, 27), second.frame()), []messageCase{second}},
		{"length below by 1", false, concat(changed(hello.frame(), 0, 25), second.frame()), []messageCase{second}},
		{"length 0", false, concat(changed(hello.frame(), 0, 0), second.frame()), []messageCase{second}},
		{"magic cut, length above", false, concat(changed(hello.frame(), 0, 64)[:HeaderSize+magicSize], second.frame()), []messageCase{second}},

		// A magic at the beginning of a client's bytes stands under DATA's header: it opens nothing, also while the stream is searched.
		{"magic as a client's bytes", false, concat(inData([]byte(magicHello)), hello.frame()), []messageCase{hello}},
		{"magics as a client's bytes", true, concat(inData([]byte(magicGreet+magicReady)), greet.frame()), []messageCase{greet}},
		{"magic as a client's last bytes", false, concat(inData([]byte("GET / "+magicHello)), hello.frame()), []messageCase{hello}},
	} {
		for cut, wrap := range map[string]func(io.Reader) io.Reader{
			"whole":    func(r io.Reader) io.Reader { return r },
			"one byte": iotest.OneByteReader,
			"half":     iotest.HalfReader,
		} {
			t.Run(c.name+"/"+cut, func(t *testing.T) {
				src := wrap(bytes.NewReader(c.stream))
				r := NewGuestReader(src)
				if c.host {
					r = NewHostReader(src)
				}
				for _, want := range c.wants {
					wantSync(t, r, want)
				}
				if h, _, err := r.Sync(); err != io.EOF {
					t.Fatalf("after the last: %+v, %v", h, err)
				}
			})
		}
	}
}

// TestSyncInStep shows that the reader in step goes by the lengths alone: whole frames of every kind with a magic, as a client may send them,
// are DATA and nothing else, and Sync afterwards begins behind them.
func TestSyncInStep(t *testing.T) {
	first := messageCase{name: "hello", msg: Hello{Version: Version}}
	second := messageCase{name: "hello", msg: Hello{Version: 2}}
	forged := Append(nil, 0xbad, 0, 0, Hello{Version: Version, MaxLeases: 0xbad})
	forged = append(forged, messageCase{msg: Greet{}}.frame()...)
	data := messageCase{name: "data", msg: Data{Data: forged}}
	r := NewGuestReader(bytes.NewReader(concat(first.frame(), data.frame(), data.frame(), second.frame())))
	wantSync(t, r, first)
	wantNext(t, r, data)
	wantNext(t, r, data)
	wantSync(t, r, second)
}

// TestSyncFindsSwallowed is the death of a daemon in the middle of a DATA frame: the reader in step waits for the rest of it and takes the
// next daemon's HELLO for a part of it, until the silence ends the session by a deadline. Nothing of it is lost to Sync.
func TestSyncFindsSwallowed(t *testing.T) {
	hello := messageCase{name: "hello", msg: Hello{Version: Version}}
	second := messageCase{name: "second", msg: Hello{Version: 2}}
	large := messageCase{name: "data", msg: Data{Data: bytes.Repeat([]byte{'x'}, MaxData)}}
	for _, cut := range []int{HeaderSize, HeaderSize + 1, HeaderSize + 5000, len(large.frame()) - len(second.frame()) - 1} {
		r := NewGuestReader(&script{steps: []any{
			concat(hello.frame(), large.frame(), large.frame()[:cut]), second.frame(), os.ErrDeadlineExceeded,
		}})
		wantSync(t, r, hello)
		wantNext(t, r, large)
		if _, _, err := r.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		wantSync(t, r, second)
	}
}

// TestSyncPartial gives each prefix of a frame in a read of its own, with an error of the stream between: Sync tells of the error, forgets
// nothing, and takes no byte behind the frame.
func TestSyncPartial(t *testing.T) {
	ready := messageCase{name: "ready", msg: Ready{Version: Version}}
	greet := messageCase{name: "greet", msg: Greet{Version: Version}}
	frame := ready.frame()
	for cut := range len(frame) {
		r := NewHostReader(&script{steps: []any{
			concat([]byte("garbage"), frame[:cut]), os.ErrDeadlineExceeded, concat(frame[cut:], greet.frame()),
		}})
		if h, payload, err := r.Sync(); !errors.Is(err, os.ErrDeadlineExceeded) || payload != nil {
			t.Fatalf("cut at %d: %+v, %v", cut, h, err)
		}
		wantSync(t, r, ready)
		wantNext(t, r, greet)
	}
}

// TestSyncProperty: whatever whole frames and torn ones a stream begins with, the HELLO behind them is found.
//
// A HELLO whose magic is whole and whose last bytes are missing cannot be told from a whole one; it takes the first bytes of the HELLO behind
// it. For this case the guest's GREET brings another HELLO (docs/wire.md, Synchronization), and that one must be found.
func TestSyncProperty(t *testing.T) {
	cases := smallCases()
	const newSession = 0x00c0ffee
	hello := Append(nil, newSession, 0, 0, Hello{Version: Version, Window: 1, MaxLeases: 1})
	rapid.Check(t, func(t *rapid.T) {
		var dead, last []byte
		for range rapid.IntRange(1, 12).Draw(t, "frames") {
			last = drawFrame(t, cases)
			dead = append(dead, last...)
		}
		from := rapid.IntRange(0, len(dead)).Draw(t, "from")
		missing := rapid.IntRange(0, len(last)).Draw(t, "missing")
		dead = dead[min(from, len(dead)-missing) : len(dead)-missing]
		whole := append(bytes.Clone(dead), hello...)
		if at := bytes.LastIndex(dead, []byte(magicHello)); at >= 0 && len(dead)-at < maxOpening {
			whole = append(whole, hello...)
		}
		cuts := rapid.SliceOfN(rapid.IntRange(0, len(whole)), 0, 8).Draw(t, "cuts")
		slices.Sort(cuts)
		r := NewGuestReader(&script{steps: pieces(whole, cuts...)})
		for {
			h, payload, err := r.Sync()
			if err != nil {
				t.Fatalf("the HELLO was not found: %v", err)
			}
			if h.Type != TypeHello {
				t.Fatalf("Sync took %v for a HELLO", h.Type)
			}
			if h.Session == newSession {
				if !bytes.Equal(payload, hello[HeaderSize:]) {
					t.Fatalf("payload % x", payload)
				}
				return
			}
		}
	})
}

// drawFrame gives a frame of the table, or DATA with parts of frames and magics in it.
func drawFrame(t *rapid.T, cases []messageCase) []byte {
	c := rapid.SampledFrom(cases).Draw(t, "case")
	if !rapid.Bool().Draw(t, "as DATA") {
		return c.frame()
	}
	inner := c.frame()
	n := rapid.IntRange(1, len(inner)).Draw(t, "length")
	at := rapid.IntRange(0, len(inner)-n).Draw(t, "at")
	prefix := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "prefix")
	return Append(nil, testSession, testLease, 0, Data{Data: append(prefix, inner[at:at+n]...)})
}

// BenchmarkSyncHostile searches what a hostile guest sends to keep the host busy: magics without frames.
func BenchmarkSyncHostile(b *testing.B) {
	for name, magic := range map[string]string{"greet": magicGreet, "ready": magicReady, "hello": magicHello, "spaces": "                "} {
		b.Run(name, func(b *testing.B) {
			flood := bytes.Repeat([]byte(magic), readBufferSize/magicSize)
			b.SetBytes(int64(len(flood)))
			for b.Loop() {
				if _, _, err := NewHostReader(bytes.NewReader(flood)).Sync(); err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}
