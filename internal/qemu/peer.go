package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// listenerPID returns the process that listens on a unix socket. The kernel tells it (SO_PEERCRED, unix(7)), so that no pid
// file can be stale. When nobody listens the error wraps ErrNotRunning.
func listenerPID(ctx context.Context, socketPath string) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socketPath)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("%w (%w)", ErrNotRunning, err)
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED of %s: %w", socketPath, credErr)
	}
	return int(cred.Pid), nil
}
