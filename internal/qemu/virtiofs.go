package qemu

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

// virtiofsd is where Debian's qemu-system-common 7.2 has the server of virtiofs shares.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

func (c Config) virtiofsSocket(i int) string {
	return filepath.Join(c.RunDir, fmt.Sprintf("virtiofs%d.sock", i))
}

// startVirtiofs starts the server of a share. It ends when QEMU closes its connection. As a share is not written to by guests and its files do not change, the
// guest may keep what it has read (cache=always), as with 9p's cache=loose.
func (vm *VM) startVirtiofs(i int) error {
	// It gets the listening socket, so that QEMU can connect at once.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: vm.cfg.virtiofsSocket(i)})
	if err != nil {
		return err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	log, err := os.Create(filepath.Join(vm.cfg.RunDir, fmt.Sprintf("virtiofs%d.log", i)))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(virtiofsd, "-f", fmt.Sprintf("--fd=%d", firstExtraFD), "--rlimit-nofile=0",
		"-o", "source="+vm.cfg.Virtiofs[i].Path+",sandbox=chroot,cache=always")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stdout, cmd.Stderr = log, log
	ended := make(chan struct{})
	if err := vm.startProcess(cmd, func(error) { close(ended) }); err != nil {
		return fmt.Errorf("start the server of virtiofs share %s (Debian's qemu-system-common has it): %w", vm.cfg.Virtiofs[i].Tag, err)
	}
	vm.servers = append(vm.servers, server{cmd.Process, ended})
	return nil
}

// server is a process that serves a share.
type server struct {
	process *os.Process
	ended   <-chan struct{}
}

// endServers ends the servers of a QEMU that has not connected to them, or has ended.
func (vm *VM) endServers() {
	for _, s := range vm.servers {
		_ = s.process.Kill() // it is ending by itself, mostly
		<-s.ended
	}
}
