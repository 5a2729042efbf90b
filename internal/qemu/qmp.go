package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrQMPClosed means that the QMP connection ended before the command was answered.
var ErrQMPClosed = errors.New("the QMP connection is closed")

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound" …
	Desc    string
}

func (e *QMPError) Error() string {
	return fmt.Sprintf("qemu: QMP command %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// Event is an asynchronous message of QEMU, for instance SHUTDOWN, STOP or MIGRATION.
type Event struct {
	Name string
	Time time.Time
	Data json.RawMessage
}

// QMP is a client of the QEMU Machine Protocol (docs/interop/qmp-spec.txt in QEMU). QEMU serves one client at a time on a
// socket; another one waits for its greeting. All methods may be called concurrently.
type QMP struct {
	conn    net.Conn
	version Version
	events  chan Event
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards what follows, and writes to conn
	nextID  uint64
	pending map[string]chan qmpMessage
	err     error // why the reader ended
}

// qmpMessage is the union of greeting, answer and event.
type qmpMessage struct {
	Greeting *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID     string          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// maxQueuedEvents bounds the events that nobody has read yet.
const maxQueuedEvents = 64

// DialQMP connects to a QMP socket, waits for the greeting and leaves the negotiation mode. The caller closes the client.
func DialQMP(ctx context.Context, socketPath string) (*QMP, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socketPath)
	if err != nil {
		return nil, fmt.Errorf("qemu: connect to QMP: %w", err)
	}
	c := &QMP{
		conn:    conn,
		events:  make(chan Event, maxQueuedEvents),
		done:    make(chan struct{}),
		pending: make(map[string]chan qmpMessage),
	}
	decoder := json.NewDecoder(conn)
	if err := c.greet(ctx, decoder); err != nil {
		conn.Close()
		return nil, fmt.Errorf("qemu: QMP greeting: %w", err)
	}
	go c.read(decoder)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// greet reads the greeting; the context interrupts it.
func (c *QMP) greet(ctx context.Context, decoder *json.Decoder) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	var m qmpMessage
	err := decoder.Decode(&m)
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if m.Greeting == nil {
		return errors.New("not a QMP server")
	}
	v := m.Greeting.Version.QEMU
	c.version = Version{v.Major, v.Minor, v.Micro}
	return nil
}

// Version is QEMU's, from the greeting.
func (c *QMP) Version() Version { return c.version }

// Events returns the events since the connection was made. They are dropped while 64 of them wait unread. The channel is
// closed when the connection ends.
func (c *QMP) Events() <-chan Event { return c.events }

// Close ends the connection; commands under way fail with ErrQMPClosed.
func (c *QMP) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Execute runs one command and decodes its answer into reply, unless that is nil. Arguments may be nil. When the context
// ends first, the command may or may not have been carried out.
func (c *QMP) Execute(ctx context.Context, command string, arguments, reply any) error {
	return c.execute(ctx, command, arguments, nil, reply)
}

// passFile gives QEMU a file, which knows it by a name from then on, for a command of this connection.
func (c *QMP) passFile(ctx context.Context, name string, f *os.File) error {
	return c.execute(ctx, "getfd", map[string]string{"fdname": name}, f, nil)
}

// execute is Execute; f, unless it is nil, goes with the command.
func (c *QMP) execute(ctx context.Context, command string, arguments any, f *os.File, reply any) error {
	answer, id, err := c.send(ctx, command, arguments, f)
	if err != nil {
		return fmt.Errorf("qemu: QMP command %s: %w", command, err)
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("qemu: QMP command %s: %w", command, c.closedError())
		case m.Error != nil:
			return &QMPError{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
		case reply == nil:
			return nil
		}
		if err := json.Unmarshal(m.Return, reply); err != nil {
			return fmt.Errorf("qemu: QMP command %s: answer: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return fmt.Errorf("qemu: QMP command %s: %w", command, ctx.Err())
	}
}

// send registers and writes one command. The returned channel gets the answer or is closed.
func (c *QMP) send(ctx context.Context, command string, arguments any, f *os.File) (<-chan qmpMessage, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, "", c.err
	}
	id := strconv.FormatUint(c.nextID, 10)
	c.nextID++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return nil, "", err
	}
	answer := make(chan qmpMessage, 1)
	c.pending[id] = answer
	deadline, _ := ctx.Deadline() // the zero time means none
	c.conn.SetWriteDeadline(deadline)
	if err := c.write(append(line, '\n'), f); err != nil {
		delete(c.pending, id)
		if errors.Is(err, os.ErrDeadlineExceeded) { // the context's, a moment before the context itself
			err = context.DeadlineExceeded
		}
		return nil, "", err
	}
	return answer, id, nil
}

// write writes a line, with a file if there is one. c.mu is held.
func (c *QMP) write(line []byte, f *os.File) error {
	if f == nil {
		_, err := c.conn.Write(line)
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var writeErr error
	err = raw.Control(func(fd uintptr) {
		_, _, writeErr = c.conn.(*net.UnixConn).WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, writeErr)
}

// read distributes answers and events until the connection ends.
func (c *QMP) read(decoder *json.Decoder) {
	defer close(c.done)
	defer close(c.events)
	for {
		var m qmpMessage
		if err := decoder.Decode(&m); err != nil {
			c.fail(err)
			return
		}
		if m.Event != "" {
			at := time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*int64(time.Microsecond))
			select {
			case c.events <- Event{Name: m.Event, Time: at, Data: m.Data}:
			default:
			}
			continue
		}
		c.mu.Lock()
		answer := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// fail ends all commands under way.
func (c *QMP) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = ErrQMPClosed
	if !errors.Is(cause, io.EOF) && !errors.Is(cause, net.ErrClosed) {
		c.err = fmt.Errorf("%w: %w", ErrQMPClosed, cause)
	}
	for id, answer := range c.pending {
		delete(c.pending, id)
		close(answer)
	}
}

func (c *QMP) closedError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
