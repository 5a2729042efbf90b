package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
)

// faultRig is a lab whose offloading servers reach their daemon through proxies. The arm lease has a mount; the arm offload sees its files through the
// channel only.
type faultRig struct {
	lab     *lab.Lab
	files   *media
	proxies map[lab.Arm]*proxy
	servers map[lab.Arm]*proxiedServer

	mu      sync.Mutex
	stopped chan error // of a daemon that was told to stop; nil: it runs
}

// proxiedServer is an arm's server behind a proxy.
type proxiedServer struct {
	cmd   *exec.Cmd
	ended <-chan struct{}
}

// newFaultRig makes a lab. Each has files of its own: their aliases would get in each other's way.
func newFaultRig(t *testing.T) *faultRig {
	t.Helper()
	files := newMedia(t)
	// A symbolic link is a file for the guest and forbidden to the host: SENT says so, and the guest sends the bytes itself, as DATA.
	must(t, os.Symlink("tablet/1 (1).m4s", files.dir+"/"+linkFile))
	files.files[linkFile] = files.files["tablet/1 (1).m4s"]
	r := &faultRig{lab: newLab(t, files), files: files, proxies: map[lab.Arm]*proxy{}, servers: map[lab.Arm]*proxiedServer{}}
	for _, arm := range offloading {
		killServer(t, r.lab, arm)
		r.proxies[arm] = newProxy(t, r.lab, arm)
		r.startServer(t, arm)
		t.Cleanup(func() { r.endServer(t, arm) })
		waitArm(t, r.lab, arm)
	}
	return r
}

const linkFile = "link.m4s"

func (r *faultRig) startServer(t testing.TB, arm lab.Arm) {
	t.Helper()
	mount := r.files.dir
	if arm == lab.Offload {
		mount = ""
	}
	port := portOf(t, r.lab.Addr(arm))
	log, err := os.OpenFile(r.lab.LogPath("proxied-"+string(arm)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer log.Close()
	cmd := exec.Command(program, "serve", "--listen", fmt.Sprintf(":%d", port), "--admin", fmt.Sprintf(":%d", port+1000),
		"--share", "media:/media/:"+mount, "--mode", string(arm), "--channel", "unix:"+r.proxies[arm].socket, "--threshold", r.lab.Threshold.String())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := r.lab.Guest.Start(cmd)
	must(t, err)
	r.servers[arm] = &proxiedServer{cmd, ended}
}

// killServer kills an arm's server and waits for its end.
func (r *faultRig) killServer(arm lab.Arm) {
	s := r.servers[arm]
	_ = s.cmd.Process.Kill()
	<-s.ended
}

func (r *faultRig) endServer(t *testing.T, arm lab.Arm) {
	s := r.servers[arm]
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which is seen below
	select {
	case <-s.ended:
		if !s.cmd.ProcessState.Success() {
			t.Errorf("the server %s behind a proxy: %v", arm, s.cmd.ProcessState)
		}
	case <-time.After(patience):
		t.Errorf("the server %s behind a proxy does not end", arm)
		r.killServer(arm)
	}
}

// stopHost sends the daemon a signal. Its end is awaited by repair, unless it comes at once.
func (r *faultRig) stopHost(sig syscall.Signal) {
	stopped := make(chan error, 1)
	r.mu.Lock()
	r.stopped = stopped
	r.mu.Unlock()
	if sig == syscall.SIGKILL {
		stopped <- r.lab.StopHost(sig)
		return
	}
	go func() { stopped <- r.lab.StopHost(sig) }()
	time.Sleep(5 * time.Millisecond) // the signal is out
}

// repair starts what was stopped or killed, and waits until an arm has its session.
func (r *faultRig) repair(t *testing.T, arm lab.Arm) {
	t.Helper()
	r.mu.Lock()
	stopped := r.stopped
	r.stopped = nil
	r.mu.Unlock()
	if stopped != nil {
		if err := <-stopped; err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
		must(t, r.lab.StartHost())
	}
	select {
	case <-r.servers[arm].ended:
		r.startServer(t, arm)
	default:
	}
	waitArm(t, r.lab, arm)
}

// works checks that an arm serves, that connections are leased, and that nothing is left of any.
func (r *faultRig) works(t *testing.T, arm lab.Arm) {
	t.Helper()
	const name = fileOf288KB
	eventually(t, "the daemon answers", func() bool { return r.lab.HostAdmin(context.Background(), http.MethodGet, "/status", nil) == nil })
	before := serverStats(t, r.lab, arm).Counts.Handovers
	// A stray fallback is no fault.
	eventually(t, "a fresh connection is handed over", func() bool {
		fetch(t, r.lab, arm, name, r.files.files[name])
		return t.Failed() || serverStats(t, r.lab, arm).Counts.Handovers > before
	})
	eventually(t, "no lease is left", func() bool {
		return hostStatus(t, r.lab).Leases == 0 && serverStats(t, r.lab, arm).Leases == 0
	})
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, r.lab)) == 0 })
}
