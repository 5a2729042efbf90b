package redirect

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"spillway/internal/unixsock"
)

// A lock is a set of abstract unix sockets that are bound and never listened on. Abstract names belong to the network
// namespace, exactly as the redirect does, and the kernel drops them with the process, whatever killed it. The mark and
// the routing table are locked beside the nftables table: two daemons that share one of them would undo each other.
//
// Abstract names have no owner: any process of the namespace can take one. It gains nothing but that a daemon says
// ErrInUse and does not start.
type lock struct{ fds []int }

// lockNames returns the names to lock. The = keeps the numbers' names apart from any table's: see nameRune.
func lockNames(cfg Config) []string {
	return []string{
		"@spillway-redirect-" + cfg.Table,
		markLockName(cfg.Mark),
		fmt.Sprintf("@spillway-redirect-route_table=%d", cfg.RouteTable),
	}
}

func markLockName(mark uint32) string { return fmt.Sprintf("@spillway-redirect-mark=%#x", mark) }

// acquireLock takes every name or none; when one is taken already the error is ErrInUse. The caller releases it.
func acquireLock(names ...string) (*lock, error) {
	l := &lock{}
	for _, name := range names {
		// Close-on-exec: a VM that the daemon starts must not keep the lock when the daemon is gone.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			l.release()
			return nil, fmt.Errorf("socket: %w", err)
		}
		l.fds = append(l.fds, fd)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: name})
		if err == nil {
			continue
		}
		l.release()
		if errors.Is(err, unix.EADDRINUSE) {
			if owner, ok := unixsock.Find(name); ok {
				return nil, fmt.Errorf("%w; it is %v", ErrInUse, owner)
			}
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("bind %s: %w", name, err)
	}
	return l, nil
}

func (l *lock) release() {
	for _, fd := range l.fds {
		_ = unix.Close(fd) // a unix socket has nothing to flush
	}
	l.fds = nil
}

// anyHeld reports whether a process of this network namespace holds one of the names, without taking any. The list of
// unix sockets shows abstract names as we write them, with a leading @.
func anyHeld(names ...string) (bool, error) {
	list, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(list)) {
		columns := strings.Fields(line)
		if len(columns) > 0 && slices.Contains(names, columns[len(columns)-1]) {
			return true, nil
		}
	}
	return false, nil
}
