package bench

import (
	"errors"
	"fmt"
	"io"
)

// Causes of a [RequestError], beside those of the network.
var (
	ErrStalled         = errors.New("no byte within the time-out")
	ErrShortBody       = errors.New("connection closed before the end of the body")
	ErrUnexpectedBytes = errors.New("more bytes than the response announced")
	ErrMalformed       = errors.New("malformed response header")
	ErrHeaderTooLarge  = errors.New("response header larger than the read buffer")
	ErrNoLength        = errors.New("response without Content-Length")
)

// RequestError says what went wrong with a request. The client's connection is closed when it is returned.
type RequestError struct {
	Target   string
	Op       string // "dial", "send request", "read header" or "read body"
	Received int64  // bytes of the body
	Err      error
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("GET %s: %s (%d bytes of the body received): %v", e.Target, e.Op, e.Received, e.Err)
}

func (e *RequestError) Unwrap() error { return e.Err }

// shortBody names the end of a connection within a body.
func shortBody(err error, got, want int64) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %d of %d bytes", ErrShortBody, got, want)
	}
	return err
}

// WrongBodyError says that the response came whole, but it is not the file that was asked for.
type WrongBodyError struct {
	Target               string
	Status               int
	Bytes, WantBytes     int64
	GotSHA256, SHA256Hex string // empty when it was not computed
}

func (e *WrongBodyError) Error() string {
	s := fmt.Sprintf("GET %s: wrong response: status %d, %d bytes; want status 200, %d bytes", e.Target, e.Status, e.Bytes, e.WantBytes)
	if e.GotSHA256 != e.SHA256Hex {
		s += fmt.Sprintf("; SHA-256 %s, want %s", e.GotSHA256, e.SHA256Hex)
	}
	return s
}
