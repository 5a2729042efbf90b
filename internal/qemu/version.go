package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// Version is QEMU's version.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// atLeast reports whether v is major.minor or later.
func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// reconnectOption makes a client socket come back every second. QEMU 9.2 introduced reconnect-ms and deprecated reconnect
// (docs/about/deprecated.rst).
func (v Version) reconnectOption() string {
	if v.atLeast(9, 2) {
		return "reconnect-ms=1000"
	}
	return "reconnect=1"
}

// ProgramVersion asks a QEMU program for its version; empty means DefaultBinary.
func ProgramVersion(ctx context.Context, binary string) (Version, error) {
	if binary == "" {
		binary = DefaultBinary
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return Version{}, fmt.Errorf("%w (%w)", ErrNoQEMU, err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Version{}, fmt.Errorf("%s --version: %w", path, err)
	}
	return parseVersion(out)
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian …)".
func parseVersion(out []byte) (Version, error) {
	var v Version
	_, number, found := bytes.Cut(out, []byte(" version "))
	if !found {
		return v, fmt.Errorf("no version in %q", out)
	}
	if _, err := fmt.Sscanf(string(number), "%d.%d.%d", &v.Major, &v.Minor, &v.Micro); err != nil {
		return v, fmt.Errorf("no version in %q: %w", out, err)
	}
	return v, nil
}
