package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"spillway/internal/wire"
)

// within fails the test if f does not return.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
	}
}

// stuck are connections whose client takes nothing more, with a head that waits for its body and has nowhere to go.
func stuck(t *testing.T, f func(t *testing.T, client *net.TCPConn, server *Conn)) {
	t.Run("local", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		client, server := r.connect()
		for { // until nothing more fits
			_ = server.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			if n, err := server.Write(make([]byte, 1<<20)); errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
				break
			}
		}
		_ = server.SetWriteDeadline(time.Time{})
		f(t, client, server)
	})
	t.Run("leased", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.leased(s)
		if _, err := h.server.Write(make([]byte, testWindow)); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < testWindow; {
			m, _ := hear[wire.Data](s)
			n += len(m.Data)
		}
		f(t, h.client, h.server)
		h.server.Close()
		hear[wire.Close](s)
		h.over(wire.ReasonClosed)
	})
}

// TestStuckHead: a head that was held back and then cannot be written, as its client reads nothing, keeps nobody from closing or from reading.
func TestStuckHead(t *testing.T) {
	stuck(t, func(t *testing.T, client *net.TCPConn, server *Conn) {
		if n, err := server.Write([]byte(header(bodySize))); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		within(t, "Read", func() {
			_ = server.SetReadDeadline(time.Now().Add(3 * headHold))
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read says %v", err)
			}
		})
		within(t, "Close", func() { server.Close() })
		within(t, "Write", func() {
			if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write says %v", err)
			}
		})
	})
}

// silence is a source that says a word, and then nothing until its end.
type silence struct {
	word       string
	begun, end chan struct{}
}

func (s *silence) Read(p []byte) (int, error) {
	if n := copy(p, s.word); n > 0 {
		s.word = s.word[n:]
		return n, nil
	}
	close(s.begun)
	<-s.end
	return 0, io.EOF
}

// TestWriteBesideCopy: a source that has nothing to say for the time being keeps nobody from writing, nor from closing the direction.
func TestWriteBesideCopy(t *testing.T) {
	beside := func(t *testing.T, server *Conn) {
		source := &silence{"copied;", make(chan struct{}), make(chan struct{})}
		copied := make(chan error, 1)
		go func() {
			_, err := server.ReadFrom(source)
			copied <- err
		}()
		<-source.begun
		within(t, "Write", func() {
			if _, err := io.WriteString(server, "written;"); err != nil {
				t.Error(err)
			}
		})
		within(t, "CloseWrite", func() {
			if err := server.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		close(source.end)
		within(t, "ReadFrom", func() {
			if err := <-copied; err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("local", func(t *testing.T) {
		for _, mode := range []Mode{Off, Lease} {
			r := newRig(t, Policy{Mode: mode})
			client, server := r.connect()
			beside(t, server)
			if got, err := io.ReadAll(client); err != nil || string(got) != "copied;written;" {
				t.Errorf("the client has %q, %v", got, err)
			}
		}
	})
	t.Run("leased", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.leased(s)
		beside(t, h.server)
		for _, want := range []string{"copied;", "written;"} {
			if m, _ := hear[wire.Data](s); string(m.Data) != want {
				t.Errorf("the host hears %q, want %q", m.Data, want)
			}
		}
		hear[wire.End](s)
		h.server.Close()
		hear[wire.Close](s)
		h.over(wire.ReasonClosed)
	})
}

// TestPastWriteDeadline: a deadline that has passed fails writes, also of nothing, but the direction can still be closed, once and again.
func TestPastWriteDeadline(t *testing.T) {
	past := func(t *testing.T, server *Conn) {
		if err := server.SetWriteDeadline(longAgo); err != nil {
			t.Error(err)
		}
		for _, p := range [][]byte{nil, []byte("x"), []byte(header(bodySize))} {
			if _, err := server.Write(p); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write of %q says %v", p, err)
			}
		}
		for range 2 {
			if err := server.CloseWrite(); err != nil {
				t.Errorf("CloseWrite says %v", err)
			}
		}
	}
	t.Run("local", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		client, server := r.connect()
		past(t, server)
		if got, err := io.ReadAll(client); err != nil || len(got) > 0 {
			t.Errorf("the client has %q, %v", got, err)
		}
	})
	t.Run("leased", func(t *testing.T) {
		r := newRig(t, Policy{Mode: Lease})
		s := r.script()
		h := r.leased(s)
		past(t, h.server)
		hear[wire.End](s)
		h.server.Close()
		hear[wire.Close](s)
		h.over(wire.ReasonClosed)
		s.silent()
	})
}
