package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/guest"
	"spillway/internal/host"
	"spillway/internal/lab"
)

const (
	// patience bounds waits for what happens at once on an idle machine.
	patience = 30 * time.Second
	// hangLimit is the promise: whatever is killed, a client that the kill concerns learns of it within this time.
	hangLimit = 10 * time.Second

	bootPatience = 3 * time.Minute
)

// offloading are the arms in which the host sends.
var offloading = []lab.Arm{lab.Lease, lab.Offload}

// newLab makes a lab in namespaces that shares files. Whatever becomes of the test, the lab goes with it and leaves nothing.
func newLab(t *testing.T, files *media, options ...func(*lab.Options)) *lab.Lab {
	t.Helper()
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: program, Files: files.dir}
	for _, o := range options {
		o(&opts)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
	defer cancel()
	l, err := lab.Up(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logLab(t, l)
		}
		if err := l.Down(); err != nil {
			t.Errorf("lab down: %v", err)
		}
		checkGone(t, opts.Name, files.dir)
	})
	return l
}

// labName is unlike every other lab's on the machine.
func labName() string { return fmt.Sprintf("e%s-%06x", strconv.Itoa(os.Getpid()), rand.N(1<<24)) }

// logLab shows what the processes of a failed test have said.
func logLab(t *testing.T, l *lab.Lab) {
	const tailBytes = 4000
	logs, _ := filepath.Glob(filepath.Join(l.Dir, "*.log")) // the pattern is valid
	console, _ := filepath.Glob(filepath.Join(l.Dir, "*", "console.log"))
	for _, name := range append(logs, console...) {
		if text, err := os.ReadFile(name); err == nil && len(text) > 0 {
			t.Logf("--- %s\n%s", filepath.Base(name), text[max(0, len(text)-tailBytes):])
		}
	}
}

// checkGone looks for everything that a lab of this name, sharing this directory, could have left.
func checkGone(t *testing.T, name, files string) {
	t.Helper()
	dir := filepath.Join(lab.StateRoot, name)
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left (%v)", dir, err)
	}
	if left, _ := filepath.Glob("/run/netns/*" + name + "*"); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), name) {
		t.Errorf("a mount is left (%v):\n%s", err, mounts)
	}
	eventually(t, "the lab's processes have ended", func() bool {
		return len(processes(func(p process) bool { return strings.Contains(p.cmdline, dir) || strings.Contains(p.cmdline, files) })) == 0
	})
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// serverStats returns the counters of an arm's server.
func serverStats(t testing.TB, l *lab.Lab, arm lab.Arm) guest.Snapshot {
	t.Helper()
	var s guest.Snapshot
	eventually(t, "counters of "+string(arm), func() (ok bool) {
		var err error
		s, err = l.ServerStats(context.Background(), arm)
		return err == nil
	})
	return s
}

// expectSends waits until an arm's server has heard that the host has sent so many responses: the news comes behind the client's last byte.
func expectSends(t testing.TB, l *lab.Lab, arm lab.Arm, want uint64) {
	t.Helper()
	var s guest.Snapshot
	for deadline := time.Now().Add(hangLimit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s = serverStats(t, l, arm); s.Counts.Sends == want {
			return
		}
	}
	t.Errorf("%s: %+v; want %d responses sent by the host", arm, s, want)
}

// hostStatus returns the daemon's state of the VM.
func hostStatus(t testing.TB, l *lab.Lab) host.VMStatus {
	t.Helper()
	var s host.Status
	if err := l.HostAdmin(context.Background(), http.MethodGet, "/status", &s); err != nil {
		t.Fatal(err)
	}
	if len(s.VMs) != 1 {
		t.Fatalf("the daemon knows %d VMs, want 1", len(s.VMs))
	}
	return s.VMs[0]
}

// noLeases waits until neither end knows of a lease.
func noLeases(t testing.TB, l *lab.Lab) {
	t.Helper()
	eventually(t, "no lease is left", func() bool {
		return hostStatus(t, l).Leases == 0 && serverStats(t, l, lab.Lease).Leases == 0 && serverStats(t, l, lab.Offload).Leases == 0
	})
}

// startHost starts the daemon and waits until the guests have found it.
func startHost(t testing.TB, l *lab.Lab) {
	t.Helper()
	if err := l.StartHost(); err != nil {
		t.Fatal(err)
	}
	for _, arm := range offloading {
		waitArm(t, l, arm)
	}
}

func stopHost(t testing.TB, l *lab.Lab, sig syscall.Signal) {
	t.Helper()
	if err := l.StopHost(sig); err != nil {
		t.Fatal(err)
	}
}

func waitArm(t testing.TB, l *lab.Lab, arm lab.Arm) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.WaitArm(ctx, arm); err != nil {
		t.Fatal(err)
	}
}

// restartServer starts an arm's server after it was killed.
func restartServer(t testing.TB, l *lab.Lab, arm lab.Arm) {
	t.Helper()
	if l.VM == lab.NetNS { // a VM's init does it by itself
		if err := l.StartServer(arm); err != nil {
			t.Fatal(err)
		}
	}
	waitArm(t, l, arm)
}

func killServer(t testing.TB, l *lab.Lab, arm lab.Arm) {
	t.Helper()
	if err := l.KillServer(arm); err != nil {
		t.Fatal(err)
	}
}

// serveWithoutMount replaces an arm's server by one that sees the share's files through the channel only.
func serveWithoutMount(t *testing.T, l *lab.Lab, arm lab.Arm) {
	t.Helper()
	killServer(t, l, arm)
	s := startOwnServer(t, l, arm, channelSocket(l, arm), "")
	t.Cleanup(func() { s.stop(syscall.SIGTERM) })
	waitArm(t, l, arm)
}

// ownServer is a server that a test has started in the place of an arm's.
type ownServer struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended <-chan struct{}
}

// startOwnServer starts a server at an arm's address, whose own has ended, with a channel and a mount of the test's choice.
func startOwnServer(t *testing.T, l *lab.Lab, arm lab.Arm, socket, mount string) *ownServer {
	t.Helper()
	_, port, _ := strings.Cut(l.Addr(arm), ":")
	number, err := strconv.Atoi(port)
	must(t, err)
	log, err := os.OpenFile(l.LogPath("own-"+string(arm)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer log.Close()
	cmd := exec.Command(program, "serve", "--listen", ":"+port, "--admin", fmt.Sprintf(":%d", number+1000),
		"--share", "media:/media/:"+mount, "--mode", string(arm), "--channel", "unix:"+socket, "--threshold", l.Threshold.String())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := l.Guest.Start(cmd)
	must(t, err)
	return &ownServer{t, cmd, ended}
}

// stop ends the server. One that is asked to end must end well.
func (s *ownServer) stop(sig syscall.Signal) {
	s.t.Helper()
	_ = s.cmd.Process.Signal(sig) // it may have ended, which the test has seen
	select {
	case <-s.ended:
		if sig == syscall.SIGTERM && !s.cmd.ProcessState.Success() {
			s.t.Errorf("the test's own server: %v", s.cmd.ProcessState)
		}
	case <-time.After(patience):
		s.t.Error("the test's own server does not end")
		_ = s.cmd.Process.Kill()
	}
}

// channelSocket is where the daemon listens for an arm's server.
func channelSocket(l *lab.Lab, arm lab.Arm) string {
	return filepath.Join(l.Dir, string(arm)+"-0.sock")
}
