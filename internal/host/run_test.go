package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spillway/internal/redirect"
	"spillway/internal/wire"
)

// TestGroup: a VM's group may connect to its channels, and to no other's.
func TestGroup(t *testing.T) {
	r := newRig(t, func(r *rig) { r.cfg.VMs[0].Group, r.cfg.VMs[1].Group = "65534", "root" })
	for i, want := range []uint32{65534, 0} {
		info, err := os.Stat(strings.TrimPrefix(r.cfg.VMs[i].Channels[0], "unix:"))
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; gid != want || info.Mode().Perm() != 0o660 {
			t.Errorf("VM %s: the socket's group is %d, its mode %v; want %d and 0660", r.cfg.VMs[i].Name, gid, info.Mode(), want)
		}
	}
}

// TestRunFails: a daemon that cannot start leaves nothing, and the one that runs alone.
func TestRunFails(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.lease(g, 1)
	second, err := newDaemon(r.cfg, r.logger(), r.environment())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); !errors.Is(err, redirect.ErrInUse) {
		t.Errorf("second daemon: %v", err)
	}
	g.send(1, 0, r.whole("big", ""), wire.Close{})
	c.clientReads(r.big)
	c.clientEnds()
	c.release()
	r.stop()
	<-r.done

	path := strings.TrimPrefix(r.cfg.VMs[1].Channels[0], "unix:")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	third, err := newDaemon(r.cfg, r.logger(), r.environment())
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Run(context.Background()); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("channel's path in use: %v", err)
	}
	if err := os.Remove(path); err != nil { // checkStop looks for everything else
		t.Fatal(err)
	}

	r.cfg.Admin = filepath.Join(t.TempDir(), "none", "admin.sock")
	fourth, err := newDaemon(r.cfg, r.logger(), r.environment())
	if err != nil {
		t.Fatal(err)
	}
	if err := fourth.Run(context.Background()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory for the admin socket: %v", err)
	}
	if err := fourth.Run(context.Background()); err == nil {
		t.Error("Run can be called twice")
	}
}

// TestRestart: a daemon takes the place of one that has stopped, at the same channels.
func TestRestart(t *testing.T) {
	r := newRig(t)
	r.guest(0)
	r.stop()
	<-r.done
	if r.err != nil {
		t.Fatal(r.err)
	}
	r.daemon, r.done = nil, make(chan struct{})
	r.start()
	g := r.guest(0)
	c := r.lease(g, 1)
	g.send(1, 0, r.whole("big", ""))
	c.clientReads(r.big)
}
