package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"spillway/internal/netns"
	"spillway/internal/qemu"
)

// ErrNoLab is matched by Down's error when there is no lab of that name.
var ErrNoLab = errors.New("no such lab")

// Down removes a lab that an earlier process made, whatever is left of it.
func Down(ctx context.Context, name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%w: %q is not a lab's name", ErrNoLab, name)
	}
	dir := filepath.Join(StateRoot, name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoLab, name)
	}
	var errs []error
	vm, err := qemu.Attach(ctx, qemu.Config{Name: namespaceName(name, vmName), RunDir: filepath.Join(dir, vmName)})
	if vm != nil {
		errs = append(errs, vm.Stop(ctx))
	} else if !errors.Is(err, qemu.ErrNotRunning) {
		errs = append(errs, err)
	}
	errs = append(errs, stopProcesses(dir))
	for _, role := range []string{"client", "host", "guest"} {
		errs = append(errs, netns.Delete(namespaceName(name, role)))
	}
	errs = append(errs, os.RemoveAll(dir))
	_ = os.Remove(StateRoot) // succeeds when this was the last one
	return errors.Join(errs...)
}

// stopProcesses ends the daemons that a lab's state names.
func stopProcesses(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // Up was killed before it started any
	}
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	var errs []error
	for _, name := range []string{"baremetal", "vm", "offload", "lease", string(NginxHost), string(NginxVM), hostProcess, linkProcess} {
		if pid, ok := s.Processes[name]; ok {
			errs = append(errs, stopPid(name, pid, dir, s.Binary))
		}
	}
	return errors.Join(errs...)
}

// stopPid ends a process that is no child of ours. A pid that means another program by now is left alone.
func stopPid(name string, pid int, dir, binary string) error {
	p, err := os.FindProcess(pid) // a pidfd: from here on the pid cannot be reused under us
	if err != nil {
		return nil
	}
	defer p.Release()
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	ours := strings.HasPrefix(string(cmdline), binary+"\x00") &&
		(strings.Contains(string(cmdline), dir) || strings.Contains(string(cmdline), "\x00serve\x00"))
	if slices.Contains(Peers(), Arm(name)) {
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		ours = cwd == filepath.Join(dir, name)
	}
	if err != nil || !ours {
		return nil
	}
	for _, step := range []struct {
		sig   syscall.Signal
		grace time.Duration
	}{{syscall.SIGTERM, stopGrace}, {syscall.SIGKILL, 5 * time.Second}} {
		if err := p.Signal(step.sig); err != nil {
			return nil // it has ended
		}
		for deadline := time.Now().Add(step.grace); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if hasEnded(pid) {
				return nil
			}
		}
	}
	return fmt.Errorf("%s (pid %d) does not end", name, pid)
}

// hasEnded tells that a process is gone, or dead and not yet collected by its parent, which we are not.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the state follows the command's name in parentheses, proc_pid_stat(5)
	return strings.HasPrefix(after, "Z")
}

// List names the labs that exist.
func List() ([]string, error) {
	entries, err := os.ReadDir(StateRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}
