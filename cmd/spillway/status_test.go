package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/config"
	"spillway/internal/host"
)

// hostDaemon is a daemon with one VM, which does not run.
func hostDaemon(t *testing.T) *host.Daemon {
	t.Helper()
	cfg := config.DefaultHost()
	cfg.Shares = []config.HostShare{{Name: "media", Path: t.TempDir()}, {
		Name: "vod", Origin: t.TempDir(), Cache: config.ShareCache{Dir: filepath.Join(t.TempDir(), "vod"), MaxSize: 1 << 20},
	}}
	v := config.DefaultVM()
	v.Name, v.Shares, v.Channels = "vm0", []string{"media"}, []string{"unix:" + filepath.Join(t.TempDir(), "vm0.sock")}
	v.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
	cfg.VMs = []config.VM{v}
	d, err := host.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// adminSocket is one that a daemon's handler answers at, and nobody but this user reaches, until the test ends.
func adminSocket(t *testing.T) string {
	t.Helper()
	// Below a directory that everybody may enter, unlike those of t.TempDir: it is the socket that keeps others out.
	dir, err := os.MkdirTemp("", "spillway-status-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(socket, 0o600), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: hostDaemon(t).AdminHandler()}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Close(); done.Wait() })
	return socket
}

func TestStatus(t *testing.T) {
	socket := adminSocket(t)
	for args, want := range map[string]string{
		"":                "\nvm0: NO SESSION YET",
		"--leases":        "\nvm0: 0 leases",
		"--json":          `"max_leases": 4096`,
		"--json --leases": `"left_out": 0`,
	} {
		out, err := spillway(t.Context(), append([]string{"status", "--admin", socket}, strings.Fields(args)...)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("status %s: %v, %s", args, err, out)
		}
	}
}

// TestStatusOfAnotherUser: a user whom the daemon's socket keeps out is told so.
func TestStatusOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	socket := adminSocket(t)
	const nobody = 65534
	// The test's binary lies where nobody else can go; its own name in /proc leads there nevertheless.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "status", "--admin", socket)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); !failed {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"spillway: " + socket + " is of user root", "sudo", "permission denied"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error lacks %q: %s", want, out)
		}
	}
}

// TestStatusWatch: it goes on until Ctrl-C, which is its way to end.
func TestStatusWatch(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "status", "--watch", "--json", "--admin", adminSocket(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	lines := bufio.NewScanner(out)
	for range 2 {
		var s host.Status
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &s) != nil || len(s.VMs) != 1 {
			t.Errorf("%q, %v", lines.Text(), lines.Err())
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

// TestStatusMentionsLabs: who has no daemon but a lab is told how to ask it.
func TestStatusMentionsLabs(t *testing.T) {
	labs := func() []string { return []string{"/run/spillway-lab/a/admin.sock", "/run/spillway-lab/b/admin.sock"} }
	away := fmt.Errorf("no daemon: %w", fs.ErrNotExist)
	err := mentionLabs(away, labs)
	for _, want := range []string{"no daemon", "spillway status --admin /run/spillway-lab/a/admin.sock", "--admin /run/spillway-lab/b/admin.sock"} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	if err := mentionLabs(away, func() []string { return nil }); err != away {
		t.Errorf("without a lab: %v", err)
	}
	for _, other := range []error{nil, fs.ErrPermission} {
		if err := mentionLabs(other, labs); err != other {
			t.Errorf("after %v: %v", other, err)
		}
	}
}

// TestConfiguredAdmin: without --admin it is the socket of the daemon's own configuration.
func TestConfiguredAdmin(t *testing.T) {
	for file, want := range map[string]string{
		write(t, "host.toml", "admin = \"/run/other.sock\"\n"): "/run/other.sock",
		write(t, "off.toml", "admin = \"\"\n"):                 "",
		write(t, "wrong.toml", "admn = 1\n"):                   config.DefaultHost().Admin,
		"/no/such/file":                                        config.DefaultHost().Admin,
	} {
		if got := configuredAdmin(file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}
