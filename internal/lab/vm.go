package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/guestinit"
	"spillway/internal/qemu"
)

// guestMount is where the guest mounts the share, guestVirtiofs where it does so once more with virtiofs, and guestMemory where a copy of it lies in the root file system, which is in the guest's memory.
const (
	guestMount  = "/mnt/media"
	guestMemory = "/media"

	virtiofsTag   = "media-virtiofs"
	guestVirtiofs = "/mnt/virtiofs"
)

// guestMiB is the memory of a guest that holds no files.
const guestMiB = 512

var guestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x53, 0x50, 0x01}

// bootTries: one boot in twenty or so dies under TCG.
const (
	bootTries   = 3
	bootTimeout = 60 * time.Second
)

// channelPort is the name of a virtio-serial port of an arm.
func channelPort(arm Arm, i int) string { return fmt.Sprintf("spillway.%s.%d", arm, i) }

const controlPort = guestinit.ControlPort

// vmConfig describes the VM.
func (l *Lab) vmConfig() qemu.Config {
	channels := []qemu.Channel{{Name: controlPort, SocketPath: filepath.Join(l.Dir, "control.sock"), Listen: true}}
	for _, arm := range channelArms {
		for i := range l.CPUs {
			channels = append(channels, qemu.Channel{Name: channelPort(arm, i), SocketPath: l.channelSocket(arm, i)})
		}
	}
	cfg := qemu.Config{
		Name:      namespaceName(l.Name, vmName),
		RunDir:    filepath.Join(l.Dir, vmName),
		Taps:      []qemu.Tap{{IfName: guestLink, MAC: guestMAC, NetNS: l.Host.Path()}},
		Shares:    []qemu.Share9p{{Tag: shareName, Path: l.Files}},
		Channels:  channels,
		CPUs:      l.CPUs,
		MemoryMiB: guestMiB,
		Detached:  l.Detached,
	}
	if l.Virtiofs {
		cfg.Virtiofs = []qemu.ShareVirtiofs{{Tag: virtiofsTag, Path: l.Files}}
	}
	return cfg
}

// startVM boots the VM and waits until its init says that it is ready.
func (l *Lab) startVM(ctx context.Context) error {
	l.Progress("guest image")
	cfg := l.vmConfig()
	var err error
	if cfg.MemoryMiB, err = l.memoryMiB(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return err
	}
	kernel, err := l.kernel()
	if err != nil {
		return err
	}
	if cfg.Kernel, err = kernel.ELF(); err != nil {
		return err
	}
	cfg.Initrd = filepath.Join(cfg.RunDir, "init.cpio")
	if err := l.writeInitramfs(kernel, cfg.Initrd); err != nil {
		return err
	}
	for try := 1; ; try++ {
		l.Progress(fmt.Sprintf("boot the VM (try %d)", try))
		if err = l.boot(ctx, cfg); err == nil {
			break
		}
		if try == bootTries || ctx.Err() != nil {
			return err
		}
	}
	// The guest has read it.
	return os.Remove(cfg.Initrd)
}

// boot starts QEMU once. After an error it runs no more.
func (l *Lab) boot(ctx context.Context, cfg qemu.Config) (err error) {
	if l.vm, err = qemu.Start(ctx, cfg); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if _, err = l.vm.WaitConsole(wait, guestinit.ReadyLine); err != nil {
		return errors.Join(err, l.stopVM())
	}
	l.control, err = guestinit.DialControl(ctx, filepath.Join(l.Dir, "control.sock"))
	return err
}

// writeInitramfs makes the guest's file system: our own binary is its init, and its servers are the same binary.
func (l *Lab) writeInitramfs(kernel qemu.Kernel, file string) error {
	wanted := qemu.GuestModules()
	if l.Virtiofs {
		wanted = append(wanted, "virtiofs")
	}
	modules, err := kernel.Modules(wanted...)
	if err != nil {
		return err
	}
	spec := guestinit.Spec{
		Hostname: vmName,
		Interfaces: []guestinit.Interface{{
			MAC:   guestMAC.String(),
			Addrs: []netip.Prefix{guestAddr4, guestAddr6},
			Routes: []guestinit.Route{
				{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gateway4.Addr()},
				{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: gateway6.Addr()},
			},
		}},
		Mounts: []guestinit.Mount{{
			Source: shareName, Target: guestMount, Type: "9p", Options: guestinit.Options9p, ReadOnly: true,
		}},
	}
	if l.Virtiofs {
		spec.Mounts = append(spec.Mounts, guestinit.Mount{Source: virtiofsTag, Target: guestVirtiofs, Type: "virtiofs", ReadOnly: true})
	}
	if l.Congestion != "" {
		spec.Sysctls = map[string]string{"net.ipv4.tcp_congestion_control": l.Congestion}
	}
	for _, arm := range l.guestServers() {
		mount := guestMount
		switch arm {
		case VMTmpfs:
			mount = guestMemory
		case VMVirtiofs:
			mount = guestVirtiofs
		}
		spec.Commands = append(spec.Commands, guestinit.Command{
			Name: string(arm),
			Args: append([]string{"/init"}, l.serveArgs(arm, func(i int) string { return "virtio:" + channelPort(arm, i) }, mount)...),
		})
	}
	image := qemu.Initramfs{InitPath: l.Binary, Modules: modules, Spec: spec}
	if l.InMemory {
		if image.Files, err = filesBelow(l.Files, guestMemory); err != nil {
			return err
		}
	}
	if err := l.addPeer(&image); err != nil {
		return err
	}
	return image.WriteFile(file)
}

// filesBelow reads the regular files below dir, each under the path that it has below as.
func filesBelow(dir, as string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files[path.Join(as, below)], err = os.ReadFile(name)
		return err
	})
	return files, err
}

// memoryMiB is how much memory the guest needs: while it boots it has the files twice, in the archive and in its file system.
func (l *Lab) memoryMiB() (int, error) {
	if !l.InMemory {
		return guestMiB, nil
	}
	var bytes int64
	err := filepath.WalkDir(l.Files, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return guestMiB + int(2*bytes>>20) + 1, err
}

// DropCaches lets the next request for each of these files of the share find no cache: in a VM, neither data nor names in the guest, while the host's
// page cache keeps the files; in a namespace, which shares the host's page cache, no data there, if the file system can drop it (a tmpfs cannot).
func (l *Lab) DropCaches(ctx context.Context, files ...string) error {
	if l.VM == QEMU {
		return l.control.DropCaches(ctx)
	}
	for _, name := range files {
		if err := dropFile(filepath.Join(l.Files, name)); err != nil {
			return err
		}
	}
	return nil
}

// dropFile takes a file out of the page cache.
func dropFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // what is not written yet cannot be dropped
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return &os.PathError{Op: "fadvise", Path: name, Err: err}
	}
	return nil
}

// stopVM ends QEMU.
func (l *Lab) stopVM() error {
	if l.vm == nil {
		return nil
	}
	vm := l.vm
	l.vm = nil
	return vm.Stop(context.Background())
}

// Control is the way to the guest's init; nil in a namespace.
func (l *Lab) Control() *guestinit.Control { return l.control }

// controlTimeout bounds a request to the guest's init.
const controlTimeout = 10 * time.Second

func (l *Lab) killInGuest(command string) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	return l.control.Kill(ctx, command)
}
