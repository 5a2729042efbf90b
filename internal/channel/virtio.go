package channel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ports is where the kernel shows virtio-serial ports, and how one is opened.
type ports struct {
	sysfs string // one directory a port, which holds the file "name"
	dev   string // one device node a port, of the directory's name
	open  func(node string) (fd int, err error)
}

// systemPorts are the running kernel's, drivers/char/virtio_console.c: the class "virtio-ports" and its devices
// vport<device>p<port>.
func systemPorts() ports {
	return ports{sysfs: "/sys/class/virtio-ports", dev: "/dev", open: openPort}
}

// NoPortError says that the machine has no virtio-serial port of this name. The driver learns a port's name a moment after
// the port itself, so early in a boot this may pass by itself.
type NoPortError struct {
	Name    string
	Present []string // the names of the ports that exist
}

func (e *NoPortError) Error() string {
	present := "none; is the module virtio_console loaded?"
	if len(e.Present) > 0 {
		present = strings.Join(e.Present, ", ")
	}
	return fmt.Sprintf("this machine has no virtio-serial port named %q (present: %s)", e.Name, present)
}

// qemuArguments are the arguments that give a VM the port, with QEMU as the client of the host daemon's socket.
func qemuArguments(path, name string) string {
	return fmt.Sprintf("-device virtio-serial-pci -chardev socket,id=spillway,path=%s,reconnect=1 "+
		"-device virtserialport,chardev=spillway,name=%s", path, name)
}

// find returns the device node of the port with this name.
func (p ports) find(name string) (string, error) {
	entries, err := os.ReadDir(p.sysfs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var present []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(p.sysfs, e.Name(), "name"))
		if err != nil {
			continue // a port without a name (yet), or one that was just unplugged
		}
		n := strings.TrimSpace(string(text))
		if n == name {
			return filepath.Join(p.dev, e.Name()), nil
		}
		present = append(present, n)
	}
	return "", &NoPortError{Name: name, Present: present}
}

// dialVirtio opens a port whose host side is connected; otherwise it fails with ErrHostAway, as a dial of any other kind
// does, so that a session only ever starts with somebody to talk to.
//
// A port is closed and opened anew between sessions. Closing makes the driver discard what it has received
// (port_fops_release), so a new session does not begin with the remains of the old one, and an open costs only one control
// message to QEMU.
func dialVirtio(addr Address, system ports) (Conn, error) {
	fail := func(err error, hint string) (Conn, error) {
		return nil, &Error{Op: "dial", Addr: addr, Err: err, Hint: hint}
	}
	node, err := system.find(addr.Name)
	if err != nil {
		return fail(err, "start QEMU with "+qemuArguments("PATH", addr.Name)+", PATH being the unix channel of the host daemon")
	}
	fd, err := system.open(node)
	switch {
	case errors.Is(err, unix.EBUSY): // port_fops_open: one process at a time
		return fail(err, "another process has the port open: is a second media server running?")
	case errors.Is(err, fs.ErrNotExist):
		return fail(err, "the device node is missing: is devtmpfs mounted at /dev?")
	case errors.Is(err, fs.ErrPermission):
		return fail(err, "run as root, or give the user access to the device")
	case err != nil:
		return fail(err, "")
	}
	away, err := hostAway(fd)
	if err == nil && away {
		err = ErrHostAway
	}
	if err != nil {
		unix.Close(fd)
		return fail(err, "")
	}
	p, err := newPort(addr, fd, node)
	if err != nil {
		return fail(err, "it is not the device of a virtio-serial port")
	}
	return p, nil
}

func openPort(node string) (int, error) {
	for {
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != unix.EINTR {
			return fd, os.NewSyscallError("open "+node, err)
		}
	}
}

// hostAway tells whether nobody is connected to the host's side: port_fops_poll then reports POLLHUP.
//
// It must only be called before the fd is given to Go's poller. port_fops_poll takes finished buffers off both virtqueues;
// when it does so between the host's work and its interrupt, vring_interrupt finds nothing to do and wakes nobody. Whoever
// polls learns of the buffers; a second, sleeping poller would not ("virtio: console: fix lost wakeup when device is
// written and polled" has the story; kernels before 2026 lack the fix). The registration that follows asks once more.
func hostAway(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP is always reported
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return fds[0].Revents&unix.POLLHUP != 0, os.NewSyscallError("poll", err)
		}
	}
}

// port is an open virtio-serial port.
//
// With the host away a read returns 0 bytes at once, which os.File turns into io.EOF, and a write waits (EAGAIN, POLLHUP).
// So the first Read that sees the end also ends all writing; who writes needs no poll(2) of its own, which would not be
// safe (see hostAway). Partial writes, at most 32 KiB each (port_fops_write), and EAGAIN are os.File's business.
type port struct {
	addr Address
	f    *os.File

	mu   sync.Mutex
	away bool // a read saw the host gone: the write deadline stays in the past
}

// newPort gives fd, which must be non-blocking, to Go's poller. It owns fd from here on, also when it fails.
func newPort(addr Address, fd int, node string) (*port, error) {
	f := os.NewFile(uintptr(fd), node)
	// NewFile falls back to blocking I/O in silence when the poller refuses the fd. Only a polled file has deadlines, and
	// without the poller Close would not unblock a Read.
	if err := f.SetDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s cannot be polled: %w", node, err)
	}
	return &port{addr: addr, f: f}, nil
}

// SyscallConn lets a reader ask the port without waiting.
func (p *port) SyscallConn() (syscall.RawConn, error) { return p.f.SyscallConn() }

func (p *port) Read(b []byte) (int, error) {
	n, err := p.f.Read(b)
	if err == io.EOF {
		p.mu.Lock()
		p.away = true
		p.f.SetWriteDeadline(time.Unix(1, 0)) // fails on a closed file only, where no write can wait either
		p.mu.Unlock()
	}
	return n, err
}

func (p *port) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	if err == nil {
		return n, nil
	}
	p.mu.Lock()
	away := p.away
	p.mu.Unlock()
	if away && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrHostAway
	}
	return n, &Error{Op: "write", Addr: p.addr, Err: err}
}

func (p *port) SetReadDeadline(t time.Time) error { return p.f.SetReadDeadline(t) }

func (p *port) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		return nil
	}
	return p.f.SetWriteDeadline(t)
}

func (p *port) Close() error { return p.f.Close() }
