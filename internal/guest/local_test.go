package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"spillway/internal/wire"
)

// TestLocalConn holds a local connection against the rules of net.Conn, as either of the two ends.
func TestLocalConn(t *testing.T) {
	for _, mode := range []Mode{Off, Lease} {
		for _, serverFirst := range []bool{false, true} {
			name := mode.String() + ", client first"
			if serverFirst {
				name = mode.String() + ", server first"
			}
			t.Run(name, func(t *testing.T) {
				r := newRig(t, Policy{Mode: mode})
				nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
					client, server := r.connect()
					stop = func() {
						client.Close()
						server.Close()
					}
					_ = client.SetDeadline(time.Time{})
					if serverFirst {
						return server, client, stop, nil
					}
					return client, server, stop, nil
				})
			})
		}
	}
}

// TestLocalReadFrom: without a host every kind of source is sent by the guest, and each refusal that matters is counted.
func TestLocalReadFrom(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease, Threshold: 1000})
	f, content := newFile(300_000)
	small := openFile(content[:999])
	for _, c := range []struct {
		name   string
		source io.Reader
		want   []byte
		reason wire.Reason // ReasonOK: not counted
	}{
		{"host file", f, content, wire.ReasonHostAway},
		{"range of a host file", io.LimitReader(openFile(content), 5000), content[:5000], wire.ReasonHostAway},
		{"range at its end", io.LimitReader(openFile(content), 1<<40), content, wire.ReasonHostAway},
		{"empty range", io.LimitReader(openFile(content), 0), nil, wire.ReasonOK},
		{"small host file", small, content[:999], wire.ReasonSmall},
		{"buffer", bytes.NewBuffer(content), content, wire.ReasonNotHostFile},
		{"a part of a buffer", io.LimitReader(bytes.NewBuffer(content), 77), content[:77], wire.ReasonNotHostFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.agent.Stats().Reset()
			client, server := r.connect()
			head := header(int64(max(len(c.want), 1)))
			done := make(chan error, 1)
			go func() {
				_, err := server.Write([]byte(head))
				n, ferr := server.ReadFrom(c.source)
				if n != int64(len(c.want)) {
					err = errors.Join(err, errors.New("ReadFrom returns a wrong count"))
				}
				done <- errors.Join(err, ferr, server.Close())
			}()
			got, err := io.ReadAll(client)
			if err != nil || string(got) != head+string(c.want) {
				t.Errorf("the client has %d bytes, %v, want %d", len(got), err, len(head)+len(c.want))
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			s := r.agent.Snapshot()
			want := map[string]uint64{}
			if c.reason != wire.ReasonOK {
				want[c.reason.String()] = 1
			}
			if len(s.Fallbacks) != len(want) || c.reason != wire.ReasonOK && s.Fallbacks[c.reason.String()] != 1 {
				t.Errorf("fallbacks are %v, want %v", s.Fallbacks, want)
			}
			if s.Counts.LocalBytes != uint64(len(got)) || s.Counts.Relayed != 0 || s.Counts.Accepted != 1 {
				t.Errorf("counts are %+v, want %d local bytes", s.Counts, len(got))
			}
		})
	}
}

// TestHeldHead: a head that no body follows leaves by itself, and at once when the server turns to something else.
func TestHeldHead(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	head := header(bodySize)
	for _, c := range []struct {
		name string
		then func(c *Conn) error
		want string
	}{
		{"nothing", func(*Conn) error { return nil }, ""},
		{"read", func(c *Conn) error {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, _ = c.Read(make([]byte, 1))
			return nil
		}, ""},
		{"write", func(c *Conn) error { _, err := c.Write([]byte("body")); return err }, "body"},
		{"another head", func(c *Conn) error { _, err := c.Write([]byte(head)); return err }, head},
		{"close", func(c *Conn) error { return c.Close() }, ""},
		{"close write", func(c *Conn) error { return c.CloseWrite() }, ""},
		{"read from", func(c *Conn) error { _, err := c.ReadFrom(bytes.NewBufferString("body")); return err }, "body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := r.connect()
			if n, err := server.Write([]byte(head)); n != len(head) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			if err := c.then(server); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(head)+len(c.want))
			if n, err := io.ReadFull(client, got); err != nil || string(got) != head+c.want {
				t.Errorf("the client has %q, %v", got[:n], err)
			}
		})
	}
}

// TestHeldHeadThenClose closes at the very time at which the head leaves by itself: it must not get lost.
func TestHeldHeadThenClose(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	head := header(bodySize)
	for i := range 300 {
		client, server := r.connect()
		if _, err := server.Write([]byte(head)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(headHold + time.Duration(i-150)*time.Microsecond); time.Now().Before(end); {
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(client); err != nil || string(got) != head {
			t.Fatalf("closed %v after the head: the client has %d bytes, %v", headHold+time.Duration(i-150)*time.Microsecond, len(got), err)
		}
		client.Close()
	}
}

// TestClosedConn: after Close everything fails as it does on a net.TCPConn, and nothing pretends to have been written.
func TestClosedConn(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	_, server := r.connect()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	f, _ := newFile(bodySize)
	for name, call := range map[string]func() error{
		"Read":           func() error { _, err := server.Read(make([]byte, 1)); return err },
		"Write":          func() error { _, err := server.Write([]byte("x")); return err },
		"Write of head":  func() error { _, err := server.Write([]byte(header(bodySize))); return err },
		"ReadFrom":       func() error { _, err := server.ReadFrom(f); return err },
		"Close":          func() error { return server.Close() },
		"CloseWrite":     func() error { return server.CloseWrite() },
		"SetDeadline":    func() error { return server.SetDeadline(time.Now()) },
		"SetReadDeadlin": func() error { return server.SetReadDeadline(time.Now()) },
	} {
		if err := call(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}

// TestConnAddresses: an IPv4 client of a dual-stack listener is an IPv4 client.
func TestConnAddresses(t *testing.T) {
	r := newRig(t, Policy{Mode: Off})
	_, server := r.connect()
	if !server.local.Addr().Is4() || !server.remote.Addr().Is4() {
		t.Errorf("addresses are %v and %v", server.local, server.remote)
	}
	if server.LocalAddr().(*net.TCPAddr).Port != int(server.local.Port()) || server.remote.Addr().String() != clientAddress {
		t.Errorf("net.Addrs are %v and %v", server.LocalAddr(), server.RemoteAddr())
	}
}
