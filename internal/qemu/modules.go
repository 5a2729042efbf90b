package qemu

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

// Module is one loadable kernel module.
type Module struct {
	Name string // with underscores, as the kernel names it
	Path string // the .ko or .ko.xz file
}

// ErrNoModule means that the kernel has a module neither as a file nor built in.
var ErrNoModule = errors.New("the kernel has no such module")

// GuestModules returns the modules that a guest of this package needs: PCI transport, network interface, virtio-serial and
// 9p shares. Virtiofs shares need the module virtiofs, too.
func GuestModules() []string {
	return []string{"virtio_pci", "virtio_net", "virtio_console", "9p", "9pnet_virtio"}
}

// Modules returns the wanted modules and all they depend on, in load order and without those built into the kernel.
// An unpacked package has no modules.dep (depmod runs at installation), so that the dependencies are read from the
// modules themselves.
func (k Kernel) Modules(wanted ...string) ([]Module, error) {
	dir := filepath.Join(k.Root, "lib", "modules", k.Release)
	r := moduleResolver{state: make(map[string]resolveState)}
	var err error
	if r.builtin, err = readBuiltin(filepath.Join(dir, "modules.builtin")); err != nil {
		return nil, fmt.Errorf("qemu: modules of kernel %s: %w", k.Release, err)
	}
	if r.files, err = findModules(dir); err != nil {
		return nil, fmt.Errorf("qemu: modules of kernel %s: %w", k.Release, err)
	}
	for _, name := range wanted {
		if err := r.resolve(name); err != nil {
			return nil, fmt.Errorf("qemu: modules of kernel %s: %w", k.Release, err)
		}
	}
	return r.order, nil
}

// Read returns the module's content, decompressed.
func (m Module) Read() ([]byte, error) {
	data, err := os.ReadFile(m.Path)
	if err != nil {
		return nil, err
	}
	switch ext := filepath.Ext(m.Path); ext {
	case ".ko":
		return data, nil
	case ".xz":
		r, err := xz.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Path, err)
		}
		return readBounded(r, 0)
	case ".gz":
		return decompressGzip(data)
	default:
		return nil, fmt.Errorf("%s: compression %s is not supported; known are .ko, .ko.xz and .ko.gz", m.Path, ext)
	}
}

// resolveState marks modules during the depth-first walk.
type resolveState int

const (
	unseen resolveState = iota
	resolving
	resolved
)

type moduleResolver struct {
	builtin map[string]bool
	files   map[string]string // path by name
	state   map[string]resolveState
	order   []Module
}

// resolve appends a module behind its dependencies.
func (r *moduleResolver) resolve(name string) error {
	name = moduleName(name)
	switch r.state[name] {
	case resolved:
		return nil
	case resolving:
		return fmt.Errorf("%s: depends on itself", name)
	}
	path, isFile := r.files[name]
	if !isFile {
		if r.builtin[name] {
			return nil
		}
		return fmt.Errorf("%s: %w", name, ErrNoModule)
	}
	r.state[name] = resolving
	module := Module{Name: name, Path: path}
	depends, err := module.depends()
	if err != nil {
		return err
	}
	for _, d := range depends {
		if err := r.resolve(d); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	r.state[name] = resolved
	r.order = append(r.order, module)
	return nil
}

// depends reads the depends= entry of the module's .modinfo section: NUL-separated key=value strings
// (include/linux/moduleparam.h, scripts/mod/modpost.c).
func (m Module) depends() ([]string, error) {
	data, err := m.Read()
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Path, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s: no .modinfo section", m.Path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Path, err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok {
			return strings.FieldsFunc(string(list), func(c rune) bool { return c == ',' }), nil
		}
	}
	return nil, nil
}

// findModules maps the names of all modules below dir to their files.
func findModules(dir string) (map[string]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if at := strings.Index(base, ".ko"); at > 0 && d.Type().IsRegular() {
			files[moduleName(base[:at])] = path
		}
		return nil
	})
	return files, err
}

// readBuiltin reads modules.builtin: one path such as kernel/fs/fuse/fuse.ko a line.
func readBuiltin(name string) (map[string]bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	builtin := make(map[string]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		builtin[moduleName(strings.TrimSuffix(filepath.Base(lines.Text()), ".ko"))] = true
	}
	return builtin, lines.Err()
}

// moduleName is the kernel's spelling of a module's name: file names and users may write dashes.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }
