package channel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// socketMode lets root and one group (that of QEMU's user, say) connect. Whoever can connect is the VM.
	socketMode = 0o660

	lockPatience = 2 * time.Second // for the lock of the socket's directory, which we hold for microseconds
	lockInterval = 10 * time.Millisecond
)

func dialUnix(ctx context.Context, addr Address) (Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", addr.Path)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: %w", ErrHostAway, err)
	}
	return nil, &Error{Op: "dial", Addr: addr, Err: err}
}

// unixListener removes its socket file itself: net.UnixListener would also remove the file of a successor.
type unixListener struct {
	addr  Address
	inner *net.UnixListener
	file  os.FileInfo // of the socket file that we made

	closeOnce sync.Once
	closeErr  error
}

func listenUnix(addr Address) (Listener, error) {
	l, hint, err := bindUnix(addr)
	if err != nil {
		return nil, &Error{Op: "listen", Addr: addr, Err: err, Hint: hint}
	}
	return l, nil
}

// bindUnix takes the place of a dead daemon, never that of a live one. The directory is locked meanwhile, so that two
// daemons that start together cannot both find a stale file and the slower one remove the socket of the faster one.
func bindUnix(addr Address) (_ *unixListener, hint string, err error) {
	unlock, err := lockDir(filepath.Dir(addr.Path))
	if err != nil {
		return nil, "the socket's directory must exist and be free: mkdir it, or let systemd do so with RuntimeDirectory=", err
	}
	defer unlock()
	if hint, err := removeStale(addr.Path); err != nil {
		return nil, hint, err
	}
	// bind gives the file the mode of the socket, less the umask (unix_bind_bsd, net/unix/af_unix.c): set before, it is
	// never open to others, not even for a moment.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var chmodErr error
		err := rc.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, chmodErr)
	}}
	inner, err := lc.Listen(context.Background(), "unix", addr.Path)
	if err != nil {
		return nil, "", err
	}
	l := &unixListener{addr: addr, inner: inner.(*net.UnixListener)}
	l.inner.SetUnlinkOnClose(false)
	if err := os.Chmod(addr.Path, socketMode); err != nil { // what the umask took away
		return nil, "", errors.Join(err, os.Remove(addr.Path), l.inner.Close())
	}
	if l.file, err = os.Lstat(addr.Path); err != nil {
		return nil, "", errors.Join(err, l.inner.Close())
	}
	return l, "", nil
}

// lockDir locks a directory against other daemons of ours until unlock is called. The lock leaves no file behind.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockInterval) {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(deadline) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// removeStale removes a socket file that nobody listens at.
//
// The probe is a datagram socket: its connect tells a live stream socket (EPROTOTYPE) from a file that outlived its process
// (ECONNREFUSED) and, unlike a stream's connect, is never seen by the live daemon (unix_find_bsd, net/unix/af_unix.c). A
// stream probe would be that daemon's newest connection and so end the VM's session.
func removeStale(path string) (hint string, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return "remove it, or choose another path", fmt.Errorf("%s exists and is not a socket", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case unix.ECONNREFUSED:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return "", nil
	case unix.ENOENT:
		return "", nil
	case nil, unix.EPROTOTYPE:
		return "is the host daemon already running? Stop it, or give this VM another path", ErrInUse
	default:
		return "", os.NewSyscallError("connect", err)
	}
}

func (l *unixListener) Accept() (Conn, error) {
	c, err := l.inner.AcceptUnix()
	if err != nil {
		return nil, &Error{Op: "accept", Addr: l.addr, Err: err}
	}
	return c, nil
}

// Close removes the file before the socket, so that nobody finds it stale meanwhile and puts his own in its place.
func (l *unixListener) Close() error {
	l.closeOnce.Do(func() {
		var removeErr error
		if info, err := os.Lstat(l.addr.Path); err == nil && os.SameFile(info, l.file) {
			removeErr = os.Remove(l.addr.Path)
		}
		l.closeErr = errors.Join(removeErr, l.inner.Close())
	})
	return l.closeErr
}

func (l *unixListener) Addr() Address { return l.addr }
