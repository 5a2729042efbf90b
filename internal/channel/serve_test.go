package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestServeNewestWins(t *testing.T) {
	checkFDs(t)
	l := mustListen(t, socketAddress(t))
	ctx, cancel := context.WithCancel(testContext(t))
	var running atomic.Int32
	contexts := make(chan context.Context, 3)
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, func(ctx context.Context, c Conn) error {
			if n := running.Add(1); n != 1 {
				t.Errorf("%d connections are served at once", n)
			}
			defer running.Add(-1)
			contexts <- ctx
			_, err := io.Copy(c, c)
			return err
		}, nil)
	}()
	dial := func(word string) Conn {
		c, err := Dial(ctx, l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, word)
		mustRead(t, c, word)
		return closeAfter(t, c)
	}
	isOver := func(c Conn, ctx context.Context, which string) {
		t.Helper()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s connection: read %d bytes, %v; want its end", which, n, err)
		}
		receive(t, ctx.Done(), "the end of the context of the "+which+" connection")
	}

	first := dial("first")
	firstContext := receive(t, contexts, "the first session")
	second := dial("second") // while the first one is alive
	isOver(first, firstContext, "first")
	receive(t, contexts, "the second session")
	second.Close() // and one that ended by itself
	third := dial("third")
	thirdContext := receive(t, contexts, "the third session")

	cancel()
	if err := receive(t, ended, "Serve's end"); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v, want context.Canceled", err)
	}
	isOver(third, thirdContext, "third")
	if n := running.Load(); n != 0 {
		t.Errorf("%d sessions outlive Serve", n)
	}
	if _, err := os.Lstat(l.Addr().Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file: %v, want it gone", err)
	}
}

func TestServeListenerClosed(t *testing.T) {
	checkFDs(t)
	l := mustListen(t, socketAddress(t))
	ended := make(chan error, 1)
	go func() { ended <- Serve(testContext(t), l, nil, nil) }()
	l.Close()
	if err := receive(t, ended, "Serve's end"); err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
}

// failingListener fails as told, then is closed.
type failingListener struct {
	failures []error
}

func (l *failingListener) Accept() (Conn, error) {
	if len(l.failures) == 0 {
		return nil, net.ErrClosed
	}
	err := l.failures[0]
	l.failures = l.failures[1:]
	return nil, err
}
func (l *failingListener) Close() error  { return nil }
func (l *failingListener) Addr() Address { return Address{Kind: Vsock, CID: 3, Port: 9000} }

func TestServeGoesOnAfterFailures(t *testing.T) {
	logger, lines := logged()
	stranger := fmt.Errorf("%w: vm(4):1024", ErrPeer)
	l := &failingListener{failures: []error{unix.EMFILE, stranger, stranger, stranger}}
	if err := Serve(testContext(t), l, nil, logger); err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if got := lines(); len(got) != 2 || !strings.Contains(got[0], "vsock:3:9000") {
		t.Errorf("log %q, want two lines: a stranger must not fill it", got)
	}
}
