package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// fakeQMP is a QMP server of one connection. Each command that is not qmp_capabilities goes to the handler, which may
// write what it likes.
func fakeQMP(t *testing.T, greeting string, handle func(write func(format string, args ...any), command, id string)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		write := func(format string, args ...any) {
			if format == "" {
				conn.Close()
				return
			}
			fmt.Fprintf(conn, format+"\r\n", args...)
		}
		write("%s", greeting)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var c struct{ Execute, ID string }
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client sent %q", lines.Text())
				return
			}
			if c.Execute == "qmp_capabilities" {
				write(`{"return": {}, "id": %q}`, c.ID)
				continue
			}
			handle(write, c.Execute, c.ID)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return path
}

const testGreeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

func dialFake(t *testing.T, path string) *QMP {
	t.Helper()
	c, err := DialQMP(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestQMPExecute(t *testing.T) {
	var held string // a command's id whose answer comes after the next one's
	c := dialFake(t, fakeQMP(t, testGreeting, func(write func(string, ...any), command, id string) {
		switch command {
		case "slow":
			held = id
		case "fast":
			write(`{"event": "STOP", "timestamp": {"seconds": 1700000000, "microseconds": 500000}, "data": {"n": 1}}`)
			write(`{"return": {"name": "fast"}, "id": %q}`, id)
			write(`{"return": {"name": "slow"}, "id": %q}`, held)
		case "wrong":
			write(`{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": %q}`, id)
		}
	}))
	if want := (Version{7, 2, 22}); c.Version() != want {
		t.Errorf("version %v, want %v", c.Version(), want)
	}
	type answer struct{ Name string }
	slow := make(chan error, 1)
	registered := make(chan struct{})
	go func() {
		a, _, err := c.send(t.Context(), "slow", nil, nil)
		close(registered)
		if err == nil {
			if m := <-a; string(m.Return) != `{"name": "slow"}` {
				err = fmt.Errorf("slow got %s", m.Return)
			}
		}
		slow <- err
	}()
	<-registered
	var got answer
	if err := c.Execute(t.Context(), "fast", map[string]int{"x": 1}, &got); err != nil || got.Name != "fast" {
		t.Errorf("fast got %+v, %v", got, err)
	}
	if err := <-slow; err != nil {
		t.Error(err)
	}
	event := <-c.Events()
	if event.Name != "STOP" || !event.Time.Equal(time.Unix(1700000000, 5e8)) || string(event.Data) != `{"n": 1}` {
		t.Errorf("event %+v", event)
	}
	var refused *QMPError
	if err := c.Execute(t.Context(), "wrong", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" || refused.Command != "wrong" {
		t.Errorf("wrong: %v", err)
	}
}

func TestQMPContextEndsBeforeTheAnswer(t *testing.T) {
	c := dialFake(t, fakeQMP(t, testGreeting, func(write func(string, ...any), command, id string) {
		if command != "silent" {
			write(`{"return": {}, "id": "0"}`) // an answer to nobody
			write(`{"return": {}, "id": %q}`, id)
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "silent", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
	if err := c.Execute(t.Context(), "next", nil, nil); err != nil {
		t.Errorf("the next command: %v", err)
	}
}

func TestQMPConnectionLost(t *testing.T) {
	c := dialFake(t, fakeQMP(t, testGreeting, func(write func(string, ...any), _, _ string) { write("") }))
	for _, command := range []string{"in flight", "afterwards"} {
		if err := c.Execute(t.Context(), command, nil, nil); !errors.Is(err, ErrQMPClosed) {
			t.Errorf("%s: %v, want ErrQMPClosed", command, err)
		}
	}
	if _, open := <-c.Events(); open {
		t.Error("the channel of events is still open")
	}
}

func TestQMPClose(t *testing.T) {
	received := make(chan struct{})
	c := dialFake(t, fakeQMP(t, testGreeting, func(func(string, ...any), string, string) { close(received) }))
	result := make(chan error, 1)
	go func() { result <- c.Execute(t.Context(), "silent", nil, nil) }()
	<-received
	c.Close()
	if err := <-result; !errors.Is(err, ErrQMPClosed) {
		t.Errorf("Execute during Close: %v, want ErrQMPClosed", err)
	}
}

func TestDialQMPRefuses(t *testing.T) {
	nothing := func(func(string, ...any), string, string) {}
	for name, greeting := range map[string]string{"another protocol": `{"hello": 1}`, "no JSON": "SSH-2.0"} {
		if c, err := DialQMP(t.Context(), fakeQMP(t, greeting, nothing)); err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	t.Run("no greeting", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "qmp.sock")
		l, err := net.Listen("unix", path) // never accepts: QEMU serves another client
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := DialQMP(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("DialQMP = %v", err)
		}
	})
}
