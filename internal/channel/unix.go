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

	"spillway/internal/unixsock"
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

// unixListener is a Listener at a unix socket.
type unixListener struct {
	addr Address
	*SocketFile
}

func listenUnix(addr Address, gid int) (Listener, error) {
	f, err := ListenSocketFile(addr.Path, socketMode, gid)
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, errOurs):
			hint = "give this VM another path"
		case errors.Is(err, ErrInUse):
			hint = "is the host daemon already running? Stop it, or give this VM another path"
		}
		return nil, &Error{Op: "listen", Addr: addr, Err: err, Hint: hint}
	}
	return &unixListener{addr, f}, nil
}

// SocketFile listens at a unix socket (net.Listener). It removes the file itself: net.UnixListener would also remove the file of a successor.
type SocketFile struct {
	*net.UnixListener
	path string
	made os.FileInfo // the file that we made

	closeOnce sync.Once
	closeErr  error
}

// ListenSocketFile takes the place of a dead process at path, never that of a live one, whose error is ErrInUse. The directory is locked meanwhile, so that two
// processes that start together cannot both find a stale file and the slower one remove the socket of the faster one. The file gets the group gid, unless that
// is NoGroup. The caller closes the SocketFile.
func ListenSocketFile(path string, mode fs.FileMode, gid int) (*SocketFile, error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%w; the socket's directory must exist and be free: mkdir it, or let systemd do so with RuntimeDirectory=", err)
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// bind gives the file the mode of the socket, less the umask (unix_bind_bsd, net/unix/af_unix.c): set before, it is
	// never open to others, not even for a moment.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var chmodErr error
		err := rc.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), uint32(mode.Perm())) })
		return errors.Join(err, chmodErr)
	}}
	inner, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	l := &SocketFile{UnixListener: inner.(*net.UnixListener), path: path}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(path, mode.Perm()) // what the umask took away
	if err == nil && gid != NoGroup {
		err = os.Lchown(path, -1, gid)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path), l.UnixListener.Close())
	}
	if l.made, err = os.Lstat(path); err != nil {
		return nil, errors.Join(err, l.UnixListener.Close())
	}
	return l, nil
}

// Close removes the file before the socket, so that nobody finds it stale meanwhile and puts his own in its place.
func (l *SocketFile) Close() error {
	l.closeOnce.Do(func() {
		var removeErr error
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.made) {
			removeErr = os.Remove(l.path)
		}
		l.closeErr = errors.Join(removeErr, l.UnixListener.Close())
	})
	return l.closeErr
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
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket; remove it, or choose another path", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case unix.ECONNREFUSED:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case unix.ENOENT:
		return nil
	case nil, unix.EPROTOTYPE:
		return inUse(path)
	default:
		return os.NewSyscallError("connect", err)
	}
}

// errOurs goes with ErrInUse where a configuration leads to the same socket twice, by a symbolic link, say.
var errOurs = errors.New("this process itself, by another of its settings")

// inUse is ErrInUse with the process that has the socket, where it can be found.
func inUse(path string) error {
	switch owner, ok := unixsock.Find(path); {
	case !ok:
		return ErrInUse
	case owner.PID == os.Getpid():
		return fmt.Errorf("%w: %w", ErrInUse, errOurs)
	default:
		return fmt.Errorf("%w: %v", ErrInUse, owner)
	}
}

func (l *unixListener) Accept() (Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, &Error{Op: "accept", Addr: l.addr, Err: err}
	}
	return c, nil
}

func (l *unixListener) Addr() Address { return l.addr }
