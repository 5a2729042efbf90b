package qemu

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
)

// Accel is the way QEMU runs the guest's instructions.
type Accel string

// The accelerators.
const (
	AccelAuto Accel = "auto" // KVM where it works, else TCG; asked for, never reported
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// DefaultBinary is the QEMU program that is looked up in PATH when Config.Binary is empty.
const DefaultBinary = "qemu-system-x86_64"

// maxSocketPathBytes is what fits into sockaddr_un.sun_path with its NUL (include/uapi/linux/un.h).
const maxSocketPathBytes = 107

// Config describes a VM. RunDir exists and is the VM's own; Start puts console.log, qemu.log and the sockets there
// and Stop removes the sockets.
type Config struct {
	Name      string
	Binary    string   // default: DefaultBinary
	Firmware  []string // directories with QEMU's firmware; none: those that Binary was built with
	Kernel    string   // an ELF file (Kernel.ELF) or a bzImage
	Initrd    string   // written by Initramfs.WriteFile
	Append    string   // more kernel parameters
	MemoryMiB int      // default: 256
	CPUs      int      // default: 1; under TCG a second one slows most things down
	Accel     Accel    // default: AccelAuto
	RunDir    string
	Taps      []Tap
	Shares    []Share9p
	Virtiofs  []ShareVirtiofs
	Channels  []Channel
	QMPSocket string   // default: qmp.sock in RunDir
	ExtraArgs []string // more QEMU arguments

	// Incoming makes a VM that waits for another one to move into it, see QMP.Listen. Its devices must be the other's.
	Incoming bool

	// Detached lets the VM outlive this process: QEMU gets a session of its own and is not killed with us. Attach finds it
	// again.
	Detached bool
}

// Tap is one network interface of the guest, backed by an existing persistent tap on the host.
type Tap struct {
	IfName string
	MAC    net.HardwareAddr
	// NetNS is the path of the network namespace that the tap lives in; empty means that of the thread that calls Start.
	// QEMU itself stays out of it: it gets the open tap.
	NetNS string
}

// Share9p is a directory of the host that the guest can mount read-only with 9p.
type Share9p struct {
	Tag  string // the guest's name for it, at most 31 bytes
	Path string
}

// ShareVirtiofs is a directory of the host that the guest can mount with virtiofs. Debian's virtiofsd, which Start starts, cannot export read-only: what a guest
// must not write to has to be mounted read-only on the host.
type ShareVirtiofs struct {
	Tag  string // the guest's name for it, at most 36 bytes
	Path string // without a comma
}

// Channel is one virtio-serial port of the guest, backed by a unix socket on the host.
type Channel struct {
	Name       string // what the guest finds in /sys/class/virtio-ports/*/name
	SocketPath string
	// Listen makes QEMU the server of the socket. By default it is the client: the host's daemon listens, QEMU connects
	// every second until somebody does, and comes back after each restart of the daemon.
	Listen bool
}

// withDefaults fills in what was left empty.
func (c Config) withDefaults() Config {
	if c.Binary == "" {
		c.Binary = DefaultBinary
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 256
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Accel == "" {
		c.Accel = AccelAuto
	}
	if c.QMPSocket == "" {
		c.QMPSocket = filepath.Join(c.RunDir, "qmp.sock")
	}
	return c
}

// validate refuses what QEMU would misunderstand or report in obscure words.
func (c Config) validate() error {
	if c.Name == "" || c.RunDir == "" || c.Kernel == "" {
		return errors.New("a VM needs Name, RunDir and Kernel")
	}
	if !slices.Contains([]Accel{AccelAuto, AccelKVM, AccelTCG}, c.Accel) {
		return fmt.Errorf("unknown accelerator %q; known are auto, kvm and tcg", c.Accel)
	}
	if c.MemoryMiB < 0 || c.CPUs < 0 {
		return fmt.Errorf("%d MiB of memory and %d CPUs make no sense", c.MemoryMiB, c.CPUs)
	}
	sockets := []string{c.QMPSocket}
	for _, ch := range c.Channels {
		if ch.Name == "" {
			return errors.New("a channel has no name")
		}
		sockets = append(sockets, ch.SocketPath)
	}
	for _, t := range c.Taps {
		if t.IfName == "" || len(t.MAC) != 6 {
			return fmt.Errorf("tap %q with MAC %q: needs an interface name and a MAC of six bytes", t.IfName, t.MAC)
		}
	}
	for i, s := range c.Virtiofs {
		if s.Tag == "" || len(s.Tag) > 36 || s.Path == "" || strings.Contains(s.Path, ",") { // struct virtio_fs_config, include/uapi/linux/virtio_fs.h
			return fmt.Errorf("virtiofs share %q at %q: needs a tag of 1 to 36 bytes and a path without a comma", s.Tag, s.Path)
		}
		sockets = append(sockets, c.virtiofsSocket(i))
	}
	for _, s := range c.Shares {
		if s.Tag == "" || len(s.Tag) > 31 || s.Path == "" { // MAX_TAG_LEN, hw/9pfs/virtio-9p.h
			return fmt.Errorf("share %q at %q: needs a tag of 1 to 31 bytes and a path", s.Tag, s.Path)
		}
	}
	for _, s := range sockets {
		if s == "" || len(s) > maxSocketPathBytes {
			return fmt.Errorf("socket path %q: must have 1 to %d bytes; use a shorter run directory", s, maxSocketPathBytes)
		}
	}
	return nil
}

// ownSockets are the paths that QEMU creates.
func (c Config) ownSockets() []string {
	sockets := []string{c.QMPSocket}
	for _, ch := range c.Channels {
		if ch.Listen {
			sockets = append(sockets, ch.SocketPath)
		}
	}
	for i := range c.Virtiofs {
		sockets = append(sockets, c.virtiofsSocket(i))
	}
	return sockets
}

// ConsolePath is the file that gets what the guest writes to its serial console.
func (c Config) ConsolePath() string { return filepath.Join(c.RunDir, "console.log") }

// logPath is the file that gets what QEMU itself writes.
func (c Config) logPath() string { return filepath.Join(c.RunDir, "qemu.log") }

// firstExtraFD is the number of the first descriptor of os/exec's ExtraFiles.
const firstExtraFD = 3

// kernelParameters make a dying guest end QEMU: a panic reboots at once, by triple fault, which -no-reboot turns into an exit.
const kernelParameters = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3"

// args returns QEMU's arguments. The open taps are descriptors from firstExtraFD on.
//
// q35, since microvm hangs under TCG (TSC calibration). The option ROM of the network card is for network boot only.
func (c Config) args(v Version) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", escape(c.Name),
		"-machine", "q35",
	}
	for _, dir := range c.Firmware {
		args = append(args, "-L", dir)
	}
	if c.Incoming {
		args = append(args, "-incoming", "defer", "-S") // and when the other one has moved in, it waits for QMP.Resume
	}
	accel := "kvm"
	if c.Accel == AccelTCG {
		accel = "tcg,thread=multi"
	}
	args = append(args,
		"-accel", accel, "-cpu", "max", "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprintf("%dM", c.MemoryMiB),
		"-kernel", c.Kernel,
	)
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	args = append(args,
		"-append", strings.TrimSpace(kernelParameters+" "+c.Append),
		"-chardev", "file,id=console,path="+escape(c.ConsolePath()), "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,path="+escape(c.QMPSocket)+",server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	)
	for i, t := range c.Taps {
		// A routed guest has nothing to announce when it has moved, and it would do so in its first milliseconds at the new host, which its clients wait for.
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, firstExtraFD+i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,guest_announce=off,romfile=", i, t.MAC))
	}
	for i, s := range c.Shares {
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=fs%d,path=%s,security_model=none,readonly=on,multidevs=remap", i, escape(s.Path)),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=fs%d,mount_tag=%s", i, escape(s.Tag)))
	}
	if len(c.Virtiofs) > 0 { // whose server reads and writes the guest's memory
		args = append(args, "-object", fmt.Sprintf("memory-backend-memfd,id=memory,size=%dM,share=on", c.MemoryMiB), "-numa", "node,memdev=memory")
	}
	for i, s := range c.Virtiofs {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=virtiofs%d,path=%s", i, escape(c.virtiofsSocket(i))),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=virtiofs%d,tag=%s", i, escape(s.Tag)))
	}
	if len(c.Channels) > 0 {
		args = append(args, "-device", serialDevice(len(c.Channels)))
	}
	for i, ch := range c.Channels {
		mode := "server=off," + v.reconnectOption()
		if ch.Listen {
			mode = "server=on,wait=off"
		}
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=channel%d,path=%s,%s", i, escape(ch.SocketPath), mode),
			"-device", fmt.Sprintf("virtserialport,chardev=channel%d,name=%s", i, escape(ch.Name)))
	}
	return append(args, c.ExtraArgs...)
}

// serialDevice is the device that ports hang on. A frame is small and somebody waits for it, so the vCPU's thread itself hands it to the socket instead of
// waking QEMU's main loop (ioeventfd=off). And each queue has an interrupt of its own: with fewer vectors than queues, as by default, the guest looks
// through the queues of all 31 possible ports at each interrupt (vp_vring_interrupt, drivers/virtio/virtio_pci_common.c).
func serialDevice(ports int) string {
	ports++                   // port 0 is for consoles only
	queues := 2 * (ports + 1) // two of each port, two for control
	return fmt.Sprintf("virtio-serial-pci,max_ports=%d,vectors=%d,ioeventfd=off", ports, queues+1)
}

// escape protects a value inside a comma-separated QEMU option: a comma is written twice.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
