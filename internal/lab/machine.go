package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"spillway/internal/guestinit"
	"spillway/internal/qemu"
)

// machine is a VM of the lab.
type machine struct {
	name     string // of the daemon's [[vm]], and of its directory
	tap      string
	mac      net.HardwareAddr
	addrs    []netip.Prefix
	gateways []netip.Prefix
	arms     []Arm // those whose servers it runs

	vm      *qemu.VM // nil: it does not run
	control *guestinit.Control
}

// The hardware addresses of the VMs.
var (
	guestMAC  = net.HardwareAddr{0x52, 0x54, 0x00, 0x53, 0x50, 0x01}
	secondMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x53, 0x50, 0x02}
)

// newMachines are the VMs of a lab, the first guest first; none in a lab of namespaces.
func (o Options) newMachines() []*machine {
	if o.VM != QEMU {
		return nil
	}
	all := []*machine{{
		name: vmName, tap: guestLink, mac: guestMAC,
		addrs: []netip.Prefix{guestAddr4, guestAddr6}, gateways: []netip.Prefix{gateway4, gateway6}, arms: slices.DeleteFunc(o.guestServers(), Arm.isSecond),
	}}
	if o.SecondGuest {
		all = append(all, &machine{
			name: secondVM, tap: secondLink, mac: secondMAC,
			addrs: []netip.Prefix{secondAddr4, secondAddr6}, gateways: []netip.Prefix{secondGateway4, secondGateway6}, arms: []Arm{Second, SecondVM},
		})
	}
	return all
}

// machine is the VM that runs an arm's server; nil if none does.
func (l *Lab) machine(arm Arm) *machine {
	for _, m := range l.machines {
		if slices.Contains(m.arms, arm) || m.isFirst() && arm == NginxVM {
			return m
		}
	}
	return nil
}

// isFirst: what an option adds to the guest, the first one has.
func (m *machine) isFirst() bool { return m.name == vmName }

// bootTries: one boot in twenty or so dies under TCG.
const (
	bootTries   = 3
	bootTimeout = 60 * time.Second
)

// channelPort is the name of a virtio-serial port of an arm.
func channelPort(arm Arm, i int) string { return fmt.Sprintf("spillway.%s.%d", arm, i) }

const controlPort = guestinit.ControlPort

// runDir has what QEMU writes.
func (l *Lab) runDir(m *machine) string { return filepath.Join(l.Dir, m.name) }

func (l *Lab) controlSocket(m *machine) string { return filepath.Join(l.runDir(m), "control.sock") }

// vmConfig describes a VM.
func (l *Lab) vmConfig(m *machine) qemu.Config {
	channels := []qemu.Channel{{Name: controlPort, SocketPath: l.controlSocket(m), Listen: true}}
	for _, arm := range m.arms {
		if !arm.offloads() {
			continue
		}
		for i := range l.CPUs {
			channels = append(channels, qemu.Channel{Name: channelPort(arm, i), SocketPath: l.channelSocket(arm, i)})
		}
	}
	cfg := qemu.Config{
		Name:      namespaceName(l.Name, m.name),
		RunDir:    l.runDir(m),
		Taps:      []qemu.Tap{{IfName: m.tap, MAC: m.mac, NetNS: l.Host.Path()}},
		Shares:    []qemu.Share9p{{Tag: shareName, Path: l.Files}},
		Channels:  channels,
		CPUs:      l.CPUs,
		MemoryMiB: guestMiB,
		Detached:  l.Detached,
	}
	if l.Virtiofs && m.isFirst() {
		cfg.Virtiofs = []qemu.ShareVirtiofs{{Tag: virtiofsTag, Path: l.Files}}
	}
	return cfg
}

// startVMs boots the VMs one after the other, each until its init says that it is ready.
func (l *Lab) startVMs(ctx context.Context) error {
	l.machines = l.newMachines()
	for _, m := range l.machines {
		if err := l.startVM(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startVM(ctx context.Context, m *machine) error {
	l.Progress("guest image of " + m.name)
	cfg := l.vmConfig(m)
	var err error
	if cfg.MemoryMiB, err = l.memoryMiB(m); err != nil {
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
	if err := l.writeInitramfs(m, kernel, cfg.Initrd); err != nil {
		return err
	}
	for try := 1; ; try++ {
		l.Progress(fmt.Sprintf("boot %s (try %d)", m.name, try))
		if err = l.boot(ctx, m, cfg); err == nil {
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
func (l *Lab) boot(ctx context.Context, m *machine, cfg qemu.Config) (err error) {
	if m.vm, err = qemu.Start(ctx, cfg); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if _, err = m.vm.WaitConsole(wait, guestinit.ReadyLine); err != nil {
		return errors.Join(err, m.stop())
	}
	m.control, err = guestinit.DialControl(ctx, l.controlSocket(m))
	return err
}

// stop ends QEMU.
func (m *machine) stop() error {
	if m.control != nil {
		m.control.Close()
	}
	if m.vm == nil {
		return nil
	}
	vm := m.vm
	m.vm = nil
	return vm.Stop(context.Background())
}

// spec is what a VM's init sets up.
func (l *Lab) spec(m *machine) guestinit.Spec {
	spec := guestinit.Spec{
		Hostname: m.name,
		Interfaces: []guestinit.Interface{{
			MAC:   m.mac.String(),
			Addrs: m.addrs,
			Routes: []guestinit.Route{
				{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: m.gateways[0].Addr()},
				{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: m.gateways[1].Addr()},
			},
		}},
		Mounts: []guestinit.Mount{{
			Source: shareName, Target: guestMount, Type: "9p", Options: guestinit.Options9p, ReadOnly: true,
		}},
	}
	if l.Virtiofs && m.isFirst() {
		spec.Mounts = append(spec.Mounts, guestinit.Mount{Source: virtiofsTag, Target: guestVirtiofs, Type: "virtiofs", ReadOnly: true})
	}
	if l.Congestion != "" {
		spec.Sysctls = map[string]string{"net.ipv4.tcp_congestion_control": l.Congestion}
	}
	for _, arm := range m.arms {
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
	return spec
}

// writeInitramfs makes a VM's file system: our own binary is its init, and its servers are the same binary.
func (l *Lab) writeInitramfs(m *machine, kernel qemu.Kernel, file string) error {
	wanted := qemu.GuestModules()
	if l.Virtiofs && m.isFirst() {
		wanted = append(wanted, "virtiofs")
	}
	modules, err := kernel.Modules(wanted...)
	if err != nil {
		return err
	}
	image := qemu.Initramfs{InitPath: l.Binary, Modules: modules, Spec: l.spec(m)}
	if m.hasFiles(l) {
		if image.Files, err = filesBelow(l.Files, guestMemory); err != nil {
			return err
		}
	}
	if m.isFirst() {
		if err := l.addPeer(&image); err != nil {
			return err
		}
	}
	return image.WriteFile(file)
}

// hasFiles tells whether a VM has a copy of the shared files in its memory.
func (m *machine) hasFiles(l *Lab) bool { return l.InMemory && m.isFirst() }

// Control is the way to the init of the first guest; nil in a namespace.
func (l *Lab) Control() *guestinit.Control {
	if len(l.machines) == 0 {
		return nil
	}
	return l.machines[0].control
}

// GuestFile reads a file, of at most 4 MiB, in the VM that runs an arm's server.
func (l *Lab) GuestFile(ctx context.Context, arm Arm, path string) ([]byte, error) {
	m := l.machine(arm)
	if m == nil {
		return nil, fmt.Errorf("read %s: arm %s has no VM", path, arm)
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	return m.control.Cat(ctx, path)
}

// controlTimeout bounds a request to a guest's init.
const controlTimeout = 10 * time.Second

func (l *Lab) killInGuest(arm Arm) error {
	ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
	defer cancel()
	return l.machine(arm).control.Kill(ctx, string(arm))
}
