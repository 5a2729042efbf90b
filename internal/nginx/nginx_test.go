package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unpacked is what scripts/setup.sh has left.
func unpacked(t *testing.T) Package {
	t.Helper()
	p, err := Find("../../build/cache/nginx")
	if err != nil {
		t.Fatalf("%v\nfetch it with: scripts/setup.sh build/cache", err)
	}
	return p
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), dir) {
		t.Errorf("without a package: %v", err)
	}
	for _, version := range []string{"1.22.1-9", ".fetch.x", "1.22.1-10"} { // glob sorts: the versions of one Debian release differ at the end
		file := filepath.Join(dir, version, binary)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := Find(dir); err != nil || p.Version != "1.22.1-9" || p.Root != filepath.Join(dir, "1.22.1-9") {
		t.Errorf("found %+v, %v", p, err)
	}
	if _, err := (Package{Root: dir}).GuestFiles(); err == nil {
		t.Error("a package without a program")
	}
	if _, err := unpacked(t).library("libnothing.so.1"); err == nil || !strings.Contains(err.Error(), "libnothing.so.1") {
		t.Errorf("a library that is missing: %v", err)
	}
}

// freePort of loopback.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// served is a configuration with one file in it, and the file.
func served(t *testing.T) (Config, []byte) {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789abcdef"), 300_000) // more than two calls of sendfile
	c := Config{Workers: 1, Listen: freePort(t), Status: freePort(t), Prefix: "/media/", Dir: t.TempDir(), State: t.TempDir()}
	if err := os.WriteFile(filepath.Join(c.Dir, "a.m4s"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	return c, content
}

// TestServes runs the program with its own libraries.
func TestServes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the configuration's user is root")
	}
	c, content := served(t)
	file := filepath.Join(c.State, "nginx.conf")
	if err := os.WriteFile(file, []byte(c.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	args := unpacked(t).Command(file)
	cmd := exec.Command(args[0], args[1:]...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("nginx ended with %v", err)
		}
		if log.Len() > 0 {
			t.Errorf("nginx said %s", log.String())
		}
	})
	if body, kind := get(t, "http://"+c.Listen+"/media/a.m4s"); !bytes.Equal(body, content) || kind != "video/iso.segment" {
		t.Errorf("%d bytes of %s", len(body), kind)
	}
	if body, _ := get(t, "http://"+c.Status+"/stub_status"); !bytes.HasPrefix(body, []byte("Active connections")) {
		t.Errorf("the status is %q", body)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, ".so") && !strings.Contains(line, unpacked(t).Root) {
			t.Errorf("a library that is not the package's: %s", line)
		}
	}
}

// get requests a document, as soon as anything answers there.
func get(t *testing.T, url string) (body []byte, contentType string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err == nil {
			defer resp.Body.Close()
			if body, err = io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s, %v", url, resp.Status, err)
			}
			return body, resp.Header.Get("Content-Type")
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestGuestFiles: a machine that has nothing but these files runs the program, and takes the configuration.
func TestGuestFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for chroot")
	}
	files, err := unpacked(t).GuestFiles()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	put := func(name string, content []byte) {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, content, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for name, from := range files {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		put(name, content)
	}
	for name, content := range Accounts() {
		put(name, content)
	}
	put("/run/nothing", nil)
	put("/etc/nginx.conf", []byte(Config{Listen: "127.0.0.1:1", Status: "127.0.0.1:2", Prefix: "/media/", Dir: "/mnt", State: "/run"}.String()))
	args := append(GuestCommand("/etc/nginx.conf"), "-t")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "test is successful") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestConfig(t *testing.T) {
	c := Config{Listen: "8083", Status: "9083", Prefix: "/media/", Dir: "/mnt/media", State: "/run"}
	for _, want := range []string{"sendfile on;", "tcp_nopush on;", "worker_processes auto;", "open_file_cache max=", "listen 8083 ", "listen 9083;", "alias /mnt/media/;"} {
		if !strings.Contains(c.String(), want) {
			t.Errorf("lacks %q:\n%s", want, c)
		}
	}
	if c.Workers = 2; !strings.Contains(c.String(), "worker_processes 2;") {
		t.Errorf("two workers:\n%s", c)
	}
}
