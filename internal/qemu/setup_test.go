package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSetupCheck proves that scripts/setup.sh and FindKernel and FindProgram agree on where things lie. Where nginx lies package nginx tests.
func TestSetupCheck(t *testing.T) {
	cache := t.TempDir()
	check := func() (string, error) {
		out, err := exec.Command("../../scripts/setup.sh", "--check", cache).CombinedOutput()
		return string(out), err
	}
	if out, err := check(); err == nil || !strings.Contains(out, "missing: guest kernel in "+cache) {
		t.Errorf("--check of an empty cache: %v, %q", err, out)
	}
	boot := filepath.Join(cache, "kernel", "6.1.192-2", "boot")
	if err := os.MkdirAll(boot, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(boot, "vmlinuz-6.1.0-56-amd64"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil || strings.Contains(out, "kernel") || !strings.Contains(out, "missing: nginx in "+cache) {
		t.Errorf("--check of a cache without nginx: %v, %q", err, out)
	}
	nginx := filepath.Join(cache, "nginx", "1.22.1-9", "usr", "sbin")
	if err := os.MkdirAll(nginx, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(nginx, "nginx"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "qemu", "10.0.2+ds-2", "usr", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil || !strings.Contains(out, "missing: QEMU for live migration in "+cache) {
		t.Errorf("--check of a cache without QEMU: %v, %q", err, out)
	}
	if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err != nil || out != "" {
		t.Errorf("--check of a full cache: %v, %q", err, out)
	}
	if _, err := FindKernel(filepath.Join(cache, "kernel")); err != nil {
		t.Error(err)
	}
	if _, err := FindProgram(filepath.Join(cache, "qemu")); err != nil {
		t.Error(err)
	}
}
