// Package guestinit is the init process, PID 1, of a guest that consists of a kernel and one static binary: it loads
// modules, configures the network, mounts shares, and then starts and supervises the guest's commands, for
// instance the media server.
//
// It stands beside the data path: it sets a lab's or a test's guest up and serves the control port through which the host
// kills processes, drops caches or powers the guest off. Nobody but PID 1 of a throw-away guest may call Main; the control
// port gives the host, which owns the guest anyway, full power over it.
//
// It needs root in the guest and a kernel with devtmpfs. A failure restarts the guest, and so does an init that dies (kernel
// parameter panic=-1), which ends QEMU (-no-reboot): the host reads the reason on the console.
package guestinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// setupTimeout bounds each wait for the (virtual) hardware: a NIC that appears, a share that answers.
const setupTimeout = 20 * time.Second

// Main does all of PID 1's work. When setting up the guest fails it prints the reason on the console and restarts the
// machine, which ends QEMU (-no-reboot). It returns, with an error, only where it must not run.
func Main() error {
	if os.Getpid() != 1 {
		return errors.New("guestinit: must be PID 1 of a guest; it would take this machine over")
	}
	fmt.Fprintf(os.Stderr, "spillway: guest failed: %v\n", run())
	return restart()
}

// run sets the guest up and supervises it. It returns only with an error.
func run() error {
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	spec, err := readSpec()
	if err != nil {
		return err
	}
	if err := setUp(spec); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	s := newSupervisor(os.Stdout)
	go s.reap(children)
	for _, c := range spec.Commands {
		s.add(c)
	}
	go serveControl(s)
	fmt.Printf("%s after %s s\n", ReadyLine, uptime())
	select {}
}

// restart restarts the machine when the console has taken what was written to it. (An init that merely exits would panic the
// kernel, whose long report pushes the reason out of sight.)
func restart() error {
	const drain = 1 // TCSBRK with a non-zero argument is tcdrain(3): ioctl_tty(2)
	if err := unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, drain); err != nil {
		return fmt.Errorf("guestinit: drain the console: %w", err)
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("guestinit: restart: %w", err)
	}
	return nil
}

// readSpec reads the specification from the initramfs.
func readSpec() (Spec, error) {
	var spec Spec
	data, err := os.ReadFile(SpecPath)
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return spec, fmt.Errorf("%s: %w", SpecPath, err)
	}
	return spec, nil
}

// setUp makes the guest what the specification says.
func setUp(spec Spec) error {
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := configureNetwork(spec); err != nil {
		return err
	}
	for _, m := range spec.Mounts {
		if err := mountShare(m); err != nil {
			return err
		}
	}
	return nil
}

// mountKernelFilesystems mounts what every program expects. There is no /dev/pts: nobody logs in.
func mountKernelFilesystems() error {
	for _, m := range []Mount{
		{Source: "proc", Target: "/proc", Type: "proc"},
		{Source: "sysfs", Target: "/sys", Type: "sysfs"},
		{Source: "cgroup2", Target: "/sys/fs/cgroup", Type: "cgroup2"}, // for eBPF programs
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs"},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs"},
	} {
		if err := mount(m); err != nil {
			return err
		}
	}
	return nil
}

func mount(m Mount) error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	var flags uintptr
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(m.Source, m.Target, m.Type, flags, m.Options); err != nil {
		return fmt.Errorf("mount %s %q at %s: %w", m.Type, m.Source, m.Target, err)
	}
	return nil
}

// mountShare mounts, and tries again while the device is not there yet: the driver finds it asynchronously.
// 9p answers ENOENT then (net/9p/trans_virtio.c), virtiofs EINVAL (fs/fuse/virtio_fs.c).
func mountShare(m Mount) error {
	var err error
	if !poll(setupTimeout, func() bool {
		err = mount(m)
		return err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL)
	}) {
		return fmt.Errorf("after %v: %w", setupTimeout, err)
	}
	return err
}

// loadModules loads the modules of the initramfs in the order of their names, and deletes the files, which lie in memory.
func loadModules() error {
	files, err := filepath.Glob(modulesDir + "/*.ko") // sorted
	if err != nil {
		return err
	}
	for _, name := range files {
		if err := loadModule(name); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return os.RemoveAll(modulesDir)
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return os.Remove(name)
}

// setSysctl writes one kernel parameter. As in sysctl(8), a name whose first separator is a slash may have dots inside
// its parts.
func setSysctl(name, value string) error {
	p := name
	if at := strings.IndexAny(name, "./"); at >= 0 && name[at] == '.' {
		p = strings.ReplaceAll(name, ".", "/")
	}
	if !filepath.IsLocal(p) {
		return fmt.Errorf("sysctl %q: not a parameter's name", name)
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", p), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// poll calls try until it succeeds or the time is over.
func poll(limit time.Duration, try func() bool) bool {
	const interval = 2 * time.Millisecond
	for deadline := time.Now().Add(limit); ; time.Sleep(interval) {
		if try() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// uptime is the time since the kernel started, in seconds with two decimals (proc(5)).
func uptime() string {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "?"
	}
	seconds, _, _ := strings.Cut(string(data), " ")
	return seconds
}
