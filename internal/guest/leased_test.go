package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"spillway/internal/lease"
)

// oneByte is what a connection is handed over with.
func oneByte() map[string][]byte { return map[string][]byte{"one": []byte("x")} }

// TestLeasedConn holds a leased connection against the rules of net.Conn, as either of the two ends.
func TestLeasedConn(t *testing.T) {
	for name, serverFirst := range map[string]bool{"client first": false, "server first": true} {
		t.Run(name, func(t *testing.T) {
			r, _ := newRelay(t, Policy{Mode: Lease}, oneByte())
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				client, server := r.leasedPair()
				if p := server.phase(); p != lease.Leased {
					return nil, nil, nil, errors.New("the connection is " + p.String())
				}
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
			r.eventually("nothing is leased", func() bool { return r.agent.Snapshot().Leases == 0 })
			if c := r.agent.Snapshot().Counts; c.Lost != 0 || c.Sessions != 1 {
				t.Errorf("counts are %+v", c)
			}
		})
	}
}

// TestRelayedMegabytes: what is no file goes through the channel, up and down, and nowhere does more of it wait than a window.
func TestRelayedMegabytes(t *testing.T) {
	r, h := newRelay(t, Policy{Mode: Lease}, oneByte())
	client, server := r.leasedPair()
	_, content := newFile(10 << 20)
	_ = client.SetDeadline(time.Now().Add(3 * patience))
	largest := 0
	watch := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			server.mu.Lock()
			largest = max(largest, cap(server.in.buf))
			server.mu.Unlock()
			select {
			case <-watch:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	wrote := make(chan error, 2)
	go func() {
		_, err := client.Write(content)
		wrote <- errors.Join(err, client.CloseWrite())
	}()
	go func() {
		n, err := server.ReadFrom(bytes.NewBuffer(content))
		if n != int64(len(content)) {
			err = errors.Join(err, io.ErrShortWrite)
		}
		wrote <- errors.Join(err, server.CloseWrite())
	}()
	down := make(chan []byte, 1)
	go func() {
		got, err := io.ReadAll(client)
		if err != nil {
			t.Error(err)
		}
		down <- got
	}()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("up: %d bytes, %v", len(got), err)
	}
	if got := <-down; !bytes.Equal(got, content) {
		t.Errorf("down: %d bytes", len(got))
	}
	for range 2 {
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	}
	close(watch)
	<-watched
	if limit := 4 * (testWindow + maxUnread); largest > limit {
		t.Errorf("the inbox has grown to %d bytes, more than %d", largest, limit)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.maximum > testWindow {
		t.Errorf("%d bytes waited at the host, more than the window of %d", h.maximum, testWindow)
	}
	if c := r.agent.Snapshot().Counts; c.Relayed != uint64(len(content)) {
		t.Errorf("counts are %+v", c)
	}
}

// TestStalledReader: a server that does not read stops the client, and costs no more than the window.
func TestStalledReader(t *testing.T) {
	r, _ := newRelay(t, Policy{Mode: Lease}, oneByte())
	client, server := r.leasedPair()
	wrote := make(chan int, 1)
	go func() {
		_ = client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, _ := client.Write(make([]byte, 64<<20))
		wrote <- n
	}()
	n := <-wrote
	if n == 64<<20 {
		t.Error("the client could write everything")
	}
	server.mu.Lock()
	waits := server.in.len()
	server.mu.Unlock()
	if waits > testWindow {
		t.Errorf("%d bytes wait, more than the window", waits)
	}
	client.CloseWrite()
	_ = server.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.Copy(io.Discard, server); got != int64(n) || err != nil {
		t.Errorf("then the server reads %d bytes, %v, of %d", got, err, n)
	}
}
