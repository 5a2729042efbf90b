package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stream carries a migration from the source's QEMU to the destination's, through this process, which can thus hold it: QEMU pauses the guest as soon as all memory is
// across, and while it cannot write, it is not. When this process ends, so does the migration, and the source's guest runs on.
//
// Its methods are safe for concurrent use.
type Stream struct {
	ours        net.Conn // joined with theirs
	theirs      *os.File // the end that QEMU writes to, for its buffer's size
	destination net.Conn
	done        sync.WaitGroup

	mu      sync.Mutex
	change  sync.Cond
	flowing bool
	pace    int64 // bytes a second, while it flows; 0: as fast as it goes
	allowed int64 // bytes that may pass while it does not flow
	closed  bool
}

// Sizes of the buffer between QEMU and us, bytes: it is what QEMU writes although nothing passes. The kernel doubles both, and has its own minimum (SOCK_MIN_SNDBUF).
const (
	flowBuffer = 1 << 20
	holdBuffer = 1
	chunk      = 64 << 10
)

// MigrateThrough begins a migration to uri, where the destination's QEMU listens, through a Stream, which flows at bytesPerSecond; 0: as fast as it goes. The caller closes it when
// the migration is over.
func (c *QMP) MigrateThrough(ctx context.Context, uri string, bytesPerSecond int64) (*Stream, error) {
	network, address, _ := strings.Cut(uri, ":")
	var d net.Dialer
	destination, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("qemu: connect to the destination's QEMU: %w", err)
	}
	s := &Stream{destination: destination, flowing: true, pace: bytesPerSecond}
	s.change.L = &s.mu
	if err := s.join(); err != nil {
		destination.Close()
		return nil, err
	}
	const name = "spillway-migration"
	if err = c.passFile(ctx, name, s.theirs); err == nil {
		s.buffer(flowBuffer)
		s.done.Go(s.forward)
		s.done.Go(s.back)
		err = c.Migrate(ctx, "fd:"+name)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// join makes the two ends between QEMU and us.
func (s *Stream) join() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	s.theirs = os.NewFile(uintptr(fds[1]), "migration")
	ours := os.NewFile(uintptr(fds[0]), "migration")
	defer ours.Close()
	if s.ours, err = net.FileConn(ours); err != nil {
		s.theirs.Close()
	}
	return err
}

// buffer sets how many bytes QEMU may be ahead.
func (s *Stream) buffer(bytes int) {
	raw, err := s.theirs.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { // a socket takes any size
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, bytes)
		})
	}
}

// Flow lets everything pass.
func (s *Stream) Flow() { s.set(true, 0, flowBuffer) }

// Flood is Flow as fast as it goes, from now on: a paused guest waits for the rest.
func (s *Stream) Flood() {
	s.mu.Lock()
	s.pace = 0
	s.mu.Unlock()
	s.Flow()
}

// Hold lets nothing pass. QEMU may be ahead by the buffer.
func (s *Stream) Hold() { s.set(false, 0, holdBuffer) }

// Step lets so many bytes pass, and nothing after them.
func (s *Stream) Step(bytes int64) { s.set(false, bytes, holdBuffer) }

func (s *Stream) set(flowing bool, allowed int64, buffer int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.flowing != flowing || !flowing {
		s.buffer(buffer)
	}
	s.flowing, s.allowed = flowing, allowed
	s.change.Broadcast()
}

// room waits until something may pass, and returns how much; 0 at the end.
func (s *Stream) room() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closed && !s.flowing && s.allowed <= 0 {
		s.change.Wait()
	}
	switch {
	case s.closed:
		return 0
	case s.flowing:
		return chunk
	}
	return min(s.allowed, chunk)
}

// forward carries what the source sends. At an end it passes that on: QEMU knows what it means.
func (s *Stream) forward() {
	defer s.destination.Close()
	defer s.ours.Close()
	buf := make([]byte, chunk)
	for {
		n := s.room()
		if n == 0 {
			return
		}
		got, err := s.ours.Read(buf[:n])
		if err != nil {
			return
		}
		if _, err := s.destination.Write(buf[:got]); err != nil {
			return
		}
		s.mu.Lock()
		s.allowed -= int64(got)
		pace := s.pace
		s.mu.Unlock()
		if pace > 0 { // a chunk is short
			time.Sleep(time.Duration(got) * time.Second / time.Duration(pace))
		}
	}
}

// back carries what the destination answers: whether it could take the VM (return-path).
func (s *Stream) back() {
	defer s.destination.Close()
	defer s.ours.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := s.destination.Read(buf)
		if err != nil {
			return
		}
		if _, err := s.ours.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Close ends the stream, and with it a migration that is under way.
func (s *Stream) Close() {
	s.mu.Lock()
	s.closed = true
	s.change.Broadcast()
	s.mu.Unlock()
	s.ours.Close()
	s.destination.Close()
	s.theirs.Close()
	s.done.Wait()
}
