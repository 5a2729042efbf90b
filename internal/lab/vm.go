package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"spillway/internal/guestinit"
	"spillway/internal/qemu"
)

// guestMount is where the guest mounts the share.
const guestMount = "/mnt/media"

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
	return qemu.Config{
		Name:      namespaceName(l.Name, vmName),
		RunDir:    filepath.Join(l.Dir, vmName),
		Taps:      []qemu.Tap{{IfName: guestLink, MAC: guestMAC, NetNS: l.Host.Path()}},
		Shares:    []qemu.Share9p{{Tag: shareName, Path: l.Files}},
		Channels:  channels,
		CPUs:      l.CPUs,
		MemoryMiB: 512,
		Detached:  l.Detached,
	}
}

// startVM boots the VM and waits until its init says that it is ready.
func (l *Lab) startVM(ctx context.Context) error {
	l.Progress("guest image")
	cfg := l.vmConfig()
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return err
	}
	kernel, err := qemu.FindKernel(filepath.Join(l.Cache, "kernel"))
	if err != nil {
		return fmt.Errorf("%w; fetch it with: scripts/setup.sh %s", err, l.Cache)
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
	modules, err := kernel.Modules(qemu.GuestModules()...)
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
	if l.Congestion != "" {
		spec.Sysctls = map[string]string{"net.ipv4.tcp_congestion_control": l.Congestion}
	}
	for _, arm := range []Arm{VM, Offload, Lease} {
		spec.Commands = append(spec.Commands, guestinit.Command{
			Name: string(arm),
			Args: append([]string{"/init"}, l.serveArgs(arm, func(i int) string { return "virtio:" + channelPort(arm, i) }, guestMount)...),
		})
	}
	image := qemu.Initramfs{InitPath: l.Binary, Modules: modules, Spec: spec}
	if err := l.addPeer(&image); err != nil {
		return err
	}
	return image.WriteFile(file)
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
