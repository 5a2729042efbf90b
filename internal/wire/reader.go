package wire

import (
	"bytes"
	"io"
)

// readBufferSize holds a few of the largest frames, so that one read(2) can fetch many small ones.
const readBufferSize = 4 * (HeaderSize + MaxPayload)

// Reader takes frames off a stream. It is not safe for concurrent use.
type Reader struct {
	src    io.Reader
	buf    []byte
	r, w   int // buf[r:w] is unread
	magics [][]byte
}

// NewHostReader reads what a guest sends: it synchronizes at GREET and READY.
func NewHostReader(src io.Reader) *Reader { return newReader(src, magicGreet, magicReady) }

// NewGuestReader reads what a host sends: it synchronizes at HELLO.
func NewGuestReader(src io.Reader) *Reader { return newReader(src, magicHello) }

func newReader(src io.Reader, magics ...string) *Reader {
	r := &Reader{src: src, buf: make([]byte, readBufferSize)}
	for _, m := range magics {
		r.magics = append(r.magics, []byte(m))
	}
	return r
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

// Sync drops bytes until a frame begins that carries one of the reader's magics and is valid as a whole, and returns this frame, like
// Next. The bytes of an unfinished frame of a dead session are searched too.
func (r *Reader) Sync() (Header, []byte, error) {
	for {
		at := -1
		for _, m := range r.magics {
			if i := bytes.Index(r.buf[r.r:r.w], m); i >= 0 && (at < 0 || i < at) {
				at = i
			}
		}
		if at < HeaderSize {
			if at >= 0 { // a magic whose header is lost
				r.r += at + 1
				continue
			}
			// Keep what may be the beginning of a frame with a magic.
			r.r = max(r.r, r.w-(HeaderSize+magicSize-1))
			if err := r.read(); err != nil {
				return Header{}, nil, err
			}
			continue
		}
		r.r += at - HeaderSize
		h, err := parseHeader(r.buf[r.r:r.w])
		if err == nil && h.Length <= 64 { // no frame with a magic is longer
			if h, payload, err := r.Next(); err != nil {
				return h, payload, err
			} else if _, err := Parse(h.Type, payload); err == nil {
				return h, payload, nil
			}
			continue
		}
		r.r += HeaderSize + 1
	}
}

// Buffered tells whether another frame, or a part of one, has already been read from the stream.
func (r *Reader) Buffered() bool { return r.r < r.w }

// fill makes at least n bytes available in buf[r.r:r.w].
func (r *Reader) fill(n int) error {
	for r.w-r.r < n {
		if err := r.read(); err != nil {
			return err
		}
	}
	return nil
}

// read adds what one Read of the stream gives.
func (r *Reader) read() error {
	switch {
	case r.r == r.w:
		r.r, r.w = 0, 0
	case len(r.buf)-r.r < HeaderSize+MaxPayload || r.w == len(r.buf):
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
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
