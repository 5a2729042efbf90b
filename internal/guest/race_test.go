package guest

import (
	"io"
	"testing"
	"time"
)

// blockedRead is a connection whose server is blocked in Read at its own socket.
func blockedRead(t *testing.T) (client io.Writer, server *Conn, read <-chan string) {
	t.Helper()
	r := newRig(t, Policy{Mode: Lease})
	c, server := r.connect()
	done := make(chan string, 1)
	go func() {
		p := make([]byte, 100)
		n, err := server.Read(p)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(p[:n])
	}()
	time.Sleep(20 * time.Millisecond) // let it block
	return c, server, done
}

// TestCloseUnderLock: an event that closes the socket holds the lock and waits for the socket's users, one of whom may just have been woken by
// the client's bytes and want the lock.
func TestCloseUnderLock(t *testing.T) {
	client, server, read := blockedRead(t)
	server.mu.Lock()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // let the reader wake up
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = server.tcp.Close()
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("the socket cannot be closed, as its reader waits for the lock")
	}
	server.mu.Unlock()
	<-read
}

// TestReadAfterFailedHandover: a handover that comes to nothing has moved bytes out of the socket while a reader waits there. The reader must
// notice, even when it runs only after everything is as before, and must get them before what has come since.
func TestReadAfterFailedHandover(t *testing.T) {
	for name, since := range map[string]string{"nothing since": "", "more since": "new"} {
		t.Run(name, func(t *testing.T) {
			client, server, read := blockedRead(t)
			server.mu.Lock()
			if since != "" {
				if _, err := io.WriteString(client, since); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond) // let the reader wake up
			}
			_ = server.tcp.SetReadDeadline(longAgo)
			server.in.add([]byte("old"))
			server.becomeLocal()
			server.mu.Unlock()
			select {
			case got := <-read:
				if got != "old" {
					t.Errorf("the server reads %q", got)
				}
			case <-time.After(patience):
				t.Fatal("the reader is lost")
			}
			if since == "" {
				return
			}
			p := make([]byte, 100)
			_ = server.SetReadDeadline(time.Now().Add(patience))
			if n, err := server.Read(p); string(p[:n]) != since {
				t.Errorf("then the server reads %q, %v", p[:n], err)
			}
		})
	}
}
