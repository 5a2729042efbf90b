package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/wire"
)

// visitor is a client that goes through a scenario, step by step, until something goes wrong. What it is told is right to the last byte, or it has an
// error that is no end of a connection.
type visitor struct {
	*client
	t       *testing.T
	rig     *faultRig
	arm     lab.Arm
	reading sync.Mutex // held while it is to read nothing
	asking  bool       // a part of a request may have been written
	asked   bool       // all of it has been, and its response is not complete
	gone    bool       // the server has said that it closes
}

var visits atomic.Int64

func newVisitor(t *testing.T, rig *faultRig, arm lab.Arm) *visitor {
	t.Helper()
	v := &visitor{client: dial(t, rig.lab, arm, receiveBuffer(smallBuffer)), t: t, rig: rig, arm: arm}
	v.patience = hangLimit
	v.r = bufio.NewReader(v)
	return v
}

// Read is that of the connection, unless the visitor is to read nothing.
func (v *visitor) Read(p []byte) (int, error) {
	v.reading.Lock()
	v.reading.Unlock()
	return v.TCPConn.Read(p)
}

// say writes a part of a request.
func (v *visitor) say(text string) error {
	if err := v.SetWriteDeadline(time.Now().Add(hangLimit)); err != nil {
		return err
	}
	v.asking = true
	_, err := io.WriteString(v.TCPConn, text)
	v.asking = err != nil
	return err
}

// errStatus is the answer of a server that cannot have the file: its host is away.
var errStatus = errors.New("the server has no file")

// begin asks for a file and reads the first n bytes of it; rest reads the others.
func (v *visitor) begin(name string, n int) (rest func() error, err error) {
	want := v.rig.files.files[name]
	if v.arm == lab.Offload { // without a mount, what it has asked for a moment ago it would not ask for again
		name = v.rig.alias(v.t, name)
	}
	if err := v.say(v.request(http.MethodGet, name)); err != nil {
		return nil, err
	}
	v.asked = true
	resp, err := v.header(http.MethodGet)
	if err != nil {
		return nil, err
	}
	if v.arm == lab.Offload && resp.StatusCode >= http.StatusInternalServerError {
		_, err := io.Copy(io.Discard, resp.Body)
		return nil, errors.Join(errStatus, err)
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) {
		return nil, fmt.Errorf("%s: %s, %d bytes; want 200 and %d bytes", name, resp.Status, resp.ContentLength, len(want))
	}
	take := func(part []byte) error {
		n, err := v.compare(part, hangLimit)
		if err != nil {
			err = fmt.Errorf("%s: after %d of %d bytes: %w", name, n, len(part), err)
		}
		return err
	}
	return func() error {
		err := take(want[n:])
		v.asked = v.asked && err != nil
		return err
	}, take(want[:n])
}

// handedOver gets a file until the connection has been handed over for the nth time. Most times the first one does it, but the client may not have
// acknowledged the response before.
func handedOver(name string, nth int) func(*visitor) error {
	return func(v *visitor) error {
		p := v.rig.proxies[v.arm]
		for {
			if err := file(name)(v); err != nil || p.has(step{false, wire.TypeHandover, nth}) || !p.waits() {
				return err
			}
		}
	}
}

// file gets a whole file.
func file(name string) func(*visitor) error {
	return func(v *visitor) error {
		rest, err := v.begin(name, 0)
		if err != nil {
			return err
		}
		return rest()
	}
}

// recalled gets a file in whose middle the host gives the connection back.
func recalled(name string) func(*visitor) error {
	return func(v *visitor) error {
		rest, err := v.begin(name, readSome)
		if err != nil {
			return err
		}
		released := step{true, wire.TypeReleased, 1}
		if v.arm == lab.Offload {
			released.nth = 2 // it has come back by itself before
		}
		v.rig.recall(v.arm, released)
		return rest()
	}
}

const refusedText = "method not allowed\n" // package media

// post sends a body, or a part of it, which the server refuses.
func post405(announced, size int) func(*visitor) error {
	return func(v *visitor) error {
		body := strings.Repeat("the body of an upload, ", size/20)[:size]
		if err := v.say(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target("4k.m4s"), v.addr, announced, body)); err != nil {
			return err
		}
		v.asked = announced == size
		resp, err := v.header(http.MethodPost)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusMethodNotAllowed {
			return fmt.Errorf("POST: %s; want 405", resp.Status)
		}
		text, err := io.ReadAll(resp.Body)
		if err == nil && string(text) != refusedText || !bytes.HasPrefix([]byte(refusedText), text) {
			return fmt.Errorf("POST: %w: %q", errWrongByte, text)
		}
		v.asked, v.gone = v.asked && err != nil, resp.Close
		return err
	}
}

// crossed asks for a file whose SEND crosses with the host's HANDBACK.
func crossed(name string) func(*visitor) error {
	return func(v *visitor) error {
		p := v.rig.proxies[v.arm]
		send := step{false, wire.TypeSend, 2}
		p.cross(send, step{true, wire.TypeHandback, 1})
		if err := v.say(v.request(http.MethodGet, name)); err != nil {
			return err
		}
		v.asked = true
		for deadline := time.Now().Add(patience); !p.has(send) && p.waits() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		}
		v.rig.recall(v.arm, step{true, wire.TypeHandback, 1})
		resp, err := v.header(http.MethodGet)
		if err != nil {
			return err
		}
		if want := v.rig.files.files[name]; resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) {
			return fmt.Errorf("%s: %s, %d bytes", name, resp.Status, resp.ContentLength)
		}
		_, err = v.compare(v.rig.files.files[name], hangLimit)
		v.asked = err != nil
		return err
	}
}

// farewell closes the client's direction and waits for the server's end.
func farewell(v *visitor) error {
	if err := v.CloseWrite(); err != nil {
		return err
	}
	return v.awaitEnd()
}

// awaitEnd reads to the end of the connection, before which nothing more comes.
func (v *visitor) awaitEnd() error {
	if err := v.SetReadDeadline(time.Now().Add(hangLimit)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, v.r)
	if n > 0 {
		return fmt.Errorf("%w: %d bytes behind the last response", errWrongByte, n)
	}
	return err
}

// play goes through a scenario.
func (v *visitor) play(acts []func(*visitor) error) error {
	for i, act := range acts {
		if err := act(v); err != nil {
			return fmt.Errorf("act %d: %w", i+1, err)
		}
	}
	return nil
}

// alias is another name of a file.
func (r *faultRig) alias(t *testing.T, name string) string {
	other := fmt.Sprintf("alias-%d-%s", visits.Add(1), path.Base(name))
	if err := os.Link(filepath.Join(r.files.dir, name), filepath.Join(r.files.dir, other)); err != nil {
		t.Error(err)
	}
	return other
}

// recall tells the daemon to give all connections back, and waits for what is expected then, unless a fault may have made it impossible.
func (r *faultRig) recall(arm lab.Arm, expected step) {
	_ = r.lab.HostAdmin(context.Background(), http.MethodPost, "/recall", nil) // the daemon may be dead
	const afterFault = 300 * time.Millisecond
	p := r.proxies[arm]
	for began := time.Now(); !p.has(expected); time.Sleep(time.Millisecond) {
		if took := time.Since(began); took > patience || took > afterFault && !p.waits() {
			return
		}
	}
}

// ended tells whether err is the end of a connection, or of this end of it.
func ended(err error) bool {
	return closedByPeer(err) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ENOTCONN) || errors.Is(err, errStatus)
}
