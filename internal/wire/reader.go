package wire

import (
	"bytes"
	"io"
	"slices"
)

// readBufferSize holds a few of the largest frames, so that one read(2) can fetch many small ones.
const readBufferSize = 4 * (HeaderSize + MaxPayload)

// Reader takes frames off a stream. It is not safe for concurrent use.
type Reader struct {
	src   io.Reader
	buf   []byte
	r, w  int    // buf[r:w] is unread
	opens []Type // what Sync looks for
}

// NewHostReader reads what a guest sends: it synchronizes at GREET and READY.
func NewHostReader(src io.Reader) *Reader { return newReader(src, TypeGreet, TypeReady) }

// NewGuestReader reads what a host sends: it synchronizes at HELLO.
func NewGuestReader(src io.Reader) *Reader { return newReader(src, TypeHello) }

func newReader(src io.Reader, opens ...Type) *Reader {
	return &Reader{src: src, buf: make([]byte, readBufferSize), opens: opens}
}

// Next returns the next frame. The payload is valid until the following call. An error that matches ErrFormat means that the stream is out
// of step: Sync finds the next session in it. Other errors come from the stream.
func (r *Reader) Next() (Header, []byte, error) {
	if err := r.fill(HeaderSize); err != nil {
		return Header{}, nil, err
	}
	h, err := parseHeader(r.buf[r.r:r.w])
	if err != nil {
		return h, nil, err
	}
	size := HeaderSize + int(h.Length)
	if err := r.fill(size); err != nil {
		return h, nil, err
	}
	payload := r.buf[r.r+HeaderSize : r.r+size : r.r+size]
	r.r += size
	return h, payload, nil
}

// Buffered returns the next frame, like Next, if the stream has given all of it already; otherwise ok is false.
func (r *Reader) Buffered() (h Header, payload []byte, ok bool, err error) {
	if r.w-r.r < HeaderSize {
		return h, nil, false, nil
	}
	h, err = parseHeader(r.buf[r.r:r.w])
	if err != nil || r.w-r.r < HeaderSize+int(h.Length) {
		return h, nil, false, err
	}
	h, payload, err = r.Next()
	return h, payload, err == nil, err
}

// Fill adds what one call of read gives to what Buffered looks at, and returns the error of read. The payload that was returned last is not valid any more.
// What the stream gives while read is being called belongs to this call: Fill and the other methods must not be called meanwhile.
func (r *Reader) Fill(read func(p []byte) (int, error)) error {
	r.makeRoom()
	n, err := read(r.buf[r.w:])
	r.w += n
	return err
}

// Rest returns a copy of what the stream has given and no method has returned.
func (r *Reader) Rest() []byte { return bytes.Clone(r.buf[r.r:r.w]) }

// Sync drops bytes until a frame begins that opens a session towards this reader and is valid as a whole, and returns this frame, like
// Next. The bytes of an unfinished frame of a dead session are searched too. After an error of the stream, Sync may be called again.
func (r *Reader) Sync() (Header, []byte, error) {
	for {
		at := bytes.Index(r.buf[r.r:r.w], []byte(magicPrefix))
		switch {
		case at < 0:
			// Keep what may be the beginning of a frame with a magic.
			r.r = max(r.r, r.w-(HeaderSize+len(magicPrefix)-1))
			if err := r.read(); err != nil {
				return Header{}, nil, err
			}
			continue
		case at < HeaderSize: // a magic whose header is lost
			r.r += at + 1
			continue
		}
		r.r += at - HeaderSize
		if h, err := parseHeader(r.buf[r.r:r.w]); err == nil && slices.Contains(r.opens, h.Type) && h.Length <= maxOpening {
			size := HeaderSize + int(h.Length)
			if err := r.fill(size); err != nil {
				return Header{}, nil, err
			}
			payload := r.buf[r.r+HeaderSize : r.r+size : r.r+size]
			if _, err := Parse(h.Type, payload); err == nil {
				r.r += size
				return h, payload, nil
			}
		}
		// Not a frame: only its magic is passed over, since the frame that is looked for may begin in what its length claims.
		r.r += HeaderSize + 1
	}
}

// fill makes at least n bytes available in buf[r.r:r.w].
func (r *Reader) fill(n int) error {
	for r.w-r.r < n {
		if err := r.read(); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom leaves room for the rest of the frame that has begun, at least.
func (r *Reader) makeRoom() {
	switch {
	case r.r == r.w:
		r.r, r.w = 0, 0
	case len(r.buf)-r.r < HeaderSize+MaxPayload || r.w == len(r.buf):
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
}

// read adds what one Read of the stream gives.
func (r *Reader) read() error {
	r.makeRoom()
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
