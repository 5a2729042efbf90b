package guest

import (
	"bytes"
	"strconv"
	"time"

	"spillway/internal/wire"
)

// headHold is how long the head of a response may wait for its body. A server that writes a body writes it at once; one that does
// not (HEAD) is found out earlier, when it turns to reading.
//
// It is long for a server that is waiting for a CPU, and short for a person.
const headHold = 10 * time.Millisecond

// maxHead bounds what is looked at and held back; it travels in a SEND.
const maxHead = wire.MaxSendHeader

// headBody tells how many bytes must follow b if b is the head of an HTTP/1.x response with a declared length, with or without the first bytes
// of its body. Such a head is worth holding back for a moment: header bytes that are already on their way when the body comes would
// have to be acknowledged before a handover.
func headBody(b []byte) (missing int64, ok bool) {
	if len(b) > maxHead || !bytes.HasPrefix(b, []byte("HTTP/1.")) {
		return 0, false
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false
	}
	length := int64(-1)
	for head := b[:end]; len(head) > 0; {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		head = rest
		name, value, found := bytes.Cut(line, []byte(":"))
		if found && bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil || length >= 0 {
				return 0, false
			}
			length = n
		}
	}
	missing = length - int64(len(b)-end-4)
	return missing, length >= 0 && missing > 0
}
