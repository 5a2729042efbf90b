package guestinit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// controlSocket listens as QEMU does for a control port and passes each connection to serve.
func controlSocket(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ctl.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

func dialTest(t *testing.T, path string) *Control {
	t.Helper()
	c, err := DialControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestControl(t *testing.T) {
	s, _ := newTestSupervisor(t)
	s.add(shell("sleeper", "sleep 1000"))
	c := dialTest(t, controlSocket(t, func(conn net.Conn) {
		if err := answerRequests(s, conn); !errors.Is(err, io.EOF) {
			t.Errorf("answerRequests = %v", err)
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("\x00\xff\n", 100_000) // longer than one line may be, and binary
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Cat(ctx, file); err != nil || string(got) != content {
		t.Errorf("Cat = %d bytes, %v", len(got), err)
	}
	if err := os.Truncate(file, maxFileBytes+1); err != nil {
		t.Fatal(err)
	}
	var refused *ControlError
	for name, err := range map[string]error{
		"a file too large":  second(c.Cat(ctx, file)),
		"a missing file":    second(c.Cat(ctx, file+".missing")),
		"unknown command":   c.Kill(ctx, "nobody"),
		"unknown operation": second(c.do(ctx, request{Op: "bogus"})),
	} {
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v, want a ControlError", name, err)
		}
	}
	before, err := c.Processes(ctx)
	if err != nil || len(before) != 1 || before[0].PID == 0 {
		t.Fatalf("Processes = %+v, %v", before, err)
	}
	if err := c.Signal(ctx, "sleeper", syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	waitFor(t, "the restart", func() bool {
		now, err := c.Processes(ctx)
		return err == nil && now[0].Restarts == 1
	})
}

func second[T any](_ T, err error) error { return err }

// TestControlLeftovers leaves halves of lines on both sides, as a host does that is killed.
func TestControlLeftovers(t *testing.T) {
	s, console := newTestSupervisor(t)
	path := controlSocket(t, func(conn net.Conn) {
		// What the guest answered to an earlier host, and half of that host's request.
		fmt.Fprintf(conn, "rest of an answer\"}\n%s\n", `{"ID":"earlier"}`)
		port := struct {
			io.Reader
			io.Writer
		}{io.MultiReader(strings.NewReader(`{"ID":"earlier","Op":"poweroff`), conn), conn}
		answerRequests(s, port)
	})
	c := dialTest(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(console.String(), "request dropped") {
		t.Errorf("the console says nothing of the half request: %q", console)
	}
}

func TestControlContext(t *testing.T) {
	ids := make(chan string, 2)
	release := make(chan struct{})
	c := dialTest(t, controlSocket(t, func(conn net.Conn) {
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var req request
			if json.Unmarshal(lines.Bytes(), &req) != nil {
				continue
			}
			ids <- req.ID
			if len(ids) == 2 {
				// The late answer to the first request comes before the second's.
				fmt.Fprintf(conn, "{\"ID\":%q,\"Error\":\"late\"}\n{\"ID\":%q}\n", <-ids, <-ids)
				<-release
			}
		}
	}))
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ping without an answer: %v", err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("the next Ping: %v", err)
	}
}

// TestRequestTooLong proves that a host that never ends its line costs no memory without bound.
func TestRequestTooLong(t *testing.T) {
	s := newSupervisor(io.Discard)
	port := struct {
		io.Reader
		io.Writer
	}{strings.NewReader(strings.Repeat("x", maxRequestBytes+1)), io.Discard}
	if err := answerRequests(s, port); !errors.Is(err, bufio.ErrTooLong) {
		t.Errorf("answerRequests = %v, want ErrTooLong", err)
	}
}
