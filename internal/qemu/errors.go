package qemu

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNoKernel means that no unpacked kernel package was found.
	ErrNoKernel = errors.New("no unpacked kernel package found; run scripts/setup.sh")
	// ErrNoQEMU means that the QEMU program is not installed.
	ErrNoQEMU = errors.New("QEMU is not installed; run scripts/setup.sh")
	// ErrExited means that QEMU ended before what was waited for happened. A guest whose init or kernel dies ends QEMU,
	// too. Under TCG about one boot in twenty dies for no fault of the guest: the caller tries again.
	ErrExited = errors.New("QEMU has exited")
	// ErrTimeout means that a time limit passed first. errors.Is(err, context.DeadlineExceeded) holds as well when it was
	// the caller's.
	ErrTimeout = errors.New("timed out")
	// ErrNotRunning means that no QEMU listens on the QMP socket.
	ErrNotRunning = errors.New("no QEMU is running behind the QMP socket")
)

// Error is the failure of one operation on a VM.
type Error struct {
	Op      string // what failed: "start", "wait for the console", "stop" …
	VM      string // Config.Name
	Running bool   // the QEMU process is still there; Stop ends it
	Err     error  // the cause; wraps one of the sentinels of this package where one fits
	Stderr  string // the last lines QEMU itself wrote
	Console string // the last lines of the guest's console
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "qemu: %s VM %q: %v", e.Op, e.VM, e.Err)
	for _, part := range []struct{ title, text string }{{"QEMU said", e.Stderr}, {"console", e.Console}} {
		if part.text != "" {
			fmt.Fprintf(&b, "\n%s:\n  %s", part.title, strings.ReplaceAll(part.text, "\n", "\n  "))
		}
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }
