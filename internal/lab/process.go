package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"spillway/internal/config"
	"spillway/internal/netns"
)

// process is a daemon of the lab.
type process struct {
	name  string
	pid   int
	ended <-chan struct{} // closed when it has
}

// guestEnv makes a namespace stand for a VM of so many CPUs.
func (l *Lab) guestEnv() string { return fmt.Sprintf("GOMAXPROCS=%d", l.CPUs) }

// startProcess starts the binary inside a namespace, with files from descriptor 3 on; its output goes to NAME.log in the lab's directory, behind what an
// earlier run wrote.
func (l *Lab) startProcess(name string, ns *netns.Namespace, files []*os.File, args ...string) error {
	cmd := exec.Command(l.Binary, args...)
	cmd.ExtraFiles = files
	return l.startCommand(name, ns, cmd, syscall.SIGKILL)
}

// startCommand does it for any program; orphaned is the signal that it gets when this process ends and the lab is not detached.
func (l *Lab) startCommand(name string, ns *netns.Namespace, cmd *exec.Cmd, orphaned syscall.Signal) error {
	log, err := os.OpenFile(l.LogPath(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if ns == l.Guest || ns == l.SecondGuestNS {
		cmd.Env = append(os.Environ(), l.guestEnv())
	}
	// A group of its own: an interrupt typed at the terminal is for the lab's owner.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: orphaned}
	if l.Detached {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	ended, err := ns.Start(cmd)
	if err != nil {
		return err
	}
	l.daemons[name] = &process{name: name, pid: cmd.Process.Pid, ended: ended}
	return l.saveState() // at once: whoever kills us now leaves a daemon that Down must find
}

func (p *process) exited() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stopGrace is how long a daemon may take to end by itself.
const stopGrace = 15 * time.Second

// signal sends sig to a daemon and waits for its end.
func (l *Lab) signal(name string, sig syscall.Signal) error {
	p := l.daemons[name]
	if p == nil {
		return fmt.Errorf("no process %s in the lab", name)
	}
	delete(l.daemons, name)
	if p.exited() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil {
		return fmt.Errorf("%v %s: %w", sig, name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopGrace):
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
	<-p.ended
	return fmt.Errorf("%s did not end within %v after %v and was killed", name, stopGrace, sig)
}

// LogPath is the log of one of the lab's processes: host, link, baremetal, vm, offload, lease, second.
func (l *Lab) LogPath(name string) string { return filepath.Join(l.Dir, name+".log") }

// logs are all log files.
func (l *Lab) logs() []string {
	logs, _ := filepath.Glob(filepath.Join(l.Dir, "*.log")) // the patterns are valid
	more, _ := filepath.Glob(filepath.Join(l.Dir, "*", "*.log"))
	return append(logs, more...)
}

// logName is a log's name among all of a lab: NAME.log, or VM-console.log and VM-qemu.log.
func (l *Lab) logName(file string) string {
	below, err := filepath.Rel(l.Dir, file)
	if err != nil {
		return filepath.Base(file)
	}
	return strings.ReplaceAll(below, "/", "-")
}

// SaveLogs copies all logs into a directory, which outlives the lab.
func (l *Lab) SaveLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, name := range l.logs() {
		text, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, l.logName(name)), text, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// LogTails quotes the ends of all logs.
func (l *Lab) LogTails() string {
	const tailBytes = 2000
	var b strings.Builder
	for _, name := range l.logs() {
		text, err := os.ReadFile(name)
		if err != nil || len(text) == 0 {
			continue
		}
		fmt.Fprintf(&b, "--- %s\n%s", l.logName(name), text[max(0, len(text)-tailBytes):])
	}
	return b.String()
}

const hostProcess = "host"

// StartHost starts the host daemon.
func (l *Lab) StartHost() error {
	file := filepath.Join(l.Dir, "host.toml")
	if err := os.WriteFile(file, []byte(l.hostConfig()), 0o644); err != nil {
		return err
	}
	return l.startProcess(hostProcess, l.Host, nil, "host", "--config", file)
}

// hostConfig is the daemon's configuration, as a user would write it.
func (l *Lab) hostConfig() string {
	busyPoll := ""
	if d := l.busyPoll(); d != nil {
		busyPoll = fmt.Sprintf("busy_poll = %q\n", d)
	}
	limits := ""
	if l.MaxLeases > 0 {
		limits = fmt.Sprintf("max_leases = %d\n", l.MaxLeases)
	}
	return fmt.Sprintf(`# The host daemon of lab %s.
admin = %q
%s
%s
[[vm]]
name = %q
channels = [%s]
addresses = ["%s", "%s"]
shares = [%s]
%s%s`, l.Name, l.adminSocket(), busyPoll, l.shareConfig(), vmName, l.channels(l.channelArms()...),
		guestAddr4.Addr(), guestAddr6.Addr(), l.guestShares(), limits, l.secondVMConfig())
}

// cacheSize is the budget of a lab's cache.
const cacheSize = "1GiB"

// shareConfig is the share of the offloading servers, and that of LeaseCache.
func (l *Lab) shareConfig() string {
	config := fmt.Sprintf("[[share]]\nname = %q\npath = %q\n", shareName, l.Files)
	if l.Origin != "" {
		config = cacheShare(shareName, l.Origin, filepath.Join(l.Dir, "cache")) + l.CacheConfig + "\n"
	}
	if l.CacheDir != "" {
		config += cacheShare(cacheName, l.Files, l.CacheDir)
	}
	return config
}

func cacheShare(name, origin, dir string) string {
	return fmt.Sprintf("[[share]]\nname = %q\norigin = %q\n[share.cache]\ndir = %q\nmax_size = %q\n", name, origin, dir, cacheSize)
}

// guestShares are those that the first guest may name, as the configuration has them.
func (l *Lab) guestShares() string {
	if l.CacheDir == "" {
		return strconv.Quote(shareName)
	}
	return strconv.Quote(shareName) + ", " + strconv.Quote(cacheName)
}

func (l *Lab) secondVMConfig() string {
	if !l.SecondGuest {
		return ""
	}
	return fmt.Sprintf(`
[[vm]]
name = %q
channels = [%s]
addresses = ["%s", "%s"]
shares = [%q]
`, secondVM, l.channels(Second), secondAddr4.Addr(), secondAddr6.Addr(), shareName)
}

// channels are those of arms, as a list in the daemon's configuration.
func (l *Lab) channels(arms ...Arm) string {
	var all []string
	for _, arm := range arms {
		for i := range l.CPUs {
			all = append(all, fmt.Sprintf("%q", "unix:"+l.channelSocket(arm, i)))
		}
	}
	return strings.Join(all, ", ")
}

// OwnOrigin is the bare-metal server as an origin: it serves Files to the daemon, which is in its namespace.
func OwnOrigin() string {
	return "http://" + netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), Baremetal.port()).String() + urlPrefix
}

// adminName is the name of a host daemon's admin socket in its directory.
const adminName = "admin.sock"

func (l *Lab) adminSocket() string { return filepath.Join(l.Dir, adminName) }

func (l *Lab) channelSocket(arm Arm, i int) string {
	return filepath.Join(l.Dir, fmt.Sprintf("%s-%d.sock", arm, i))
}

// StopHost ends the host daemon with a signal and waits for it.
func (l *Lab) StopHost(sig syscall.Signal) error { return l.signal(hostProcess, sig) }

// StartServer starts an arm's media server in a namespace.
func (l *Lab) StartServer(arm Arm) error {
	ns := l.Guest
	switch arm {
	case Baremetal:
		ns = l.Host
	case Second, SecondVM:
		ns = l.SecondGuestNS
	}
	return l.startProcess(string(arm), ns, nil, l.serveArgs(arm, func(i int) string { return "unix:" + l.channelSocket(arm, i) }, l.Files)...)
}

// emulatedBusyPoll suits a VM whose CPU is emulated: a wake-up takes it half a millisecond.
const emulatedBusyPoll = time.Millisecond

// busyPoll is the busy_poll of daemon and servers; nil: their default.
func (l *Lab) busyPoll() *time.Duration {
	if l.BusyPoll == nil && l.VM == QEMU {
		d := emulatedBusyPoll
		return &d
	}
	return l.BusyPoll
}

// serveArgs are the arguments of an arm's media server, whose channels have these addresses.
func (l *Lab) serveArgs(arm Arm, channel func(i int) string, mount string) []string {
	name := shareName
	if arm == LeaseCache {
		name = cacheName
	}
	if arm == LeaseCache || l.Origin != "" && arm.offloads() {
		mount = "" // the daemon alone has the files
	}
	args := []string{
		"serve",
		"--listen", fmt.Sprintf(":%d", arm.port()),
		"--admin", fmt.Sprintf(":%d", arm.adminPort()),
		"--share", name + ":" + urlPrefix + ":" + mount,
	}
	if !arm.offloads() {
		return append(args, "--mode", string(config.ModeOff))
	}
	args = append(args, "--mode", arm.mode(), "--threshold", l.Threshold.String())
	for i := range l.CPUs {
		args = append(args, "--channel", channel(i))
	}
	if d := l.busyPoll(); d != nil {
		args = append(args, "--busy-poll", d.String())
	}
	return args
}

// KillServer kills an arm's media server. A guest's init starts it again by itself; in a namespace StartServer does.
func (l *Lab) KillServer(arm Arm) error {
	if l.VM == QEMU && arm != Baremetal {
		return l.killInGuest(arm)
	}
	return l.signal(string(arm), syscall.SIGKILL)
}

// Down ends everything that the lab started and removes everything that it made.
func (l *Lab) Down() error {
	var errs []error
	for _, m := range l.machines {
		errs = append(errs, m.stop())
	}
	for name := range l.daemons {
		if name != hostProcess && name != linkProcess {
			errs = append(errs, l.signal(name, syscall.SIGTERM))
		}
	}
	for _, name := range []string{hostProcess, linkProcess} { // the daemon drains its connections over the link
		if l.daemons[name] != nil {
			errs = append(errs, l.signal(name, syscall.SIGTERM))
		}
	}
	for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest, l.SecondGuestNS} {
		if ns != nil {
			errs = append(errs, netns.Delete(ns.Name), ns.Close())
		}
	}
	errs = append(errs, os.RemoveAll(l.Dir))
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	return errors.Join(append(errs, removeRoot(ctx, StateRoot))...)
}
