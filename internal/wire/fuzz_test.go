package wire

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// maxSeed keeps the corpus small, bytes: the fuzzer would spend its time on the content of the largest frames.
const maxSeed = 256

// FuzzParse takes any payload as one of any type. What parses must be within the limits and encode to the same bytes: the format has
// one encoding for each message, so nothing that one side refuses can hide in what the other accepts.
func FuzzParse(f *testing.F) {
	for _, c := range messageCases() {
		if payload := c.payload(); len(payload) <= maxSeed {
			f.Add(uint8(c.msg.Type()), payload)
		}
	}
	for _, c := range malformedCases() {
		if typ, payload := c.frame(); len(payload) <= maxSeed {
			f.Add(uint8(typ), payload)
		}
	}
	f.Fuzz(func(t *testing.T, typ uint8, payload []byte) {
		before := bytes.Clone(payload)
		m, err := Parse(Type(typ), payload)
		if !bytes.Equal(payload, before) {
			t.Fatal("Parse changed the payload")
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) || m != nil {
				t.Fatalf("%T, error %v", m, err)
			}
			return
		}
		if got := m.Type(); got != Type(typ) {
			t.Fatalf("Parse of %v gives %v", Type(typ), got)
		}
		if len(payload) > MaxPayload {
			t.Fatalf("%v of %d bytes", m.Type(), len(payload))
		}
		if again := m.appendTo(nil); !bytes.Equal(again, payload) {
			t.Fatalf("%v encodes to other bytes:\n% x\n% x", m.Type(), payload, again)
		}
	})
}

// FuzzReader reads any stream: frame by frame, and with a search wherever it is out of step. Every byte of the stream is either part of a frame
// that is returned as it stands there or passed over by a search, in order; and the frames are the same in whatever pieces the stream comes.
func FuzzReader(f *testing.F) {
	var whole []byte
	for _, c := range messageCases() {
		if frame := c.frame(); len(frame) <= maxSeed {
			f.Add(frame, false)
			whole = append(whole, frame...)
		}
	}
	f.Add(whole, true)
	f.Add(whole[7:], false)
	hello := messageCase{msg: Hello{Version: Version}}.frame()
	f.Add(concat(hello[:len(hello)-3], hello, []byte(magicHello), hello), false)
	f.Add(concat(hello, make([]byte, HeaderSize), hello), false)
	f.Fuzz(func(t *testing.T, stream []byte, host bool) {
		frames := readAll(t, bytes.NewReader(stream), host)
		rest := stream
		for _, frame := range frames {
			at := bytes.Index(rest, frame)
			if at < 0 {
				t.Fatalf("a frame that is not in the stream: % x", frame)
			}
			rest = rest[at+len(frame):]
		}
		again := readAll(t, iotest.OneByteReader(bytes.NewReader(stream)), host)
		if !slices.EqualFunc(frames, again, bytes.Equal) {
			t.Fatalf("%d frames at once, %d byte by byte, or other ones", len(frames), len(again))
		}
	})
}

// readAll reads src to its end and gives the frames, put together again from what the reader says of them.
func readAll(t *testing.T, src io.Reader, host bool) [][]byte {
	r, opens := NewGuestReader(src), []Type{TypeHello}
	if host {
		r, opens = NewHostReader(src), []Type{TypeGreet, TypeReady}
	}
	var frames [][]byte
	for searching := false; ; {
		next := r.Next
		if searching {
			next = r.Sync
		}
		h, payload, err := next()
		switch {
		case err == io.EOF && !searching: // a frame that is longer than the stream may hide others
			searching = true
			continue
		case err == io.EOF:
			return frames
		case errors.Is(err, ErrFormat) && !searching:
			searching = true
			continue
		case err != nil:
			t.Fatal(err)
		}
		if int(h.Length) != len(payload) || h.Length > MaxPayload || kindOf(h.Type).name == "" {
			t.Fatalf("header %+v with %d bytes", h, len(payload))
		}
		if searching {
			if _, err := Parse(h.Type, payload); err != nil || !slices.Contains(opens, h.Type) {
				t.Fatalf("Sync gives %v: %v", h.Type, err)
			}
			searching = false
		}
		frames = append(frames, Append(nil, h.Session, h.ID, h.Flags, rawPayload{h.Type, payload}))
	}
}

// rawPayload is a message that was not parsed.
type rawPayload struct {
	typ   Type
	bytes []byte
}

func (p rawPayload) Type() Type               { return p.typ }
func (p rawPayload) appendTo(b []byte) []byte { return append(b, p.bytes...) }
