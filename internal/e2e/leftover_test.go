package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"spillway/internal/lab"
	"spillway/internal/netns"
	"spillway/internal/testkit"
)

// Every lab of this package is checked for leftovers at its end (checkGone); here are the ends that others do not come to.

// TestDownLeavesNothing: with connections of all kinds open, of this process too.
func TestDownLeavesNothing(t *testing.T) {
	testkit.CheckFDs(t)
	files := newBigMedia(t)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary) // of this process and of those that it starts
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: program, Files: files.dir}
	l, err := lab.Up(context.Background(), opts)
	must(t, err)
	var open []*client
	for _, arm := range lab.Arms() {
		streaming := dial(t, l, arm, receiveBuffer(smallBuffer))
		streaming.begin(bigFile, files.files[bigFile], readSome)
		idle := dial(t, l, arm)
		idle.get("10m.mp4", files.files["10m.mp4"])
		open = append(open, streaming, idle)
	}
	for _, c := range open { // the kernel keeps a namespace for as long as it has a socket
		must(t, c.Close())
	}
	must(t, l.Down())
	checkGone(t, opts.Name, files.dir)
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// TestFailedUpLeavesNothing: a lab that fails at any point takes all of it away.
func TestFailedUpLeavesNothing(t *testing.T) {
	files := newMedia(t)
	script := func(text string) string {
		name := filepath.Join(t.TempDir(), "spillway")
		must(t, os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
		return name
	}
	for _, c := range []struct {
		name, binary, says string
	}{
		{"no binary", filepath.Join(t.TempDir(), "missing"), "no such file"},
		{"binary that ends at once", script("echo broken by design >&2; exit 3"), "broken by design"},
		{"daemon that ends at once", script(`[ "$1" = host ] && exit 3; exec ` + program + ` "$@"`), "host has ended"},
		{"server that ends at once", script(`case "$*" in *"--mode lease"*) exit 3;; esac; exec ` + program + ` "$@"`), "lease has ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			testkit.CheckFDs(t)
			name := labName()
			l, err := lab.Up(context.Background(), lab.Options{Name: name, VM: lab.NetNS, Binary: c.binary, Files: files.dir})
			if err == nil {
				must(t, l.Down())
				t.Fatal("the lab came up")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error does not say %q: %v", c.says, err)
			}
			checkGone(t, name, files.dir)
		})
	}
}

// TestCancelledUpLeavesNothing: an interrupt while a lab comes up.
func TestCancelledUpLeavesNothing(t *testing.T) {
	testkit.CheckFDs(t)
	files := newMedia(t)
	name := labName()
	ctx, cancel := context.WithCancel(context.Background())
	_, err := lab.Up(ctx, lab.Options{Name: name, VM: lab.NetNS, Binary: program, Files: files.dir, Progress: func(step string) {
		if step == "servers and channels" {
			cancel()
		}
	}})
	cancel()
	if err == nil {
		t.Error("a cancelled lab came up")
	}
	checkGone(t, name, files.dir)
}

// TestSecondUp: a lab does not touch another one of its name.
func TestSecondUp(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	if second, err := lab.Up(context.Background(), lab.Options{Name: l.Name, VM: lab.NetNS, Binary: program, Files: files.dir}); err == nil {
		must(t, second.Down())
		t.Fatal("a second lab of the same name came up")
	} else if !strings.Contains(err.Error(), "lab down") {
		t.Errorf("the error does not tell what to do: %v", err)
	}
	for _, arm := range lab.Arms() {
		fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
	}
}

// TestDownByName: a lab that outlives its maker is removed by another process, which knows its name only.
func TestDownByName(t *testing.T) {
	testkit.CheckFDs(t)
	files := newMedia(t)
	name := labName()
	l, err := lab.Up(context.Background(), lab.Options{Name: name, VM: lab.NetNS, Binary: program, Files: files.dir, Detached: true})
	must(t, err)
	fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	for _, ns := range []*netns.Namespace{l.Client, l.Host, l.Guest} { // as if the process had ended
		must(t, ns.Close())
	}
	names, err := lab.List()
	if err != nil || !slices.Contains(names, name) {
		t.Errorf("labs %v, %v; want %s among them", names, err, name)
	}
	must(t, lab.Down(context.Background(), name, func(step string) { t.Log(step) }))
	checkGone(t, name, files.dir)
	if err := lab.Down(context.Background(), name, func(step string) { t.Log(step) }); !errors.Is(err, lab.ErrNoLab) {
		t.Errorf("a second Down: %v, want ErrNoLab", err)
	}
}

// TestDaemonLeavesNothing: after a stop; and after kill -9, a start and a stop.
func TestDaemonLeavesNothing(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	use := func() (idle *client) {
		for _, arm := range offloading {
			fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
		}
		streaming := dial(t, l, lab.Lease, receiveBuffer(smallBuffer))
		streaming.begin(bigFile, files.files[bigFile], readSome)
		streaming.reset()
		idle = dial(t, l, lab.Lease)
		idle.get("10m.mp4", files.files["10m.mp4"])
		return idle
	}
	checkRedirect(t, l)
	use()
	checkRedirect(t, l) // nothing for each connection
	stopHost(t, l, syscall.SIGTERM)
	checkNoRedirect(t, l)

	startHost(t, l)
	idle := use()
	stopHost(t, l, syscall.SIGKILL)
	if left := inspectHost(t, l); !left.status.Stale() || !left.status.Complete() {
		t.Errorf("after kill -9: %+v; want the redirect left behind and recognized as stale", left.status)
	}
	idle.expectClosed()
	must(t, idle.Close()) // until then its connection is the kernel's, half-closed
	startHost(t, l)
	checkRedirect(t, l)
	use()
	stopHost(t, l, syscall.SIGTERM)
	checkNoRedirect(t, l)
}
