package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// script is a stream that gives one of its pieces, or an error, at each Read. It goes on after an error, as a channel with deadlines does.
type script struct {
	steps []any // []byte or error
	reads int
}

func (s *script) Read(p []byte) (int, error) {
	s.reads++
	for len(s.steps) > 0 {
		switch step := s.steps[0].(type) {
		case []byte:
			n := copy(p, step)
			if s.steps[0] = step[n:]; n == len(step) {
				s.steps = s.steps[1:]
			}
			return n, nil
		case error:
			s.steps = s.steps[1:]
			return 0, step
		}
	}
	return 0, io.EOF
}

// pieces cuts b at the given places.
func pieces(b []byte, cuts ...int) []any {
	var steps []any
	at := 0
	for _, cut := range append(cuts, len(b)) {
		if cut > at {
			steps = append(steps, b[at:cut])
			at = cut
		}
	}
	return steps
}

// smallCases are the cases whose frames are short enough to try every byte of them.
func smallCases() []messageCase {
	var small []messageCase
	for _, c := range messageCases() {
		if len(c.frame()) < 256 {
			small = append(small, c)
		}
	}
	return small
}

func stream(cases []messageCase) []byte {
	var b []byte
	for _, c := range cases {
		b = Append(b, c.session(), c.id(), c.flags, c.msg)
	}
	return b
}

// wantFrames reads just these frames, then the stream's end.
func wantFrames(t *testing.T, r *Reader, cases []messageCase) {
	t.Helper()
	for _, c := range cases {
		wantNext(t, r, c)
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Fatalf("after the last frame: %v", err)
	}
	if r.r < r.w {
		t.Fatal("something is left")
	}
}

func wantNext(t *testing.T, r *Reader, c messageCase) {
	t.Helper()
	h, payload, err := r.Next()
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
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

func TestReaderSplitAtEveryByte(t *testing.T) {
	cases := smallCases()
	whole := stream(cases)
	for cut := range len(whole) + 1 {
		wantFrames(t, NewHostReader(&script{steps: pieces(whole, cut)}), cases)
	}
}

func TestReaderPieces(t *testing.T) {
	cases := messageCases()
	whole := stream(cases)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":              func(r io.Reader) io.Reader { return r },
		"one byte":           iotest.OneByteReader,
		"half":               iotest.HalfReader,
		"error with data":    iotest.DataErrReader,
		"one byte and error": func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.OneByteReader(r)) },
	} {
		t.Run(name, func(t *testing.T) {
			wantFrames(t, NewGuestReader(wrap(bytes.NewReader(whole))), cases)
		})
	}
}

// TestReaderReadsMany shows that one read of the stream fetches all that is there.
func TestReaderReadsMany(t *testing.T) {
	cases := smallCases()
	src := &script{steps: pieces(stream(cases))}
	r := NewHostReader(src)
	if r.r < r.w {
		t.Error("something is there before the first read")
	}
	for i, c := range cases {
		wantNext(t, r, c)
		if want := i < len(cases)-1; (r.r < r.w) != want {
			t.Errorf("after frame %d of %d bytes are left: %t", i+1, len(cases), !want)
		}
	}
	if src.reads != 1 {
		t.Errorf("%d reads for %d frames", src.reads, len(cases))
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
}

// TestReaderWraps sends several times what the buffer holds, in frames of every size up to the largest and in reads of every size.
func TestReaderWraps(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	content := make([]byte, MaxData)
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	var cases []messageCase
	for size := 0; size < 8*readBufferSize; {
		n := MaxData
		if len(cases)%3 > 0 {
			n = 1 + random.IntN(MaxData)
		}
		at := random.IntN(MaxData - n + 1)
		cases = append(cases, messageCase{name: "data", msg: Data{Data: content[at : at+n]}})
		size += HeaderSize + n
	}
	whole := stream(cases)
	for _, limit := range []int{len(whole), readBufferSize + 1, MaxPayload + HeaderSize, 4096, 1460} {
		var cuts []int
		for at := 0; at < len(whole); at += 1 + random.IntN(limit) {
			cuts = append(cuts, at)
		}
		wantFrames(t, NewHostReader(&script{steps: pieces(whole, cuts...)}), cases)
	}
}

// TestReaderKeepsPlace shows that an error of the stream, such as a deadline, loses no byte.
func TestReaderKeepsPlace(t *testing.T) {
	cases := smallCases()
	whole := stream(cases)
	var steps []any
	for _, b := range whole {
		steps = append(steps, os.ErrDeadlineExceeded, []byte{b})
	}
	r := NewHostReader(&script{steps: steps})
	deadlines := 0
	for got := 0; got < len(cases); {
		h, payload, err := r.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ErrFormat) && payload == nil {
			deadlines++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if h != cases[got].header() || !bytes.Equal(payload, cases[got].payload()) {
			t.Fatalf("%s is not what was sent", cases[got].name)
		}
		got++
	}
	if deadlines != len(whole) {
		t.Errorf("%d deadlines, want %d", deadlines, len(whole))
	}
}

// TestReaderEnds cuts the stream within a frame: the error is the stream's own, and there is no payload.
func TestReaderEnds(t *testing.T) {
	broken := errors.New("broken")
	frame := Append(nil, testSession, testLease, 0, Data{Data: []byte("data")})
	for n := range frame {
		for _, last := range []error{io.EOF, broken} {
			r := NewHostReader(&script{steps: append(pieces(frame[:n]), last)})
			if _, payload, err := r.Next(); err != last || payload != nil {
				t.Errorf("after %d bytes: %d bytes of payload, error %v, want %v", n, len(payload), err, last)
			}
		}
	}
}

// TestReaderNoProgress shows that a stream that gives nothing and no error does not make the reader spin.
func TestReaderNoProgress(t *testing.T) {
	r := NewHostReader(&script{steps: []any{[]byte{}}})
	if _, _, err := r.Next(); err != io.ErrNoProgress {
		t.Errorf("Next: %v", err)
	}
	r = NewHostReader(&script{steps: []any{[]byte{}}})
	if _, _, err := r.Sync(); err != io.ErrNoProgress {
		t.Errorf("Sync: %v", err)
	}
}

// TestReaderStaysAtBadHeader shows that Next takes nothing of what it cannot read, so that Sync can search it.
func TestReaderStaysAtBadHeader(t *testing.T) {
	hello := messageCase{name: "hello", msg: Hello{Version: Version}}
	r := NewGuestReader(bytes.NewReader(append(make([]byte, HeaderSize), hello.frame()...)))
	for range 2 {
		if _, payload, err := r.Next(); !errors.Is(err, ErrFormat) || payload != nil {
			t.Fatalf("%d bytes of payload, error %v", len(payload), err)
		}
	}
	wantSync(t, r, hello)
}
