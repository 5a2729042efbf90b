package session

import (
	"io"
	"net"
	"testing"
	"time"
)

// counted is a Conn that counts the Reads that may wait.
type counted struct {
	*net.UnixConn
	reads int
}

func (c *counted) Read(b []byte) (int, error) {
	c.reads++
	return c.UnixConn.Read(b)
}

// TestPoller: dense traffic is read by asking; the first pause that is longer than the limit ends that, and an idle reader waits like anybody.
func TestPoller(t *testing.T) {
	a, b := unixPair(t)
	conn := &counted{UnixConn: a}
	p := newPoller(conn, time.Minute) // no pause of this test is longer
	buf := make([]byte, 16)
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(b, text); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(want string) {
		t.Helper()
		n, err := p.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
	}
	say("a")
	hear("a")
	if conn.reads != 1 || !p.dense {
		t.Fatalf("the first read waited %d times, dense %v", conn.reads, p.dense)
	}
	for range 3 {
		go func() {
			time.Sleep(time.Millisecond)
			_, _ = io.WriteString(b, "b") // the read meets the error
		}()
		hear("b")
	}
	if conn.reads != 1 {
		t.Fatalf("%d reads waited, want 1: the others were to ask", conn.reads)
	}

	p.limit = time.Millisecond
	go func() {
		time.Sleep(50 * time.Millisecond)
		_, _ = io.WriteString(b, "c")
	}()
	hear("c")
	if conn.reads != 2 || p.dense {
		t.Fatalf("after a long pause %d reads have waited and dense is %v", conn.reads, p.dense)
	}

	// The end of the stream is the Conn's to tell, also to a reader who asks.
	p.limit, p.dense = 10*time.Millisecond, true
	b.Close()
	if n, err := p.Read(buf); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v at the end of the stream", n, err)
	}
}

// TestPollerOff: without a limit, or on a Conn without a descriptor, nothing is asked.
func TestPollerOff(t *testing.T) {
	a, _ := unixPair(t)
	if p := newPoller(a, 0); p.raw != nil {
		t.Error("a limit of 0 polls")
	}
	c, d := net.Pipe()
	defer c.Close()
	defer d.Close()
	if p := newPoller(c, time.Second); p.raw != nil {
		t.Error("a Conn without a descriptor is polled")
	}
}
