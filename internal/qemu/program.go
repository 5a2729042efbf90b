package qemu

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoProgram means that no unpacked QEMU was found.
var ErrNoProgram = errors.New("no unpacked QEMU found; run scripts/setup.sh")

// Program is a QEMU package, unpacked with dpkg-deb -x and not installed: one that is newer than the machine's.
type Program struct {
	Binary   string   // for Config.Binary
	Firmware []string // for Config.Firmware
}

// FindProgram returns the newest QEMU that lies unpacked in dir/<package version>/. When there is none the error wraps ErrNoProgram.
func FindProgram(dir string) (Program, error) {
	binaries, err := filepath.Glob(filepath.Join(dir, "[0-9]*", "usr", "bin", DefaultBinary))
	if err != nil {
		return Program{}, fmt.Errorf("qemu: find QEMU in %s: %w", dir, err)
	}
	if len(binaries) == 0 {
		return Program{}, fmt.Errorf("qemu: find QEMU in %s: %w", dir, ErrNoProgram)
	}
	newest := slices.MaxFunc(binaries, func(a, b string) int {
		return compareVersions(strings.TrimPrefix(a, dir), strings.TrimPrefix(b, dir))
	})
	share := filepath.Join(filepath.Dir(filepath.Dir(newest)), "share")
	return Program{Binary: newest, Firmware: []string{filepath.Join(share, "qemu"), filepath.Join(share, "seabios")}}, nil
}
