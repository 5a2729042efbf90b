package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/netns"
)

// ownerEnv tells this test binary, started anew, to make a lab and to wait until it is killed: "NAME BINARY FILES".
const ownerEnv = "SPILLWAY_TEST_LAB_OWNER"

// TestOwner is the other process of TestSweep.
func TestOwner(t *testing.T) {
	words := strings.Fields(os.Getenv(ownerEnv))
	if len(words) != 3 {
		t.Skip("this is the other half of TestSweep")
	}
	if _, err := Up(t.Context(), Options{Name: words[0], VM: NetNS, Binary: words[1], Files: words[2]}); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("up\n")
	select {}
}

// TestSweep: what a killed bench has left goes when the next lab starts, and not before.
func TestSweep(t *testing.T) {
	binary, files, name := buildBinary(t), t.TempDir(), labName()
	t.Cleanup(func() { _ = Down(context.Background(), name, quiet) })
	cmd := exec.Command(os.Args[0], "-test.run=^TestOwner$")
	cmd.Env = append(os.Environ(), ownerEnv+"="+strings.Join([]string{name, binary, files}, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 3)
	_, err = out.Read(said)
	if string(said) != "up\n" {
		t.Errorf("the owner says %q, %v", said, err)
	}
	next := func(said *[]string) {
		t.Helper()
		l, err := Up(t.Context(), Options{Name: labName(), VM: NetNS, Binary: binary, Files: files, Progress: func(step string) { *said = append(*said, step) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	}
	var steps []string
	next(&steps)
	if len(traces(t, name)) == 0 {
		t.Errorf("the lab of a process that runs was swept: %q", steps)
	}
	unlock, err := lockRoot(t.Context(), StateRoot) // labs of other tests sweep too
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(traces(t, name)) == 0 {
		t.Error("the killed owner has left nothing: this test shows nothing")
	}
	unlock()
	next(&steps)
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v; the next lab says %q", left, steps)
	}
}

// TestSweepSpares: labs that are meant to stay, and what cannot be read.
func TestSweepSpares(t *testing.T) {
	self, err := thisProcess()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for name, content := range map[string]any{
		"detached": state{Name: "detached", VM: NetNS},
		"alive":    state{Name: "alive", VM: NetNS, Owner: self},
		"broken":   "neither",
		"dead":     state{Name: "dead", VM: NetNS, Owner: &owner{PID: self.PID, StartTicks: self.StartTicks + 1}}, // the pid has another process now
	} {
		text, err := json.Marshal(content)
		if err == nil {
			err = errors.Join(os.Mkdir(filepath.Join(root, name), 0o755), os.WriteFile(filepath.Join(root, name, stateFile), text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "bare"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"alive": true, "bare": true, "broken": true, "detached": true, "dead": false, "none": false} {
		if err := taken(root, name); (err != nil) != want || want && !strings.Contains(err.Error(), "spillway lab down --name "+name) {
			t.Errorf("taken(%s) = %v", name, err)
		}
	}
	if err := sweep(t.Context(), root, quiet); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), "alive bare broken detached"; got != want {
		t.Errorf("%s are left, want %s", got, want)
	}
}

// TestOwnerAlive: a process that has ended and waits for its parent is dead.
func TestOwnerAlive(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := readProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if p.parent != os.Getpid() {
		t.Errorf("its parent is %d", p.parent)
	}
	o := owner{PID: cmd.Process.Pid, StartTicks: p.startTicks}
	if !o.alive() {
		t.Error("it runs and is said to be dead")
	}
	in.Close()
	for deadline := time.Now().Add(10 * time.Second); o.alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has ended and is said to run")
		}
	}
	_ = cmd.Wait()
	if o.alive() {
		t.Error("it is gone and is said to run")
	}
}

// TestRemoveRoot: the directory of all labs goes with the last of them, whoever else makes and removes labs.
func TestRemoveRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		all.Go(func() {
			for range 100 {
				unlock, err := lockRoot(t.Context(), root)
				if err != nil {
					t.Errorf("lock: %v", err)
					return
				}
				err = os.Mkdir(filepath.Join(root, name), 0o755)
				unlock()
				if err == nil {
					err = removeRoot(t.Context(), root)
				}
				if err == nil {
					err = os.Remove(filepath.Join(root, name))
				}
				if err == nil {
					err = removeRoot(t.Context(), root)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
	if err := removeRoot(t.Context(), root); err != nil {
		t.Errorf("there is none: %v", err)
	}
}

// TestLockRoot: who waits for the lock too long is told why.
func TestLockRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	unlock, err := lockRoot(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockRoot(ctx, root); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = lockRoot(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestDownLostState: a lab whose state cannot be read is found by its namespaces: its daemons, and what else runs there.
func TestDownLostState(t *testing.T) {
	name := labName()
	t.Cleanup(func() { _ = Down(context.Background(), name, quiet) })
	l, err := Up(t.Context(), Options{Name: name, VM: NetNS, Binary: buildBinary(t), Files: t.TempDir(), Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := exec.Command("sleep", "1000")
	elsewhere.Args = append(elsewhere.Args, "0") // sleep adds them up
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	inside := exec.Command("sleep", "1000")
	inside.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := l.Client.Start(inside)
	if err == nil {
		err = elsewhere.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = elsewhere.Process.Kill()
		_ = elsewhere.Wait()
	}()
	for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest} {
		ns.Close()
	}
	if err := os.WriteFile(filepath.Join(l.Dir, stateFile), []byte(`{"name":`), 0o644); err != nil {
		t.Fatal(err)
	}
	var said []string
	if err := Down(t.Context(), name, func(step string) { said = append(said, step) }); err != nil {
		t.Errorf("Down: %v", err)
	}
	if !strings.Contains(strings.Join(said, "\n"), "its state is lost") {
		t.Errorf("Down says %q", said)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, p := range l.daemons {
		if !hasEnded(p.pid) {
			t.Errorf("%s runs on", p.name)
		}
	}
	if !hasEnded(inside.Process.Pid) {
		t.Error("a process in the lab runs on")
		_ = inside.Process.Kill()
	}
	<-ended
	if hasEnded(elsewhere.Process.Pid) {
		t.Error("a process outside of the lab was ended")
	}
}

// TestDownRestarted: Down ends a program of ours that somebody has started in the lab by hand, and leaves theirs alone.
func TestDownRestarted(t *testing.T) {
	name := labName()
	t.Cleanup(func() { _ = Down(context.Background(), name, quiet) })
	binary := buildBinary(t)
	l, err := Up(t.Context(), Options{Name: name, VM: NetNS, Binary: binary, Files: t.TempDir(), Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	start := func(args ...string) (*exec.Cmd, <-chan struct{}) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		ended, err := l.Guest.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return cmd, ended
	}
	ours, oursEnded := start(binary, "serve", "--mode", "off", "--listen", "127.0.0.1:0", "--share", "media:/:"+t.TempDir())
	theirs, theirsEnded := start("sleep", "1000")
	defer func() {
		_ = theirs.Process.Kill()
		<-theirsEnded
	}()
	for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest} {
		ns.Close()
	}
	if err := Down(t.Context(), name, quiet); err != nil {
		t.Errorf("Down: %v", err)
	}
	if !hasEnded(ours.Process.Pid) {
		t.Error("our own program runs on")
		_ = ours.Process.Kill()
	}
	<-oursEnded
	if hasEnded(theirs.Process.Pid) {
		t.Error("somebody else's program was ended")
	}
}
