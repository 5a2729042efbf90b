package qemu

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFindKernel(t *testing.T) {
	dir := t.TempDir()
	if _, err := FindKernel(dir); !errors.Is(err, ErrNoKernel) {
		t.Errorf("in an empty directory: %v, want ErrNoKernel", err)
	}
	for version, release := range map[string]string{
		"6.1.99-1":      "6.1.0-9-amd64",
		"6.1.192-2":     "6.1.0-56-amd64",
		"6.1.176-1":     "6.1.0-50-amd64",
		".fetch.6.12.1": "6.12.0-1-amd64", // half a download
	} {
		boot := filepath.Join(dir, version, "boot")
		if err := os.MkdirAll(boot, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(boot, "vmlinuz-"+release), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := FindKernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Kernel{Root: filepath.Join(dir, "6.1.192-2"), Release: "6.1.0-56-amd64"}); got != want {
		t.Errorf("FindKernel = %+v, want %+v", got, want)
	}
}

func TestCompareVersions(t *testing.T) {
	ordered := []string{"", "5.10.9", "6.1", "6.1.9-2", "6.1.9-10", "6.1.010-1", "6.1.10-2", "6.12.1"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compareVersions(%q, %q) = %d", a, b, got)
			}
		}
	}
}

// bzImage makes a kernel image with the given payload behind a setup header.
func bzImage(payload []byte) []byte {
	const setupSectors, gap = 2, 100
	image := make([]byte, (setupSectors+1)*sectorBytes+gap)
	image[setupSectorsOffset] = setupSectors
	copy(image[bootMagicOffset:], bootMagic)
	binary.LittleEndian.PutUint16(image[bootVersionOffset:], 0x020f)
	binary.LittleEndian.PutUint32(image[payloadOffsetOffset:], gap)
	binary.LittleEndian.PutUint32(image[payloadLengthOffset:], uint32(len(payload)))
	return append(append(image, payload...), "behind the payload"...)
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtractELF(t *testing.T) {
	kernel := []byte(elfMagic + "the rest of a kernel")
	zip := gzipped(t, kernel)
	oldProtocol := bzImage(kernel)
	binary.LittleEndian.PutUint16(oldProtocol[bootVersionOffset:], 0x0207)
	xz, err := os.ReadFile("testdata/x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		image []byte
		err   string // part of the message; empty: the kernel comes out
	}{
		{"plain", bzImage(kernel), ""},
		{"gzip", bzImage(zip), ""},
		{"gzip with padding", bzImage(append(bytes.Clone(zip), 0, 0, 0, 0)), ""},
		{"gzip, damaged", bzImage(zip[:len(zip)-1]), "unexpected EOF"},
		{"xz of something else", bzImage(xz), "no ELF file"},
		{"zstd", bzImage([]byte("\x28\xb5\x2f\xfd....")), "compression is zstd"},
		{"lz4", bzImage([]byte("\x02\x21\x4c\x18....")), "compression is lz4"},
		{"unknown", bzImage([]byte("abc")), "unknown (magic 61 62 63)"},
		{"old boot protocol", oldProtocol, "boot protocol 2.07"},
		{"cut short", bzImage(kernel)[:1600], "lies behind the file's"},
		{"not a kernel", []byte("hello"), "no bzImage"},
		{"empty", nil, "no bzImage"},
	} {
		got, err := extractELF(c.image)
		switch {
		case c.err == "" && (err != nil || !bytes.Equal(got, kernel)):
			t.Errorf("%s: %q, %v", c.name, got, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.err)
		}
	}
}

func TestELFIsCached(t *testing.T) {
	root := t.TempDir()
	boot := filepath.Join(root, "boot")
	if err := os.Mkdir(boot, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(boot, "vmlinuz-6.1")
	if err := os.WriteFile(image, bzImage([]byte(elfMagic)), 0o644); err != nil {
		t.Fatal(err)
	}
	kernel := Kernel{Root: root, Release: "6.1"}
	first, err := kernel.ELF()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(image); err != nil { // the second call must not need it
		t.Fatal(err)
	}
	if second, err := kernel.ELF(); err != nil || second != first {
		t.Errorf("second call: %q, %v, want %q", second, err, first)
	}
	var names []string
	entries, err := os.ReadDir(boot)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"vmlinux-6.1"}, names); diff != "" {
		t.Errorf("files in boot (-want +got):\n%s", diff)
	}
}

func TestModules(t *testing.T) {
	kernel := testKernel(t)
	modules, err := kernel.Modules(append(GuestModules(), "virtio-net", "unix")...) // with dashes, again, built in
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range modules {
		depends, err := m.depends()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range depends {
			if !slices.Contains(names, moduleName(d)) {
				t.Errorf("%s comes before %s, which it depends on", m.Name, d)
			}
		}
		if slices.Contains(names, m.Name) {
			t.Errorf("%s comes twice", m.Name)
		}
		names = append(names, m.Name)
	}
	for _, want := range []string{"virtio", "virtio_pci", "virtio_net", "virtio_console", "9p", "9pnet_virtio"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing in %v", want, names)
		}
	}
	if slices.Contains(names, "unix") {
		t.Error("unix is built in and needs no loading")
	}
	if _, err := kernel.Modules("no_such_module"); !errors.Is(err, ErrNoModule) {
		t.Errorf("unknown module: %v, want ErrNoModule", err)
	}
}
