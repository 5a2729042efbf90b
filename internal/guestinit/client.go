package guestinit

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// ControlError is the guest's refusal of a request.
type ControlError struct {
	Op      string
	Message string
}

func (e *ControlError) Error() string { return fmt.Sprintf("guestinit: %s: %s", e.Op, e.Message) }

// Control is the host's end of a guest's control port. Its methods may be called concurrently; they run one after the
// other. When a context ends before the answer the request may or may not have been carried out.
type Control struct {
	mu    sync.Mutex // one request at a time
	conn  net.Conn
	lines *bufio.Reader
}

// DialControl connects to the unix socket that QEMU listens on for the control port. The guest need not be up yet: requests
// wait for it.
func DialControl(ctx context.Context, socketPath string) (*Control, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socketPath)
	if err != nil {
		return nil, fmt.Errorf("guestinit: connect to control port: %w", err)
	}
	return &Control{conn: conn, lines: bufio.NewReader(conn)}, nil
}

// Close ends the connection; a request under way fails.
func (c *Control) Close() error { return c.conn.Close() }

// Ping returns when the guest has answered.
func (c *Control) Ping(ctx context.Context) error {
	_, err := c.do(ctx, request{Op: opPing})
	return err
}

// Processes returns the state of the guest's commands, in the order of Spec.Commands.
func (c *Control) Processes(ctx context.Context) ([]Process, error) {
	resp, err := c.do(ctx, request{Op: opProcesses})
	return resp.Processes, err
}

// Signal sends a signal to the command with that name and its descendants.
func (c *Control) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	_, err := c.do(ctx, request{Op: opSignal, Name: name, Signal: sig})
	return err
}

// Kill sends SIGKILL to the command with that name. Init starts it again after a pause.
func (c *Control) Kill(ctx context.Context, name string) error {
	return c.Signal(ctx, name, syscall.SIGKILL)
}

// DropCaches makes the guest's kernel forget its clean page cache, dentries and inodes.
func (c *Control) DropCaches(ctx context.Context) error {
	_, err := c.do(ctx, request{Op: opDropCaches})
	return err
}

// Cat returns the content of a file in the guest, of at most 4 MiB.
func (c *Control) Cat(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.do(ctx, request{Op: opCat, Path: path})
	return resp.Data, err
}

// PowerOff stops the guest's commands and the guest. It returns when the guest has accepted; QEMU ends a little later.
func (c *Control) PowerOff(ctx context.Context) error {
	_, err := c.do(ctx, request{Op: opPowerOff})
	return err
}

// do sends one request and waits for the answer with its identifier; answers to other hosts' requests are skipped.
func (c *Control) do(ctx context.Context, req request) (response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	req.ID = rand.Text()
	resp, err := c.exchange(ctx, req)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return response{}, fmt.Errorf("guestinit: %s: %w", req.Op, err)
	}
	if resp.Error != "" {
		return response{}, &ControlError{Op: req.Op, Message: resp.Error}
	}
	return resp, nil
}

func (c *Control) exchange(ctx context.Context, req request) (response, error) {
	c.conn.SetDeadline(time.Time{})
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	defer func() {
		if !stop() {
			<-interrupted // or it would hit the next request
		}
	}()
	line, err := json.Marshal(req)
	if err != nil {
		return response{}, err
	}
	// The newline before it ends half a line that an earlier host may have left.
	if _, err := fmt.Fprintf(c.conn, "\n%s\n", line); err != nil {
		return response{}, err
	}
	for {
		line, err := c.lines.ReadBytes('\n')
		if err != nil {
			return response{}, err
		}
		var resp response
		// What is no answer is the rest of one that an earlier host did not take.
		if err := json.Unmarshal(line, &resp); err == nil && resp.ID == req.ID {
			return resp, nil
		}
	}
}
