package guestinit

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testLimit is for what takes milliseconds on an idle machine.
const testLimit = 30 * time.Second

// consoleBuffer is a console that tests can read while it is written to.
type consoleBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *consoleBuffer) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *consoleBuffer) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// waitFor waits for a condition.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if !poll(testLimit, condition) {
		t.Fatalf("waited in vain for: %s", what)
	}
}

// newTestSupervisor runs a supervisor that reaps this process's children. Orphans come to us as to PID 1.
func newTestSupervisor(t *testing.T) (*supervisor, *consoleBuffer) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	console := &consoleBuffer{}
	s := newSupervisor(console)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	var reaper sync.WaitGroup
	reaper.Go(func() { s.reap(children) })
	t.Cleanup(func() {
		s.stop(testLimit)
		signal.Stop(children)
		close(children)
		reaper.Wait()
	})
	return s, console
}

// shell is a command that runs a script.
func shell(name, script string) Command {
	return Command{Name: name, Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func TestSupervisorRestarts(t *testing.T) {
	s, console := newTestSupervisor(t)
	s.add(shell("short", `echo "hello $GREETED"; exit 3`))
	waitFor(t, "two restarts", func() bool { return s.processes()[0].Restarts >= 2 })
	waitFor(t, "the output", func() bool { return strings.Count(console.String(), "[short] hello \n") >= 2 })
	if got := s.processes()[0].LastExit; got != "exit status 3" {
		t.Errorf("last exit %q", got)
	}
	for _, want := range []string{
		"command short ended (exit status 3); starts again in 100ms\n",
		"command short ended (exit status 3); starts again in 200ms\n",
	} {
		if !strings.Contains(console.String(), want) {
			t.Errorf("no %q on the console:\n%s", want, console)
		}
	}
}

func TestSupervisorSignal(t *testing.T) {
	s, _ := newTestSupervisor(t)
	pidFile := filepath.Join(t.TempDir(), "grandchild")
	s.add(shell("long", "sleep 1000 & echo $! > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait"))
	var grandchild int
	waitFor(t, "the grandchild", func() bool {
		data, _ := os.ReadFile(pidFile)
		grandchild, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return grandchild != 0
	})
	first := s.processes()[0].PID
	if err := s.signal("long", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the restart", func() bool { p := s.processes()[0]; return p.PID != 0 && p.PID != first })
	if p := s.processes()[0]; p.Restarts != 1 || p.LastExit != "signal: killed" {
		t.Errorf("process %+v", p)
	}
	// The signal reached the descendant as well, and the supervisor reaped it: its pid is free.
	waitFor(t, "the grandchild's end", func() bool { return syscall.Kill(grandchild, 0) == syscall.ESRCH })
	if err := s.signal("unknown", syscall.SIGKILL); err == nil {
		t.Error("a signal to an unknown command succeeds")
	}
}

func TestSupervisorReapsOrphans(t *testing.T) {
	s, console := newTestSupervisor(t)
	// The orphan outlives its parent; its pid is printed and it must not stay a zombie.
	s.add(shell("parent", "(sleep 0.2 & echo orphan $!); sleep 1000"))
	var orphan int
	waitFor(t, "the orphan", func() bool {
		_, after, found := strings.Cut(console.String(), "[parent] orphan ")
		number, _, complete := strings.Cut(after, "\n")
		orphan, _ = strconv.Atoi(number)
		return found && complete
	})
	waitFor(t, "the orphan's end", func() bool { return syscall.Kill(orphan, 0) == syscall.ESRCH })
	if p := s.processes()[0]; p.PID == 0 || p.Restarts != 0 {
		t.Errorf("the orphan's end was taken for its parent's: %+v", p)
	}
}

func TestSupervisorLogFile(t *testing.T) {
	s, console := newTestSupervisor(t)
	command := shell("logged", "echo to stdout; echo to stderr >&2; sleep 1000")
	command.Log = filepath.Join(t.TempDir(), "log")
	s.add(command)
	waitFor(t, "the log", func() bool {
		data, _ := os.ReadFile(command.Log)
		return string(data) == "to stdout\nto stderr\n"
	})
	if got := console.String(); got != "" {
		t.Errorf("on the console: %q", got)
	}
}

func TestSupervisorCannotStart(t *testing.T) {
	s, _ := newTestSupervisor(t)
	s.add(Command{Name: "missing", Args: []string{"/no/such/program"}})
	s.add(Command{Name: "empty"})
	waitFor(t, "attempts", func() bool { p := s.processes(); return p[0].Restarts > 0 && p[1].Restarts > 0 })
	if got := s.processes()[0].LastExit; !strings.Contains(got, "no such file") {
		t.Errorf("the reason is %q", got)
	}
	if err := s.signal("missing", syscall.SIGTERM); err == nil {
		t.Error("a signal to a command that does not run succeeds")
	}
}

func TestSupervisorStop(t *testing.T) {
	s, _ := newTestSupervisor(t)
	s.add(shell("polite", "sleep 1000"))
	s.stop(testLimit)
	if p := s.processes()[0]; p.PID != 0 || p.LastExit != "signal: terminated" {
		t.Errorf("after stop: %+v", p)
	}
	time.Sleep(2 * minRestartPause)
	if p := s.processes()[0]; p.PID != 0 || p.Restarts != 0 {
		t.Errorf("started again after stop: %+v", p)
	}
}
