package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// minQEMU is the oldest version that the project runs its tests with (Debian 12).
const (
	minQEMUMajor = 7
	minQEMUMinor = 2
)

func checkQEMU(ctx context.Context, env Env) Result {
	path, err := exec.LookPath(env.QEMU)
	if err != nil {
		return Result{
			Status: Warn, Detail: fmt.Sprintf("%v: the lab cannot start VMs", err),
			Hint: "run `apt-get install --no-install-recommends qemu-system-x86`",
		}
	}
	return within(ctx, env, path, func(ctx context.Context) Result {
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			return Result{Status: Warn, Detail: fmt.Sprintf("%s --version: %v", path, err), Hint: "reinstall QEMU: `apt-get install --reinstall qemu-system-x86`"}
		}
		return judgeQEMU(path, string(out))
	})
}

func judgeQEMU(path, output string) Result {
	m := regexp.MustCompile(`version (\d+)\.(\d+)(\.\d+)?`).FindStringSubmatch(output)
	if m == nil {
		first, _, _ := strings.Cut(output, "\n")
		return Result{Status: Warn, Detail: fmt.Sprintf("%s says %q, which names no version", path, first), Hint: "give the path of a QEMU system emulator"}
	}
	major, _ := strconv.Atoi(m[1]) // digits, as matched
	minor, _ := strconv.Atoi(m[2])
	if major < minQEMUMajor || major == minQEMUMajor && minor < minQEMUMinor {
		return Result{
			Status: Warn, Detail: fmt.Sprintf("%s is version %d.%d, tested from %d.%d on", path, major, minor, minQEMUMajor, minQEMUMinor),
			Hint: "install a newer QEMU, from the backports of the distribution for instance",
		}
	}
	return Result{Status: OK, Detail: fmt.Sprintf("%s is version %s.%s%s", path, m[1], m[2], m[3])}
}

// checkBridgedGuests finds VM interfaces (taps) that a Linux bridge switches: the frames never reach the IP hooks where the
// redirect is. Bridge-nf does not help: it shows them to the rule, but the bridge still delivers them.
func checkBridgedGuests(_ context.Context, env Env) Result {
	ports, err := filepath.Glob(filepath.Join(env.SysRoot, "class/net/*/brif/*"))
	if err != nil {
		return unreadable(err)
	}
	var taps []string
	for _, port := range ports {
		iface := filepath.Base(port)
		if _, err := os.Stat(filepath.Join(env.SysRoot, "class/net", iface, "tun_flags")); err == nil {
			taps = append(taps, fmt.Sprintf("%s on %s", iface, filepath.Base(filepath.Dir(filepath.Dir(port)))))
		}
	}
	if len(taps) == 0 {
		return Result{Status: OK, Detail: "no VM interface is on a bridge"}
	}
	detail := "connections to these VMs are never leased, a bridge switches their frames: " + strings.Join(taps, ", ")
	if on, err := env.sysctl("net/bridge/bridge-nf-call-iptables"); err == nil && on != 0 {
		detail += " (bridge-nf-call-iptables=1 does not change that)"
	}
	return Result{
		Status: Warn, Detail: detail,
		Hint: "route to the VM instead: `ip link set TAP nomaster`, give the tap an address, and set `ip route add VM-ADDRESS dev TAP`",
	}
}

// checkChannelSocket looks for a listener in the kernel's list. It does not connect: the daemon would take it for the VM. That there is no daemon is no
// failure: the doctor is asked before the daemon is started.
func checkChannelSocket(_ context.Context, env Env) Result {
	path := env.ChannelSocket
	if path == "" {
		return Result{Status: Skip, Detail: "no channel socket given"}
	}
	const start = "start `spillway host` with this VM in its configuration"
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Status: Warn, Detail: path + " does not exist: no daemon serves this VM yet", Hint: start}
	case err != nil:
		return unreadable(err)
	case info.Mode().Type() != fs.ModeSocket:
		return Result{Status: Fail, Detail: path + " is no socket", Hint: "move it away, then " + start}
	}
	list, err := env.proc("thread-self/net/unix")
	if err != nil {
		return unreadable(err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return unreadable(err)
	}
	for line := range strings.Lines(list) {
		// Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON, include/linux/net.h.
		if f := strings.Fields(line); len(f) == 8 && (f[7] == path || f[7] == abs) && f[3] == "00010000" {
			return Result{Status: OK, Detail: path + " is served"}
		}
	}
	return Result{Status: Warn, Detail: path + " is left from a daemon that was killed: nobody listens on it", Hint: start + ", which replaces it"}
}

// checkChannelPort looks for the named virtio-serial port in the guest and opens it, as the agent would.
func checkChannelPort(ctx context.Context, env Env) Result {
	if env.ChannelPort == "" {
		return Result{Status: Skip, Detail: "no channel port given"}
	}
	names, err := filepath.Glob(filepath.Join(env.SysRoot, "class/virtio-ports/*/name"))
	if err != nil {
		return unreadable(err)
	}
	var others []string
	for _, file := range names {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // unplugged meanwhile
		}
		name := strings.TrimSpace(string(text))
		if name != env.ChannelPort {
			others = append(others, strconv.Quote(name))
			continue
		}
		device := filepath.Join(env.DevRoot, filepath.Base(filepath.Dir(file)))
		return within(ctx, env, device, func(context.Context) Result { return openPort(name, device) })
	}
	return Result{
		Status: Fail, Detail: fmt.Sprintf("no virtio-serial port %q; there are: [%s]", env.ChannelPort, strings.Join(others, " ")),
		Hint: fmt.Sprintf("start the VM with -device virtio-serial-pci -chardev socket,id=spillway,path=SOCKET,reconnect=1 "+
			"-device virtserialport,chardev=spillway,name=%s, and run `modprobe virtio_console` in it", env.ChannelPort),
	}
}

func openPort(name, device string) Result {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		_ = unix.Close(fd) // nothing was written
		return Result{Status: OK, Detail: fmt.Sprintf("port %q is %s", name, device)}
	case errors.Is(err, unix.EBUSY): // a port can be open once (drivers/char/virtio_console.c)
		return Result{Status: OK, Detail: fmt.Sprintf("port %q is %s, open in a running process", name, device)}
	case errors.Is(err, unix.ENOENT):
		return Result{Status: Fail, Detail: device + " does not exist", Hint: "mount a devtmpfs on /dev: `mount -t devtmpfs dev /dev`"}
	}
	return Result{Status: Fail, Detail: fmt.Sprintf("open %s: %v", device, err), Hint: "run as root, or give the user access: `chgrp GROUP " + device + "`"}
}

// checkShare reads the share's directory.
func checkShare(ctx context.Context, env Env, role Role) Result {
	path := env.Share
	if path == "" {
		return Result{Status: Skip, Detail: "no share given"}
	}
	return within(ctx, env, path, func(context.Context) Result {
		hint := "create the directory, or correct the share's path in the configuration; the daemon's user needs to read it"
		if role == Guest {
			hint = "mount it: `mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro TAG " + path + "`"
		}
		entries, err := os.ReadDir(path)
		switch {
		case err != nil:
			return Result{Status: Fail, Detail: err.Error(), Hint: hint}
		case len(entries) == 0:
			return Result{Status: Warn, Detail: path + " is empty", Hint: hint}
		}
		return Result{Status: OK, Detail: fmt.Sprintf("%s is readable, %d entries", path, len(entries))}
	})
}

func checkCacheDisk(ctx context.Context, env Env) Result {
	path := env.CacheDir
	if path == "" {
		return Result{Status: Skip, Detail: "no cache directory given"}
	}
	return within(ctx, env, path, func(context.Context) Result {
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return Result{Status: Fail, Detail: path + " is no directory", Hint: "move it away, then run `mkdir -p " + path + "`"}
		}
		var disk unix.Statfs_t
		if err := unix.Statfs(path, &disk); err != nil {
			return Result{Status: Fail, Detail: fmt.Sprintf("%s: %v", path, err), Hint: "run `mkdir -p " + path + "`"}
		}
		if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
			return Result{Status: Fail, Detail: fmt.Sprintf("%s is not writable: %v", path, err), Hint: "give the daemon's user the directory: `chown USER " + path + "`"}
		}
		const mib = 1 << 20
		free := disk.Bavail * uint64(disk.Frsize)
		if free < env.CacheMinFreeBytes {
			return Result{
				Status: Warn, Detail: fmt.Sprintf("%s has %d MiB left, less than %d MiB", path, free/mib, env.CacheMinFreeBytes/mib),
				Hint: "free space, or give the cache another directory or a smaller size in the configuration",
			}
		}
		return Result{Status: OK, Detail: fmt.Sprintf("%s has %d MiB left", path, free/mib)}
	})
}
