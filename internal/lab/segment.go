package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"spillway/internal/guestinit"
	"spillway/internal/netns"
	"spillway/internal/qemu"
)

// A Segment is a lab of two hosts on one network segment, and a VM that can move from one to the other.
//
//	client ── eth0 ─┐        ┌─ eth0 ── host-a ── guest0 ─ tap ┐
//	10.88.0.2       switch ──┤           10.88.0.11            ├─ eth0 ── guest, on one of them
//	                         └─ eth0 ── host-b ── guest0 ─ tap ┘          10.87.0.2
//	                                     10.88.0.12
//
// For the client the guest's network is on the segment: the host that has the guest answers for it. Both hosts are its gateway, with one address and one
// hardware address. Each has a daemon of its own, and a QEMU when the guest is there or about to come. The guest has one media server, mode lease, and no mount: its files come
// through the channel. A Segment does not outlive the process that made it.
type Segment struct {
	*Lab
	Switch *netns.Namespace
	Hosts  [2]*SegmentHost
	At     int // the host that has the guest

	program qemu.Program
}

// SegmentHost is one of a Segment's hosts.
type SegmentHost struct {
	Name      string // host-a, host-b
	NS        *netns.Namespace
	Dir       string       // sockets, configuration, the VM's files
	Addresses []netip.Addr // on the segment
	VM        *qemu.VM     // nil: none

	// What StartHost gives the daemon.
	Share     string // the directory that it shares
	MaxLeases int    // of the VM; 0: the daemon's default
}

// segmentRoles are the namespaces that only a Segment has, and its daemons.
var segmentRoles = []string{"switch", "host-a", "host-b"}

// Addresses of the hosts on the segment.
var segmentAddrs = [2][2]netip.Prefix{
	{netip.MustParsePrefix("10.88.0.11/24"), netip.MustParsePrefix("fd88::11/64")},
	{netip.MustParsePrefix("10.88.0.12/24"), netip.MustParsePrefix("fd88::12/64")},
}

// segmentGateway is the hardware address of the guest's gateway, at both hosts: what the guest has learned stays true when it moves.
var segmentGateway = net.HardwareAddr{0x02, 0x53, 0x50, 0x00, 0x00, 0x01}

// segmentMemoryMiB is the memory of the guest that moves.
const segmentMemoryMiB = 256

// UpSegment builds a Segment; the guest is at host-a. When it fails nothing is left but its logs, which the error quotes.
func UpSegment(ctx context.Context, opts Options) (*Segment, error) {
	if opts.Link != (Link{BitsPerSecond: opts.Link.BitsPerSecond}) {
		return nil, fmt.Errorf("link %v: the client of two hosts has a link with a rate only", opts.Link)
	}
	if opts.Origin != "" || opts.SecondGuest {
		return nil, errors.New("a lab of two hosts has neither an origin nor a second guest")
	}
	program, err := qemu.FindProgram(filepath.Join(opts.Cache, "qemu"))
	if err != nil {
		return nil, fmt.Errorf("%w; fetch it with: scripts/setup.sh %s", err, opts.Cache)
	}
	opts.VM, opts.Detached = QEMU, false
	l, err := prepare(ctx, opts)
	if err != nil {
		return nil, err
	}
	s := &Segment{Lab: l, program: program}
	err = s.topology()
	for i := range s.Hosts {
		if err == nil {
			err = s.StartHost(i)
		}
	}
	if err == nil {
		err = s.bootGuest(ctx)
	}
	if err == nil {
		l.Progress("server and channel")
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		err = l.WaitArm(ctx, Lease)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", l.Name, err), s.Down())
	}
	return s, nil
}

// topology makes namespaces and links.
func (s *Segment) topology() (err error) {
	s.Progress("network namespaces")
	namespace := func(role string) (ns *netns.Namespace) {
		if err == nil {
			ns, err = netns.Named(namespaceName(s.Name, role))
		}
		return ns
	}
	s.Switch, s.Client = namespace("switch"), namespace("client")
	for i := range s.Hosts {
		name := segmentRoles[1+i]
		s.Hosts[i] = &SegmentHost{Name: name, Dir: filepath.Join(s.Dir, name), NS: namespace(name), Share: s.Files}
		for _, p := range segmentAddrs[i] {
			s.Hosts[i].Addresses = append(s.Hosts[i].Addresses, p.Addr())
		}
	}
	if err != nil {
		return err
	}
	if err := s.wireClient(); err != nil {
		return err
	}
	ports := []string{"client"}
	for i, h := range s.Hosts {
		if err := errors.Join(os.Mkdir(h.Dir, 0o755), os.Mkdir(filepath.Join(h.Dir, vmName), 0o755), s.wireHost(i, h)); err != nil {
			return err
		}
		ports = append(ports, h.Name)
	}
	return s.Switch.Bridge("br0", ports...)
}

func (s *Segment) wireClient() error {
	steps := []func() error{
		func() error { return calm(s.Client) },
		func() error { return s.Switch.Veth("client", clientLinkIndex, s.Client, peerLink) },
		func() error { return s.Client.Addresses(peerLink, clientAddr4, clientAddr6) },
		func() error { return s.Client.OnLink(peerLink, guestAddr4.Masked(), guestAddr6.Masked()) },
	}
	if s.Link.BitsPerSecond > 0 {
		steps = append(steps, func() error { return s.Switch.Limit("client", s.Link.BitsPerSecond) })
	}
	return inOrder(steps)
}

func (s *Segment) wireHost(i int, h *SegmentHost) error {
	return inOrder([]func() error{
		func() error { return calm(h.NS) },
		func() error { return h.NS.Sysctl("net/ipv4/ip_forward", "1") },
		func() error { return h.NS.Sysctl("net/ipv6/conf/all/forwarding", "1") },
		func() error { return s.Switch.Veth(h.Name, clientLinkIndex+1+i, h.NS, peerLink) },
		func() error { return h.NS.Addresses(peerLink, segmentAddrs[i][:]...) },
		func() error { return h.NS.Tap(guestLink) },
		func() error { return h.NS.HardwareAddr(guestLink, segmentGateway) },
		func() error { return h.NS.Addresses(guestLink, gateway4, gateway6) },
	})
}

// calm keeps a namespace from the defaults of the machine, and from what takes a second: addresses of IPv6 are usable at once.
func calm(ns *netns.Namespace) error {
	var errs []error
	for _, which := range []string{"all", "default"} {
		errs = append(errs, ns.Sysctl("net/ipv4/conf/"+which+"/rp_filter", "0"), ns.Sysctl("net/ipv4/conf/"+which+"/send_redirects", "0"))
	}
	return errors.Join(append(errs, ns.Sysctl("net/ipv6/conf/default/accept_dad", "0"), ns.Sysctl("net/ipv6/conf/default/router_solicitations", "0"))...)
}

func inOrder(steps []func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Admin is the daemon's admin socket.
func (h *SegmentHost) Admin() string { return filepath.Join(h.Dir, adminName) }

func (h *SegmentHost) channel(i int) string {
	return filepath.Join(h.Dir, fmt.Sprintf("lease-%d.sock", i))
}

// StartHost starts a host's daemon.
func (s *Segment) StartHost(i int) error {
	h := s.Hosts[i]
	s.Progress("host daemon of " + h.Name)
	var channels []string
	for c := range s.CPUs {
		channels = append(channels, fmt.Sprintf("%q", "unix:"+h.channel(c)))
	}
	busyPoll := ""
	if d := s.busyPoll(); d != nil {
		busyPoll = fmt.Sprintf("busy_poll = %q\n", d)
	}
	limits := ""
	if h.MaxLeases > 0 {
		limits = fmt.Sprintf("max_leases = %d\n", h.MaxLeases)
	}
	text := fmt.Sprintf(`# The daemon of %s in lab %s.
admin = %q
%s
[[share]]
name = %q
path = %q

[[vm]]
name = %q
channels = [%s]
addresses = ["%s", "%s"]
shares = [%q]
%s`, h.Name, s.Name, h.Admin(), busyPoll, shareName, h.Share, vmName, strings.Join(channels, ", "), guestAddr4.Addr(), guestAddr6.Addr(), shareName, limits)
	file := filepath.Join(h.Dir, "host.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if err := s.startProcess(h.Name, h.NS, nil, "host", "--config", file); err != nil {
		return err
	}
	return s.awaitSocket(h)
}

// awaitSocket waits until a daemon answers.
func (s *Segment) awaitSocket(h *SegmentHost) error {
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := askSocket(context.Background(), h.Admin(), "GET", "/status", nil)
		if err == nil {
			return nil
		}
		if s.daemons[h.Name].exited() || time.Now().After(deadline) {
			return fmt.Errorf("the daemon of %s does not serve: %w\n%s", h.Name, err, s.LogTails())
		}
	}
}

// StopHost ends a host's daemon with a signal.
func (s *Segment) StopHost(i int, sig syscall.Signal) error { return s.signal(s.Hosts[i].Name, sig) }

// vmConfig is the VM's at one of the hosts: the same devices at both.
func (s *Segment) vmConfig(i int) qemu.Config {
	h := s.Hosts[i]
	channels := []qemu.Channel{{Name: controlPort, SocketPath: filepath.Join(h.Dir, "control.sock"), Listen: true}}
	for c := range s.CPUs {
		channels = append(channels, qemu.Channel{Name: channelPort(Lease, c), SocketPath: h.channel(c)})
	}
	return qemu.Config{
		Name: namespaceName(s.Name, vmName), RunDir: filepath.Join(h.Dir, vmName),
		Binary: s.program.Binary, Firmware: s.program.Firmware,
		Kernel: filepath.Join(s.Dir, "vmlinux"), Initrd: filepath.Join(s.Dir, "init.cpio"),
		Taps:     []qemu.Tap{{IfName: guestLink, MAC: guestMAC, NetNS: h.NS.Path()}},
		Channels: channels, CPUs: s.CPUs, MemoryMiB: segmentMemoryMiB,
	}
}

// QMP is the VM's QMP socket at a host.
func (h *SegmentHost) QMP() string { return filepath.Join(h.Dir, vmName, "qmp.sock") }

// bootGuest boots the guest at host-a, which answers for it from now on.
func (s *Segment) bootGuest(ctx context.Context) error {
	s.Progress("guest image")
	kernel, err := qemu.FindKernel(filepath.Join(s.Cache, "kernel"))
	if err != nil {
		return fmt.Errorf("%w; fetch it with: scripts/setup.sh %s", err, s.Cache)
	}
	elf, err := kernel.ELF()
	if err != nil {
		return err
	}
	if elf, err = filepath.Abs(elf); err != nil {
		return err
	}
	cfg := s.vmConfig(0)
	if err := os.Symlink(elf, cfg.Kernel); err != nil {
		return err
	}
	modules, err := kernel.Modules(qemu.GuestModules()...)
	if err != nil {
		return err
	}
	if err := (qemu.Initramfs{InitPath: s.Binary, Modules: modules, Spec: s.guestSpec()}).WriteFile(cfg.Initrd); err != nil {
		return err
	}
	if err := s.ask(ctx, 0, "/arrive"); err != nil {
		return err
	}
	for try := 1; ; try++ {
		s.Progress(fmt.Sprintf("boot the VM at %s (try %d)", s.Hosts[0].Name, try))
		if err = s.boot(ctx, cfg); err == nil {
			return nil
		}
		if try == bootTries || ctx.Err() != nil {
			return err
		}
	}
}

// guestSpec is what the guest's init sets up: its network and one server, whose files come through the channel.
func (s *Segment) guestSpec() guestinit.Spec {
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
		Commands: []guestinit.Command{{
			Name: string(Lease),
			Args: append([]string{"/init"}, s.serveArgs(Lease, func(i int) string { return "virtio:" + channelPort(Lease, i) }, "")...),
		}},
	}
	if s.Congestion != "" {
		spec.Sysctls = map[string]string{"net.ipv4.tcp_congestion_control": s.Congestion}
	}
	return spec
}

// boot starts the guest once.
func (s *Segment) boot(ctx context.Context, cfg qemu.Config) error {
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if _, err := vm.WaitConsole(wait, guestinit.ReadyLine); err != nil {
		return errors.Join(err, vm.Stop(context.Background()))
	}
	s.Hosts[0].VM = vm
	return nil
}

// StartIncoming starts a QEMU at a host that waits for the VM.
func (s *Segment) StartIncoming(ctx context.Context, i int) error {
	cfg := s.vmConfig(i)
	cfg.Incoming = true
	vm, err := qemu.Start(ctx, cfg)
	if err == nil {
		s.Hosts[i].VM = vm
	}
	return err
}

// StopVM ends a host's QEMU, if there is one.
func (s *Segment) StopVM(i int) error {
	vm := s.Hosts[i].VM
	s.Hosts[i].VM = nil
	if vm == nil {
		return nil
	}
	return vm.Stop(context.Background())
}

// ask posts a step of a migration to a host's daemon, with the other host as its peer.
func (s *Segment) ask(ctx context.Context, i int, step string) error {
	other := s.Hosts[1-i]
	return askSocket(ctx, s.Hosts[i].Admin(), "POST", fmt.Sprintf("%s?vm=%s&peer=%s&peer=%s", step, vmName, other.Addresses[0], other.Addresses[1]), nil)
}

// Down ends and removes everything.
func (s *Segment) Down() error {
	var errs []error
	for i, h := range s.Hosts {
		if h == nil {
			continue
		}
		errs = append(errs, s.StopVM(i))
		if s.daemons[h.Name] != nil {
			errs = append(errs, s.signal(h.Name, syscall.SIGTERM))
		}
	}
	for _, h := range s.Hosts {
		if h != nil && h.NS != nil {
			errs = append(errs, netns.Delete(h.NS.Name), h.NS.Close())
		}
	}
	if s.Switch != nil {
		errs = append(errs, netns.Delete(s.Switch.Name), s.Switch.Close())
	}
	return errors.Join(append(errs, s.Lab.Down())...)
}
