package guestinit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// A command that ends is started again after a pause that doubles each time, until it has run for long enough.
const (
	minRestartPause = 100 * time.Millisecond
	maxRestartPause = 5 * time.Second
	settledAfter    = 10 * time.Second
)

// Process is the state of one command.
type Process struct {
	Name     string
	PID      int // 0 while it does not run
	Restarts int
	LastExit string `json:",omitempty"` // how it ended last, for instance "signal: killed"
}

// supervisor starts commands, restarts them, and reaps every process of the guest, as PID 1 must.
//
// Reaping all processes with wait4(-1) and waiting for one with os/exec exclude each other: the commands are
// started with syscall.ForkExec.
type supervisor struct {
	console io.Writer

	mu       sync.Mutex // guards what follows
	commands []*command
	byPID    map[int]*command
	stopping bool
}

// command is a Command and its present process. The supervisor's mutex guards it.
type command struct {
	spec    Command
	state   Process
	started time.Time
	pause   time.Duration
}

func newSupervisor(console io.Writer) *supervisor {
	return &supervisor{console: console, byPID: make(map[int]*command)}
}

// add starts a command and keeps it running from now on.
func (s *supervisor) add(spec Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &command{spec: spec, state: Process{Name: spec.Name}, pause: minRestartPause}
	s.commands = append(s.commands, c)
	s.start(c)
}

// start runs the command; the caller holds the mutex, so that the process cannot be reaped before it is known.
func (s *supervisor) start(c *command) {
	pid, err := s.fork(c.spec)
	c.started = time.Now()
	if err != nil {
		s.restartLater(c, err.Error())
		return
	}
	c.state.PID = pid
	s.byPID[pid] = c
}

// fork starts the process with its output going to the log file or, line by line, to the console.
func (s *supervisor) fork(spec Command) (pid int, err error) {
	if len(spec.Args) == 0 {
		return 0, errors.New("the command has no arguments")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var output *os.File
	if spec.Log != "" {
		output, err = os.OpenFile(spec.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	} else {
		var lines *os.File
		if lines, output, err = os.Pipe(); err == nil {
			defer func() { s.copyLines(lines, spec.Name, pid) }()
		}
	}
	if err != nil {
		return 0, err
	}
	defer output.Close()
	env := append([]string{"HOME=/", "PATH=/", "TMPDIR=/tmp"}, spec.Env...)
	return syscall.ForkExec(spec.Args[0], spec.Args, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{null.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// copyLines prints a process's lines in the background until all of its descendants have closed the pipe.
func (s *supervisor) copyLines(lines *os.File, name string, pid int) {
	if pid == 0 {
		lines.Close()
		return
	}
	go func() {
		defer lines.Close()
		r := bufio.NewReader(lines)
		for {
			line, err := r.ReadSlice('\n')
			if len(line) > 0 {
				// One write, so that lines of several commands do not mix.
				fmt.Fprintf(s.console, "[%s] %s\n", name, trimNewline(line))
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	}()
}

func trimNewline(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		return line[:n-1]
	}
	return line
}

// reap collects every child that ends, orphans included, whenever SIGCHLD arrives.
func (s *supervisor) reap(children <-chan os.Signal) {
	for range children {
		for s.reapOne() {
		}
	}
}

// reapOne collects one child, if one has ended. It holds the mutex, so that nobody signals a pid that is free again.
func (s *supervisor) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if c := s.byPID[pid]; c != nil {
		delete(s.byPID, pid)
		c.state.PID = 0
		s.restartLater(c, describeExit(status))
	}
	return true
}

// restartLater starts the command again after its pause; the caller holds the mutex.
func (s *supervisor) restartLater(c *command, reason string) {
	c.state.LastExit = reason
	if s.stopping {
		return
	}
	if time.Since(c.started) > settledAfter {
		c.pause = minRestartPause
	}
	fmt.Fprintf(s.console, "spillway: command %s ended (%s); starts again in %v\n", c.spec.Name, reason, c.pause)
	time.AfterFunc(c.pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.stopping {
			c.state.Restarts++
			s.start(c)
		}
	})
	c.pause = min(2*c.pause, maxRestartPause)
}

// describeExit words a status as os.ProcessState does.
func describeExit(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// processes returns the state of all commands in the order of the specification.
func (s *supervisor) processes() []Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Process, 0, len(s.commands))
	for _, c := range s.commands {
		list = append(list, c.state)
	}
	return list
}

// signal sends a signal to a command's session.
func (s *supervisor) signal(name string, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.commands {
		if c.spec.Name != name {
			continue
		}
		if c.state.PID == 0 {
			return fmt.Errorf("command %q does not run (%s)", name, c.state.LastExit)
		}
		return syscall.Kill(-c.state.PID, sig) // Setsid made it the leader of its process group
	}
	return fmt.Errorf("no command %q", name)
}

// stop sends SIGTERM to all commands, restarts none any more, and waits for their end up to the limit.
func (s *supervisor) stop(limit time.Duration) {
	s.mu.Lock()
	s.stopping = true
	for pid := range s.byPID {
		syscall.Kill(-pid, syscall.SIGTERM)
	}
	s.mu.Unlock()
	poll(limit, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.byPID) == 0
	})
}
