package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pausedConfig is a VM that runs no instruction (-S), for tests of the process itself.
func pausedConfig(t *testing.T, runDir string) Config {
	t.Helper()
	elf, err := testKernel(t).ELF()
	if err != nil {
		t.Fatal(err)
	}
	return Config{Name: "paused", Kernel: elf, RunDir: runDir, Accel: AccelTCG, MemoryMiB: 128, ExtraArgs: []string{"-S"}}
}

func startPaused(t *testing.T, cfg Config) *VM {
	t.Helper()
	vm, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Stop(context.Background()) })
	return vm
}

func TestStartFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(*Config)
		err    error
		stderr string
	}{
		"bad configuration": {spoil: func(c *Config) { c.Name = "" }},
		"no such program":   {spoil: func(c *Config) { c.Binary = "no-such-qemu" }, err: ErrNoQEMU},
		"bad argument":      {spoil: func(c *Config) { c.ExtraArgs = []string{"-bogus"} }, err: ErrExited, stderr: "-bogus"},
		"no kernel":         {spoil: func(c *Config) { c.Kernel = "/missing" }, err: ErrExited, stderr: "/missing"},
		"no tap": {spoil: func(c *Config) {
			c.Taps = []Tap{{IfName: "no-such-tap", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
		}},
		"no network namespace": {spoil: func(c *Config) {
			c.Taps = []Tap{{IfName: "tap0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, NetNS: "/missing"}}
		}, err: os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := pausedConfig(t, t.TempDir())
			c.spoil(&cfg)
			_, err := Start(t.Context(), cfg)
			var failure *Error
			if !errors.As(err, &failure) || failure.Op != "start" || failure.Running {
				t.Fatalf("Start = %v, want an Error of start without a process", err)
			}
			if c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("Start = %v, want %v", err, c.err)
			}
			if !strings.Contains(failure.Stderr, c.stderr) {
				t.Errorf("QEMU's own words %q lack %q", failure.Stderr, c.stderr)
			}
			if sockets, _ := filepath.Glob(filepath.Join(cfg.RunDir, "*.sock")); len(sockets) != 0 {
				t.Errorf("left behind: %v", sockets)
			}
		})
	}
}

func TestStop(t *testing.T) {
	t.Run("by QMP", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "a,b=c") // every path in it needs quoting
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		// A QEMU that was killed leaves its socket.
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "qmp.sock"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		cfg := pausedConfig(t, dir)
		cfg.Shares = []Share9p{{Tag: "media", Path: dir}}
		cfg.Channels = []Channel{{Name: "a", SocketPath: filepath.Join(dir, "a")}, {Name: "b", SocketPath: filepath.Join(dir, "b"), Listen: true}}
		vm := startPaused(t, cfg)
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if vm.exitErr != nil {
			t.Errorf("QEMU ended with %v, not by quit", vm.exitErr)
		}
		if err := vm.Stop(t.Context()); err != nil {
			t.Errorf("second Stop: %v", err)
		}
		checkGone(t, vm)
	})
	t.Run("by SIGTERM while QMP serves another", func(t *testing.T) {
		vm := startPaused(t, pausedConfig(t, t.TempDir()))
		qmp, err := vm.QMP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer qmp.Close()
		if err := vm.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkGone(t, vm)
	})
	t.Run("by SIGKILL when it does not react", func(t *testing.T) {
		vm := startPaused(t, pausedConfig(t, t.TempDir()))
		if err := syscall.Kill(vm.PID(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // skips the patient steps
		if err := vm.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		checkGone(t, vm)
		var exit *exec.ExitError
		if err := vm.Wait(t.Context()); !errors.Is(err, ErrExited) || !errors.As(err, &exit) {
			t.Errorf("Wait = %v, want ErrExited with the signal", err)
		}
	})
}

func checkGone(t *testing.T, vm *VM) {
	t.Helper()
	if err := syscall.Kill(vm.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v, want it gone", vm.PID(), err)
	}
	checkSocketsGone(t, vm)
}

func TestWaitConsole(t *testing.T) {
	vm := startPaused(t, pausedConfig(t, t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var failure *Error
	_, err := vm.WaitConsole(ctx, "ready")
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failure) || !failure.Running {
		t.Errorf("nothing written: %v, want ErrTimeout and a process", err)
	}
	// QEMU writes nothing while it is paused: play the guest.
	write := func(text string) {
		f, err := os.OpenFile(vm.cfg.ConsolePath(), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("Linux\r\nguest re")
	found := make(chan string, 1)
	go func() {
		line, err := vm.WaitConsole(t.Context(), "guest ready")
		found <- fmt.Sprint(line, err)
	}()
	write("ady after 2 s\r")
	time.Sleep(2 * pollInterval) // a line without its end must not be taken
	write("\n")
	if got, want := <-found, "guest ready after 2 s<nil>"; got != want {
		t.Errorf("WaitConsole = %q, want %q", got, want)
	}
	if err := vm.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.WaitConsole(t.Context(), "never"); !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "guest ready") {
		t.Errorf("after the end: %v, want ErrExited and the console's tail", err)
	}
}

// Environment of the process that TestParentDies starts and kills.
const (
	parentRunDir   = "SPILLWAY_TEST_PARENT_RUNDIR"
	parentDetached = "SPILLWAY_TEST_PARENT_DETACHED"
)

// TestParentProcess is no test: it is the process that TestParentDies kills.
func TestParentProcess(t *testing.T) {
	dir := os.Getenv(parentRunDir)
	if dir == "" {
		return
	}
	cfg := pausedConfig(t, dir)
	cfg.Detached = os.Getenv(parentDetached) != ""
	vm, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("pid", vm.PID())
	select {}
}

func TestParentDies(t *testing.T) {
	for _, detached := range []bool{false, true} {
		t.Run(fmt.Sprintf("detached=%v", detached), func(t *testing.T) {
			dir := t.TempDir()
			vmPID := startAndKillParent(t, dir, detached)
			pidfd, err := unix.PidfdOpen(vmPID, 0)
			if err == nil {
				defer unix.Close(pidfd)
			}
			if !detached {
				if err == nil {
					waitPidfd(pidfd) // hangs, and the test with it, when QEMU lives on
				}
				return
			}
			if err != nil {
				t.Fatalf("the detached QEMU %d is gone: %v", vmPID, err)
			}
			vm, err := Attach(t.Context(), pausedConfig(t, dir))
			if err != nil {
				unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
				t.Fatal(err)
			}
			if vm.PID() != vmPID {
				t.Errorf("attached to %d, want %d", vm.PID(), vmPID)
			}
			if err := vm.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			waitPidfd(pidfd)
			checkSocketsGone(t, vm)
		})
	}
}

// startAndKillParent starts a VM in a process of its own, kills that process and returns QEMU's pid.
func startAndKillParent(t *testing.T, dir string, detached bool) int {
	t.Helper()
	parent := exec.Command(os.Args[0], "-test.run=^TestParentProcess$")
	parent.Env = append(os.Environ(), parentRunDir+"="+dir)
	if detached {
		parent.Env = append(parent.Env, parentDetached+"=1")
	}
	parent.Stderr = os.Stderr
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var output strings.Builder
	for lines := bufio.NewScanner(stdout); pid == 0 && lines.Scan(); {
		fmt.Fprintln(&output, lines.Text())
		fmt.Sscanf(lines.Text(), "pid %d", &pid)
	}
	parent.Process.Kill()
	parent.Wait()
	if pid == 0 {
		t.Fatalf("the process started no VM: %s", &output)
	}
	return pid
}

func checkSocketsGone(t *testing.T, vm *VM) {
	t.Helper()
	for _, socket := range vm.cfg.ownSockets() {
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", socket, err)
		}
	}
}
