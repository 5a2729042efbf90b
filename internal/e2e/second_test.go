package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
)

// TestSecondDaemon: a daemon that wants what a running one has is refused, is told what it was and what to do, and leaves nothing; the first one goes on.
func TestSecondDaemon(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	dir := t.TempDir()
	own := map[string]string{ // what a second daemon needs of its own
		"admin":   filepath.Join(dir, "admin.sock"),
		"table":   "second",
		"mark":    "0x54",
		"route":   "5384",
		"rule":    "84",
		"channel": filepath.Join(dir, "vm0.sock"),
	}
	first := map[string]string{
		"admin": filepath.Join(l.Dir, "admin.sock"), "table": "spillway", "mark": "0x53", "route": "5383", "rule": "83", "channel": channelSocket(l, lab.Lease),
	}
	holder := fmt.Sprintf("spillway, pid %d", l.PIDs()["host"])
	streaming := dial(t, l, lab.Lease, receiveBuffer(smallBuffer))
	streaming.begin(bigFile, files.files[bigFile], readSome)
	for _, c := range []struct {
		name   string
		shared []string
		says   []string
	}{
		{"admin socket", []string{"admin"}, []string{"admin socket " + first["admin"], "somebody listens there already", holder, "admin in the configuration"}},
		{"channel", []string{"channel"}, []string{first["channel"], "somebody listens there already", holder, "is the host daemon already running?"}},
		{"redirect", []string{"table", "mark", "route", "rule"}, []string{"spillway", "another process", holder}},
		{"everything", []string{"admin", "table", "mark", "route", "rule", "channel"}, []string{"spillway", "another process", holder}},
	} {
		t.Run(c.name, func(t *testing.T) {
			settings := maps.Clone(own)
			for _, key := range c.shared {
				settings[key] = first[key]
			}
			said := secondDaemon(t, l, fmt.Sprintf("path = %q", files.dir), filepath.Join(dir, "second.toml"), settings)
			for _, want := range c.says {
				if !strings.Contains(said, want) {
					t.Errorf("it does not say %q: %s", want, said)
				}
			}
			t.Log(strings.TrimSpace(said))
			if strings.Count(strings.TrimSpace(said), "\n") > 0 {
				t.Errorf("it says more than a line: %s", said)
			}
			checkRedirect(t, l)
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 { // its configuration
				t.Errorf("it has left %v, %v", left, err)
			}
		})
	}
	streaming.take(files.files[bigFile][readSome:])
	fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	if s := serverStats(t, l, lab.Lease); s.Counts.Sessions != 1 || s.Counts.Lost != 0 {
		t.Errorf("%+v; want the first daemon's session, undisturbed", s)
	}
}

// secondDaemon runs a daemon beside the lab's, whose share has these lines of configuration, and returns what it says when it fails.
func secondDaemon(t *testing.T, l *lab.Lab, share string, file string, settings map[string]string) string {
	t.Helper()
	must(t, os.WriteFile(file, fmt.Appendf(nil, `admin = %q
[redirect]
table = %q
mark = %s
route_table = %s
priority = %s
[[share]]
name = "media"
%s
[[vm]]
name = "vm0"
channels = ["unix:%s"]
addresses = ["10.87.0.9"]
shares = ["media"]
`, settings["admin"], settings["table"], settings["mark"], settings["route"], settings["rule"], share, settings["channel"]), 0o644))
	var out bytes.Buffer
	cmd := exec.Command(program, "host", "--config", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := l.Host.Start(cmd)
	must(t, err)
	select {
	case <-ended:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-ended
		t.Fatalf("the second daemon runs: %s", out.String())
	}
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ends with %v", cmd.ProcessState)
	}
	return out.String()
}
