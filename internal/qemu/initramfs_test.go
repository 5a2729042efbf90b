package qemu

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"

	"spillway/internal/guestinit"
)

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	module := filepath.Join(dir, "virtio.ko.gz")
	if err := os.WriteFile(module, gzipped(t, []byte("a module")), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := guestinit.Spec{Hostname: "guest"}
	name := filepath.Join(dir, "initramfs.cpio")
	if err := (Initramfs{
		InitPath: guestBinary(t),
		Modules:  []Module{{Name: "virtio", Path: module}},
		Spec:     spec,
		Files:    map[string][]byte{"/etc/spillway/serve.toml": []byte("x = 1\n")},
	}).WriteFile(name); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(f))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	content := make(map[string]string)
	for _, r := range records {
		names = append(names, r.Name)
		data, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil {
			t.Fatal(err)
		}
		content[r.Name] = string(data)
		if r.Name == "dev/console" && (r.Mode != cpio.S_IFCHR|0o600 || r.Rmajor != 5 || r.Rminor != 1) {
			t.Errorf("dev/console has mode %o and number %d:%d", r.Mode, r.Rmajor, r.Rminor)
		}
		if r.Name == "init" && r.Mode != cpio.S_IFREG|0o755 {
			t.Errorf("init has mode %o", r.Mode)
		}
	}
	wantNames := []string{"dev", "dev/console", "modules", "modules/000-virtio.ko", "spillway.json",
		"etc", "etc/spillway", "etc/spillway/serve.toml", "init"}
	if diff := cmp.Diff(wantNames, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	wantSpec, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	wantInit, err := os.ReadFile(guestBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules/000-virtio.ko":   "a module",
		"spillway.json":           string(wantSpec),
		"etc/spillway/serve.toml": "x = 1\n",
		"init":                    string(wantInit),
	} {
		if content[name] != want {
			t.Errorf("%s: %d bytes, which are not the %d wanted", name, len(content[name]), len(want))
		}
	}
}

func TestInitramfsRefuses(t *testing.T) {
	dynamic, err := exec.LookPath(DefaultBinary)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "initramfs.cpio")
	if err := (Initramfs{InitPath: dynamic}).WriteFile(name); !errors.Is(err, ErrNotStatic) {
		t.Errorf("dynamic init: %v, want ErrNotStatic", err)
	}
	if err := (Initramfs{InitPath: "/etc/passwd"}).WriteFile(name); err == nil {
		t.Error("an init that is no program is accepted")
	}
	for _, path := range []string{"relative", "/a/../b", "/dir/"} {
		if err := (Initramfs{InitPath: guestBinary(t), Files: map[string][]byte{path: nil}}).WriteFile(name); err == nil {
			t.Errorf("file %q is accepted", path)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
