package qemu

import (
	"bufio"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"spillway/internal/guestinit"
)

// ErrNotStatic means that the init binary needs a dynamic linker, which the guest does not have.
var ErrNotStatic = errors.New("the init binary is not static; build it with CGO_ENABLED=0")

// Initramfs is the guest's root file system: the init binary, the modules that it loads, what it is told to do, and
// nothing else. Package guestinit is the other side.
type Initramfs struct {
	InitPath string            // the host's path of the static binary; it becomes /init
	Modules  []Module          // in load order
	Spec     guestinit.Spec    // becomes guestinit.SpecPath
	Files    map[string][]byte // more files by absolute path
	Programs map[string]string // more executable files by absolute path, each with the host's path
}

// Numbers of /dev/console: Documentation/admin-guide/devices.txt. The kernel opens it before init runs.
const (
	consoleMajor = 5
	consoleMinor = 1
)

// WriteFile writes the archive, cpio in the newc format and not compressed: QEMU copies it into the guest's memory, where
// decompression would cost more than the copy.
func (i Initramfs) WriteFile(name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("qemu: write initramfs %s: %w", name, err)
		}
	}()
	records, err := i.records()
	if err != nil {
		return err
	}
	init, err := os.Open(i.InitPath)
	if err != nil {
		return err
	}
	defer init.Close()
	initRecord, err := initRecord(init)
	if err != nil {
		return err
	}

	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			os.Remove(name)
		}
	}()
	const bufferBytes = 1 << 20
	w := bufio.NewWriterSize(f, bufferBytes)
	archive := cpio.Newc.Writer(w)
	if err := cpio.WriteRecords(archive, withParents(append(records, initRecord))); err != nil {
		return err
	}
	if err := cpio.WriteTrailer(archive); err != nil {
		return err
	}
	return w.Flush()
}

// records returns all of the archive but the init binary.
func (i Initramfs) records() ([]cpio.Record, error) {
	records := []cpio.Record{
		cpio.CharDev("dev/console", 0o600, consoleMajor, consoleMinor),
	}
	for n, m := range i.Modules {
		data, err := m.Read()
		if err != nil {
			return nil, err
		}
		records = append(records, file(guestinit.ModulePath(n, m.Name), data))
	}
	spec, err := json.Marshal(i.Spec)
	if err != nil {
		return nil, err
	}
	records = append(records, file(guestinit.SpecPath, spec))
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		if !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("file %q: not a clean absolute path", name)
		}
		records = append(records, file(name, i.Files[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(i.Programs)) {
		if !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("program %q: not a clean absolute path", name)
		}
		data, err := os.ReadFile(i.Programs[name])
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(strings.TrimPrefix(name, "/"), string(data), 0o755))
	}
	return records, nil
}

// withParents puts each record's directories before it: the kernel creates none by itself (init/initramfs.c).
func withParents(records []cpio.Record) []cpio.Record {
	seen := make(map[string]bool)
	var all []cpio.Record
	for _, r := range records {
		for at, c := range r.Name {
			if dir := r.Name[:at]; c == '/' && !seen[dir] {
				seen[dir] = true
				all = append(all, cpio.Directory(dir, 0o755))
			}
		}
		all = append(all, r)
	}
	return all
}

func file(name string, data []byte) cpio.Record {
	return cpio.StaticFile(strings.TrimPrefix(name, "/"), string(data), 0o644)
}

// initRecord checks that the open file can run as init and makes it the record /init.
func initRecord(f *os.File) (cpio.Record, error) {
	program, err := elf.NewFile(f)
	if err != nil {
		return cpio.Record{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return cpio.Record{}, fmt.Errorf("%s: %w", f.Name(), ErrNotStatic)
		}
	}
	stat, err := f.Stat()
	if err != nil {
		return cpio.Record{}, err
	}
	record := cpio.StaticFile("init", "", 0o755)
	record.FileSize = uint64(stat.Size())
	record.ReaderAt = io.NewSectionReader(f, 0, stat.Size())
	return record, nil
}
