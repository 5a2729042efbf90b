package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// StateRoot is where labs keep their state, each in a directory of its name. It is there as long as there is a lab.
const StateRoot = "/run/spillway-lab"

// lockInterval is how often a lock that another process holds is tried.
const lockInterval = 10 * time.Millisecond

// lockRoot makes root if need be and keeps other processes from making or sweeping labs, and from removing root, until unlock is called. The
// lock goes with the process, and leaves no file behind.
func lockRoot(ctx context.Context, root string) (unlock func(), err error) {
	for {
		if err := os.MkdirAll(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) { // which it says when root goes in this moment
			return nil, err
		}
		unlock, err := lockExisting(ctx, root)
		if !errors.Is(err, os.ErrNotExist) {
			return unlock, err
		} // else another one's last lab has gone meanwhile, and root with it
	}
}

// removeRoot removes root unless there are labs, or there is one about to be.
func removeRoot(ctx context.Context, root string) error {
	unlock, err := lockExisting(ctx, root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := unix.Rmdir(root); err != nil && err != unix.ENOTEMPTY {
		return fmt.Errorf("remove %s: %w", root, err)
	}
	return nil
}

// lockExisting locks a directory. When it is not there, or is not there any more once the lock is ours, the error is fs.ErrNotExist.
func lockExisting(ctx context.Context, path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = waitLock(ctx, dir)
	if err == nil {
		err = stillNamed(dir, path)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { dir.Close() }, nil
}

func waitLock(ctx context.Context, dir *os.File) error {
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process makes or removes labs: %w", ctx.Err())
		case <-time.After(lockInterval):
		}
	}
}

// stillNamed is fs.ErrNotExist when path does not name dir any more.
func stillNamed(dir *os.File, path string) error {
	opened, err := dir.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(path)
	if err == nil && !os.SameFile(opened, named) {
		err = os.ErrNotExist
	}
	return err
}

// sweep removes the labs below root whose owners have been killed, and says so. The lock of root is held.
func sweep(ctx context.Context, root string, say func(string)) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		s, err := readState(dir)
		if err != nil || s.Owner == nil || s.Owner.alive() {
			continue // what cannot be read may be a lab that is meant to stay; `spillway lab down` removes it
		}
		say(fmt.Sprintf("removing lab %s, whose owner (pid %d) was killed", e.Name(), s.Owner.PID))
		if err := down(ctx, e.Name(), dir, say); err != nil {
			errs = append(errs, fmt.Errorf("remove lab %s of a killed process: %w; try: spillway lab down --name %s", e.Name(), err, e.Name()))
		}
	}
	return errors.Join(errs...)
}

// taken is an error if there is a lab of that name below root whose place another one cannot take.
func taken(root, name string) error {
	dir := filepath.Join(root, name)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if s, err := readState(dir); err == nil && s.Owner != nil && !s.Owner.alive() {
		return nil // sweep removes it
	}
	return isThere(name)
}

func isThere(name string) error {
	return fmt.Errorf("lab %s is there already; remove it with: spillway lab down --name %s", name, name)
}

// List names the labs that exist.
func List() ([]string, error) {
	entries, err := os.ReadDir(StateRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// AdminSockets are the admin sockets of the labs' host daemons that somebody listens at.
func AdminSockets() []string {
	var live []string
	for _, pattern := range []string{"*/" + adminName, "*/*/" + adminName} { // of a lab with one host, and of one with several
		sockets, _ := filepath.Glob(filepath.Join(StateRoot, pattern)) // the pattern is valid
		for _, s := range sockets {
			if c, err := net.Dial("unix", s); err == nil {
				c.Close()
				live = append(live, s)
			}
		}
	}
	return live
}
