package lab

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"spillway/internal/guestinit"
	"spillway/internal/nginx"
	"spillway/internal/qemu"
)

// Peers: what others use to serve files, in labs with Options.Peers.
const (
	NginxHost Arm = "nginx-host" // Debian's nginx on the host
	NginxVM   Arm = "nginx-vm"   // the same binary in the guest, reading the share
)

// Peers in the order of the tables.
func Peers() []Arm { return []Arm{NginxHost, NginxVM} }

// IsPeer tells whether an arm's server is none of ours.
func (a Arm) IsPeer() bool { return slices.Contains(Peers(), a) }

// Directories and files of the guest's nginx.
const (
	guestNginxConf  = "/etc/nginx.conf"
	guestNginxState = "/run"
)

// nginxPackage finds the unpacked package.
func (l *Lab) nginxPackage() (nginx.Package, error) {
	p, err := nginx.Find(filepath.Join(l.Cache, "nginx"))
	if err != nil {
		return p, fmt.Errorf("%w; fetch it with: scripts/setup.sh %s", err, l.Cache)
	}
	return p, nil
}

// nginxConfig is a peer's configuration, apart from where its files are.
func (l *Lab) nginxConfig(arm Arm, dir, state string) nginx.Config {
	c := nginx.Config{
		Listen: fmt.Sprint(arm.port()), Status: fmt.Sprint(arm.adminPort()), Prefix: urlPrefix, Dir: dir, State: state,
	}
	if arm == NginxVM {
		c.Workers = l.CPUs
	}
	return c
}

// startPeers starts the host's nginx, and the guest's in a namespace; a VM's init starts its own.
func (l *Lab) startPeers() error {
	if !l.Peers {
		return nil
	}
	l.Progress("nginx")
	if err := l.startNginx(NginxHost); err != nil || l.VM == QEMU {
		return err
	}
	return l.startNginx(NginxVM)
}

// startNginx starts a peer in its namespace.
func (l *Lab) startNginx(arm Arm) error {
	p, err := l.nginxPackage()
	if err != nil {
		return err
	}
	ns := l.Guest
	if arm == NginxHost {
		ns = l.Host
	}
	state := filepath.Join(l.Dir, string(arm))
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	config := filepath.Join(state, "nginx.conf")
	if err := os.WriteFile(config, []byte(l.nginxConfig(arm, l.Files, state).String()), 0o644); err != nil {
		return err
	}
	// SIGTERM: its workers would outlive a first process that is killed.
	args := p.Command(config)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = state // by which stopPid knows it: it writes over its command line
	return l.startCommand(string(arm), ns, cmd, syscall.SIGTERM)
}

// addPeer puts the guest's nginx into its file system.
func (l *Lab) addPeer(image *qemu.Initramfs) error {
	if !l.Peers {
		return nil
	}
	p, err := l.nginxPackage()
	if err != nil {
		return err
	}
	if image.Programs, err = p.GuestFiles(); err != nil {
		return err
	}
	if image.Files == nil {
		image.Files = map[string][]byte{}
	}
	maps.Copy(image.Files, nginx.Accounts())
	image.Files[guestNginxConf] = []byte(l.nginxConfig(NginxVM, guestMount, guestNginxState).String())
	image.Spec.Commands = append(image.Spec.Commands, guestinit.Command{Name: string(NginxVM), Args: nginx.GuestCommand(guestNginxConf)})
	return nil
}

// peerReady asks a peer whether it serves.
func (l *Lab) peerReady(ctx context.Context, arm Arm) error {
	_, err := l.get(ctx, http.MethodGet, l.adminURL(arm, "/stub_status"))
	return err
}
