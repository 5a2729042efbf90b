package guest

// inbox holds the client's bytes that came through the host and that the server has not read yet.
type inbox struct {
	buf  []byte
	read int // buf[:read] is consumed
}

func (b *inbox) len() int { return len(b.buf) - b.read }

// add appends p. What is consumed makes room before the buffer grows: an upload may never find it quite empty.
func (b *inbox) add(p []byte) {
	if len(b.buf)+len(p) > cap(b.buf) && b.read >= b.len() {
		b.buf, b.read = b.buf[:copy(b.buf, b.buf[b.read:])], 0
	}
	b.buf = append(b.buf, p...)
}

// take moves up to len(p) bytes into p. An idle connection keeps no large buffer.
func (b *inbox) take(p []byte) int {
	n := copy(p, b.buf[b.read:])
	b.read += n
	if b.read == len(b.buf) && cap(b.buf) > 4<<10 {
		b.buf, b.read = nil, 0
	}
	return n
}
