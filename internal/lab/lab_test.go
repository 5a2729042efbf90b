package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"spillway/internal/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// labName is one that no other test uses.
func labName() string { return fmt.Sprintf("t%d-%06x", os.Getpid()%1e7, rand.Uint32()&0xffffff) }

// buildBinary builds the spillway binary.
func buildBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "spillway")
	if out, err := exec.Command("go", "build", "-o", binary, "spillway/cmd/spillway").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// quiet is for a Down whose steps do not matter.
func quiet(string) {}

// TestOptions: a lab that cannot be is refused before anything is made.
func TestOptions(t *testing.T) {
	for _, c := range []struct {
		opts Options
		want string
	}{
		{Options{Name: "", VM: NetNS}, "lab name"},
		{Options{Name: "Upper", VM: NetNS}, "lab name"},
		{Options{Name: "../x", VM: NetNS}, "lab name"},
		{Options{Name: "-x", VM: NetNS}, "lab name"},
		{Options{Name: strings.Repeat("x", 21), VM: NetNS}, "lab name"},
		{Options{Name: labName(), VM: "xen"}, "use qemu or netns"},
		{Options{Name: labName(), VM: QEMU, Cache: "/no/such/cache"}, "scripts/setup.sh /no/such/cache"},
	} {
		l, err := Up(t.Context(), c.opts)
		if err == nil {
			_ = l.Down()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.opts, err)
		}
		if c.opts.Name != "" {
			if _, err := os.Lstat(filepath.Join(StateRoot, c.opts.Name)); err == nil {
				t.Errorf("%+v: there is a directory", c.opts)
			}
		}
	}
}

func TestArms(t *testing.T) {
	seen := map[string]Arm{}
	for _, a := range append(Arms(), NginxHost, NginxVM, VMTmpfs, Second) {
		for _, port := range []uint16{a.port(), a.adminPort()} {
			at := fmt.Sprintf("%v:%d", a.addr(), port)
			if other, ok := seen[at]; ok || port == 0 {
				t.Errorf("%s and %s both listen at %s", a, other, at)
			}
			seen[at] = a
		}
	}
}

func TestDownUnknown(t *testing.T) {
	for _, name := range []string{labName(), "..", "", "a/b", "../../etc"} {
		if err := Down(t.Context(), name, quiet); !errors.Is(err, ErrNoLab) {
			t.Errorf("Down(%q) says %v", name, err)
		}
	}
}

// TestStopPid: a pid that means another program by now, or none, is left alone.
func TestStopPid(t *testing.T) {
	sleep := func(args ...string) (*exec.Cmd, <-chan struct{}) {
		cmd := exec.Command("/bin/sh", append([]string{"-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 16)); err != nil { // its trap is set
			t.Error(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		return cmd, ended
	}
	const dir, binary = "/run/spillway-lab/some", "/usr/bin/spillway"
	stop := func(cmd *exec.Cmd, binary string) error {
		return stopPid(cmd.Process.Pid, func() bool { return isDaemon(cmd.Process.Pid, dir, binary) })
	}
	for _, args := range [][]string{{}, {"x", "serve", "--listen"}, {"x", dir + "/host.toml"}} {
		cmd, ended := sleep(args...)
		if err := stop(cmd, binary); err != nil {
			t.Error(err)
		}
		select {
		case <-ended:
			t.Errorf("another program, with the arguments %q, was stopped", args)
		case <-time.After(50 * time.Millisecond):
		}
	}
	for _, args := range [][]string{{"x", "serve", "--listen"}, {"x", "host", "--config", dir + "/host.toml"}} {
		cmd, ended := sleep(args...)
		if err := stop(cmd, "/bin/sh"); err != nil {
			t.Error(err)
		}
		<-ended
		if cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("with the arguments %q it ended with %v, want its own end after SIGTERM", args, cmd.ProcessState)
		}
	}
	cmd, ended := sleep()
	_ = cmd.Process.Kill()
	<-ended
	if err := stop(cmd, "/bin/sh"); err != nil {
		t.Errorf("a pid of nobody: %v", err)
	}
}

// traces are what a lab of this name has left on the machine.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{filepath.Join(StateRoot, name), "/run/netns/spw-" + name + "-*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, files...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte(filepath.Join(StateRoot, name))) {
			found = append(found, fmt.Sprintf("%s: %q", p, text))
		}
	}
	return found
}

// TestLab brings a lab of namespaces up, uses every arm, kills and restarts what can be, and takes it down: by its owner, and as another process
// would that knows nothing but its name.
func TestLab(t *testing.T) {
	binary := buildBinary(t)
	files := t.TempDir()
	content := make([]byte, 300_000)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(filepath.Join(files, "f.mp4"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		detached bool
		link     Link
	}{
		"owned":            {},
		"detached":         {detached: true, link: Link{BitsPerSecond: 1e9}},
		"delayed":          {link: Link{RTT: 20 * time.Millisecond, BitsPerSecond: 1e9}},
		"delayed detached": {true, Link{RTT: 20 * time.Millisecond, LossPercent: 0.001}},
	} {
		t.Run(name, func(t *testing.T) {
			detached := c.detached
			opts := Options{
				Name: labName(), VM: NetNS, Binary: binary, Files: files, Threshold: 64 << 10, Detached: detached, Link: c.link,
			}
			if !detached {
				opts.CacheDir = t.TempDir()
			}
			t.Cleanup(func() { _ = Down(context.Background(), opts.Name, quiet) })
			l, err := Up(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := opts.Validate(); err == nil || !strings.Contains(err.Error(), "is there already") {
				t.Errorf("a second lab of that name: %v", err)
			}
			if !slices.Contains(AdminSockets(), l.adminSocket()) {
				t.Errorf("%v lacks the admin socket", AdminSockets())
			}
			if (l.Link.Seed != 0) != (c.link.LossPercent > 0) {
				t.Errorf("the link is %v", l.Link)
			}
			useLab(t, l, content)
			if _, err := Up(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "lab down --name "+opts.Name) {
				t.Errorf("a second lab of the name says %v", err)
			}
			if names, err := List(); err != nil || !slices.Contains(names, opts.Name) {
				t.Errorf("List = %v, %v", names, err)
			}
			if detached {
				if err := Down(t.Context(), opts.Name, quiet); err != nil {
					t.Errorf("Down: %v", err)
				}
				for _, p := range l.daemons {
					<-p.ended
				}
				for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest} {
					ns.Close()
				}
			} else if err := l.Down(); err != nil {
				t.Errorf("Down: %v", err)
			}
			if left := traces(t, opts.Name); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if err := Down(t.Context(), opts.Name, quiet); !errors.Is(err, ErrNoLab) {
				t.Errorf("the second Down says %v", err)
			}
		})
	}
}

func useLab(t *testing.T, l *Lab, content []byte) {
	t.Helper()
	c := l.HTTPClient()
	defer c.CloseIdleConnections()
	for range 5 { // one that is held up does not hide that the link is too short
		began := time.Now()
		conn, err := l.DialContext(t.Context(), "tcp", l.Addr(Baremetal))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if took := time.Since(began); took < l.Link.RTT {
			t.Errorf("a connection takes %v, over a link of %v", took, l.Link)
		}
	}
	arms := l.servers()
	if (l.CacheDir != "") != slices.Contains(arms, LeaseCache) {
		t.Errorf("arms %v, a cache in %q", arms, l.CacheDir)
	}
	for _, arm := range arms {
		resp, err := c.Get(l.URL(arm, "f.mp4"))
		if err != nil {
			t.Fatalf("%s: %v", arm, err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
			t.Errorf("%s: %d bytes, %v", arm, len(got), err)
		}
		s, err := l.ServerStats(t.Context(), arm)
		// The guest hears of the end of a SEND after the client has its last byte.
		for end := time.Now().Add(10 * time.Second); err == nil && arm.offloads() && s.Counts.Sends == 0 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
			s, err = l.ServerStats(t.Context(), arm)
		}
		if err != nil || (s.Counts.Sends == 1) != arm.offloads() {
			t.Errorf("%s: %+v, %v", arm, s.Counts, err)
		}
		if err := l.ResetServerStats(t.Context(), arm); err != nil {
			t.Error(err)
		}
	}
	var status map[string]json.RawMessage
	if err := l.HostAdmin(t.Context(), http.MethodGet, "/status", &status); err != nil || len(status) == 0 {
		t.Errorf("status of the host daemon: %v, %v", status, err)
	}
	if err := l.HostAdmin(t.Context(), http.MethodGet, "/nothing", nil); err == nil {
		t.Error("a page that is not there")
	}
	if g, err := l.GuestCounters(); err != nil || g.TxBytes == 0 || g.RxBytes < uint64(len(content)) {
		t.Errorf("counters of the guest's link: %+v, %v", g, err)
	}
	if l.CacheDir != "" {
		if files, err := os.ReadDir(filepath.Join(l.CacheDir, "data")); err != nil || len(files) != 1 {
			t.Errorf("the cache has %v, %v", files, err)
		}
	}
	if l.Accelerator() != "none" || l.QEMUVersion() != "" {
		t.Errorf("accelerator %s, QEMU %s", l.Accelerator(), l.QEMUVersion())
	}
	if _, delayed := l.Link.DelayLine(); delayed {
		s, err := l.LinkStats(t.Context())
		if err != nil || s.Link != l.Link.String() || s.ToClient.Bytes < int64(len(arms)*len(content)) || s.ToHost.Packets == 0 {
			t.Errorf("the link says %+v, %v", s, err)
		}
	} else if s, err := l.LinkStats(t.Context()); err == nil {
		t.Errorf("a link without a delay line says %+v", s)
	}
	text := l.WhatToTry("f.mp4")
	if !strings.Contains(text, l.Link.String()) {
		t.Errorf("what to try lacks the link %v:\n%s", l.Link, text)
	}
	for _, want := range []string{l.URL(Lease, "f.mp4"), "lab down --name " + l.Name, l.Dir} {
		if !strings.Contains(text, want) {
			t.Errorf("what to try lacks %q:\n%s", want, text)
		}
	}
	if err := l.KillServer(Lease); err != nil {
		t.Error(err)
	}
	if err := l.StopHost(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := errors.Join(l.StartHost(), l.StartServer(Lease)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	for _, arm := range []Arm{Offload, Lease} {
		if err := l.WaitArm(ctx, arm); err != nil {
			t.Error(err)
		}
	}
}

// TestDownAfterKilledUp: Down ends the detached daemons of an Up that was killed half-way.
func TestDownAfterKilledUp(t *testing.T) {
	name := labName()
	t.Cleanup(func() { _ = Down(context.Background(), name, quiet) })
	link := Link{RTT: time.Millisecond}
	l, err := prepare(t.Context(), Options{Name: name, VM: NetNS, Binary: buildBinary(t), Files: t.TempDir(), Detached: true, Link: link})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range l.daemons {
			if !p.exited() {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
				<-p.ended
			}
		}
	})
	if err := errors.Join(l.topology(), l.StartHost(), l.StartServer(Baremetal), l.StartServer(Offload)); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest} {
		ns.Close()
	}
	if err := Down(t.Context(), name, quiet); err != nil {
		t.Errorf("Down: %v", err)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, p := range l.daemons {
		if !hasEnded(p.pid) {
			t.Errorf("%s runs on", p.name)
		}
	}
}

// TestUpFails: a lab whose binary does not run is gone, and the error has what the logs say.
func TestUpFails(t *testing.T) {
	script := filepath.Join(t.TempDir(), "spillway")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho the binary complains\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := labName()
	_, err := Up(t.Context(), Options{Name: name, VM: NetNS, Binary: script, Files: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "the binary complains") {
		t.Errorf("Up says %v", err)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
