package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"spillway/internal/netns"
	"spillway/internal/qemu"
)

// ErrNoLab is matched by Down's error when there is no lab of that name.
var ErrNoLab = errors.New("no such lab")

// roles are the namespaces that a lab may have.
var roles = append([]string{"client", "host", "guest", secondRole}, segmentRoles...)

const secondRole = "guest2"

// Down removes a lab that an earlier process made, whatever is left of it. say is told each thing that was found and removed.
func Down(ctx context.Context, name string, say func(string)) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%w: %q is not a lab's name", ErrNoLab, name)
	}
	dir := filepath.Join(StateRoot, name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoLab, name)
	}
	return errors.Join(down(ctx, name, dir, say), removeRoot(ctx, StateRoot))
}

// down removes the lab whose state is in dir.
func down(ctx context.Context, name, dir string, say func(string)) error {
	var errs []error
	for _, machine := range []string{vmName, secondVM} {
		vm, err := qemu.Attach(ctx, qemu.Config{Name: namespaceName(name, machine), RunDir: filepath.Join(dir, machine)})
		if vm != nil {
			say(fmt.Sprintf("ending QEMU of %s (pid %d)", machine, vm.PID()))
			errs = append(errs, vm.Stop(ctx))
		} else if !errors.Is(err, qemu.ErrNotRunning) {
			errs = append(errs, err)
		}
	}
	s, err := readState(dir)
	if err == nil {
		errs = append(errs, stopDaemons(s, dir, say))
	} else {
		say(fmt.Sprintf("its state is lost (%v): looking for its processes by its namespaces and its directory", err))
	}
	errs = append(errs, stopStrays(name, dir, err != nil, say))
	for _, role := range roles {
		file := netns.Path(namespaceName(name, role))
		if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
			continue
		}
		say("removing namespace " + file)
		errs = append(errs, netns.Delete(namespaceName(name, role)))
	}
	say("removing " + dir)
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// stopDaemons ends the daemons that a lab's state names, the host daemon last.
func stopDaemons(s state, dir string, say func(string)) error {
	var errs []error
	servers := []string{"baremetal", "vm", "offload", "lease", "second", string(NginxHost), string(NginxVM)}
	for _, name := range slices.Concat(servers, []string{hostProcess, linkProcess}, segmentRoles) {
		pid, ok := s.Processes[name]
		if !ok || !isDaemon(pid, dir, s.Binary) {
			continue
		}
		say(fmt.Sprintf("ending %s (pid %d)", name, pid))
		errs = append(errs, stopPid(pid, func() bool { return isDaemon(pid, dir, s.Binary) }))
	}
	return errors.Join(errs...)
}

// isDaemon tells whether a pid still means a daemon of the lab. nginx writes over its command line, but keeps its directory.
func isDaemon(pid int, dir, binary string) bool {
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && (cwd == filepath.Join(dir, string(NginxHost)) || cwd == filepath.Join(dir, string(NginxVM))) {
		return true
	}
	cmdline := commandLine(pid)
	return strings.HasPrefix(cmdline, binary+"\x00") && (strings.Contains(cmdline, dir) || strings.Contains(cmdline, "\x00serve\x00"))
}

// stopStrays ends QEMU and our own programs that are in a lab's namespaces or were told of its directory, started by whomever, and with all, as the lab's
// state is lost, everything that is in its namespaces. This
// process and its ancestors, which may be a shell in one of the namespaces, go on.
func stopStrays(name, dir string, all bool, say func(string)) error {
	var spaces []os.FileInfo
	for _, role := range roles {
		if info, err := os.Stat(netns.Path(namespaceName(name, role))); err == nil {
			spaces = append(spaces, info)
		}
	}
	isStray := func(pid int) bool {
		cmdline := commandLine(pid)
		program, _, _ := strings.Cut(cmdline, "\x00")
		program = filepath.Base(program)
		ours := program == "spillway" || strings.HasPrefix(program, "qemu-system-")
		if ours && strings.Contains(cmdline, dir+"/") {
			return true // and not whoever reads its logs
		}
		if !ours && !all {
			return false
		}
		own, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err == nil && slices.ContainsFunc(spaces, func(space os.FileInfo) bool { return os.SameFile(space, own) })
	}
	spared := ancestors()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(spared, pid) || hasEnded(pid) || !isStray(pid) {
			continue
		}
		say(fmt.Sprintf("ending pid %d: %s", pid, strings.ReplaceAll(strings.TrimRight(commandLine(pid), "\x00"), "\x00", " ")))
		errs = append(errs, stopPid(pid, func() bool { return isStray(pid) }))
	}
	return errors.Join(errs...)
}

// ancestors are this process, its parent, and so on.
func ancestors() []int {
	var pids []int
	for pid := os.Getpid(); pid > 0; {
		pids = append(pids, pid)
		p, err := readProcess(pid)
		if err != nil {
			break
		}
		pid = p.parent
	}
	return pids
}

// commandLine of a process, its words separated by NUL; empty if it has ended.
func commandLine(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return string(text)
}

// stopPid ends a process that is no child of ours. One that isOurs does not own up to by now, as the pid means another program, is left alone.
func stopPid(pid int, isOurs func() bool) error {
	p, err := os.FindProcess(pid) // a pidfd: from here on the pid cannot be reused under us
	if err != nil {
		return nil
	}
	defer p.Release()
	if !isOurs() {
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
	return fmt.Errorf("pid %d does not end", pid)
}

// hasEnded tells that a process is gone, or dead and not yet collected by its parent, which we are not.
func hasEnded(pid int) bool {
	p, err := readProcess(pid)
	return err != nil || p.dead
}
