package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestSystemd: what the daemon tells systemd (sd_notify(3)): that it serves, that it is alive as long as it is, and that it stops. One that fails says nothing.
func TestSystemd(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	stopHost(t, l, syscall.SIGTERM) // its own takes the place
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer systemd.Close()
	next := func(patience time.Duration) string {
		text := make([]byte, 1000)
		must(t, systemd.SetReadDeadline(time.Now().Add(patience)))
		n, err := systemd.Read(text)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ""
		}
		must(t, err)
		return string(text[:n])
	}
	const watchdog = 60 * time.Millisecond
	start := func(config string) (*exec.Cmd, <-chan struct{}) {
		cmd := exec.Command(program, "host", "--config", config)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds()))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		ended, err := l.Host.Start(cmd)
		must(t, err)
		t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
		return cmd, ended
	}

	broken := filepath.Join(dir, "broken.toml")
	text, err := os.ReadFile(filepath.Join(l.Dir, "host.toml"))
	must(t, err)
	must(t, os.WriteFile(broken, append([]byte("metrics = \"203.0.113.1:1\"\n"), text...), 0o644))
	_, ended := start(broken)
	<-ended
	if said := next(time.Millisecond); said != "" {
		t.Errorf("a daemon that cannot start says %q", said)
	}

	cmd, ended := start(filepath.Join(l.Dir, "host.toml"))
	if said := next(patience); said != "READY=1" {
		t.Errorf("it says first %q", said)
	}
	checkRedirect(t, l) // it is true
	for range 5 {
		if said := next(patience); said != "WATCHDOG=1" {
			t.Errorf("alive, it says %q", said)
		}
	}
	must(t, cmd.Process.Signal(syscall.SIGSTOP))
	eventually(t, "a daemon that is stopped is silent", func() bool { return next(10*watchdog) == "" })
	must(t, cmd.Process.Signal(syscall.SIGCONT))
	if said := next(patience); said != "WATCHDOG=1" {
		t.Errorf("alive again, it says %q", said)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	<-ended
	var last []string
	for said := next(time.Millisecond); said != ""; said = next(time.Millisecond) {
		last = append(last, said)
	}
	if !slices.Contains(last, "STOPPING=1") || cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("before its end, %v, it says %q", cmd.ProcessState, last)
	}
}
