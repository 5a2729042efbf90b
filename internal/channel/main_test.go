package channel

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The runtime opens its epoll descriptors with the first polled file and keeps them; checkFDs must not count them.
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	goleak.VerifyTestMain(m)
}

// patience bounds waits for things that take microseconds on an idle machine. It only ever passes when a test fails.
const patience = 30 * time.Second

// checkFDs fails the test if it ends with other file descriptors open than it began with.
func checkFDs(t *testing.T) {
	t.Helper()
	before := openFDs(t)
	t.Cleanup(func() {
		var after map[string]string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if after = openFDs(t); len(after) <= len(before) {
				return
			}
		}
		for fd, target := range after {
			if _, ok := before[fd]; !ok {
				t.Errorf("file descriptor %s is left open: %s", fd, target)
			}
		}
	})
}

func openFDs(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range entries {
		// The directory that is being read has gone by now, and is not counted.
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			fds[e.Name()] = target
		}
	}
	return fds
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// closeAfter closes c when the test is over.
func closeAfter[C io.Closer](t *testing.T, c C) C {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	return c
}

// socketAddress returns an address in a directory of the test's own.
func socketAddress(t *testing.T) Address {
	t.Helper()
	return Address{Kind: Unix, Path: filepath.Join(t.TempDir(), "vm0.sock")}
}

func mustListen(t *testing.T, addr Address) Listener {
	t.Helper()
	l, err := Listen(addr, NoGroup)
	if err != nil {
		t.Fatal(err)
	}
	return closeAfter(t, l)
}

// mustRead reads exactly len(want) bytes and compares them.
func mustRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("read %q, then: %v; want %q", got[:n], err, want)
	}
	if string(got) != want {
		t.Fatalf("read %q, want %q", got, want)
	}
}

func mustWrite(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); err != nil || n != len(s) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(s), err)
	}
}

// receive waits for one value.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
