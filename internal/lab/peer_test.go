package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// setUpCache is where scripts/setup.sh has put kernel and nginx.
const setUpCache = "../../build/cache"

// peerLab is a lab with peers and one file, which it returns.
func peerLab(t *testing.T, kind Kind) (*Lab, []byte) {
	t.Helper()
	dir := t.TempDir()
	content := bytes.Repeat([]byte("spillway"), 100_000)
	if err := os.WriteFile(filepath.Join(dir, "a.m4s"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := Up(ctx, Options{Name: labName(), VM: kind, Binary: buildBinary(t), Files: dir, Cache: setUpCache, Peers: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return l, content
}

// checkPeers requests the file from each peer, and looks whether it was nginx that answered.
func checkPeers(t *testing.T, l *Lab, content []byte) {
	t.Helper()
	for _, arm := range Peers() {
		c := l.HTTPClient()
		resp, err := c.Get(l.URL(arm, "a.m4s"))
		if err != nil {
			t.Fatalf("%s: %v\n%s", arm, err, l.LogTails())
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		c.CloseIdleConnections()
		if err != nil || !bytes.Equal(body, content) || !strings.HasPrefix(resp.Header.Get("Server"), "nginx/") {
			t.Errorf("%s: %d bytes from %q, %v", arm, len(body), resp.Header.Get("Server"), err)
		}
		if _, err := l.ServerStats(t.Context(), arm); err != nil {
			t.Error(err)
		}
		if err := l.ResetServerStats(t.Context(), arm); err != nil {
			t.Error(err)
		}
	}
}

func TestPeers(t *testing.T) {
	l, content := peerLab(t, NetNS)
	checkPeers(t, l, content)
	if text, want := l.WhatToTry("a.m4s"), l.URL(NginxVM, "a.m4s"); !strings.Contains(text, want) {
		t.Errorf("what to try lacks %s:\n%s", want, text)
	}
	var pids []int
	for _, arm := range Peers() {
		pids = append(pids, l.daemons[string(arm)].pid)
	}
	if running := nginxOf(t, l.Dir); len(running) < 4 { // each a first process and a worker
		t.Errorf("only %q run", running)
	}
	// The way of `lab down`, which knows the pids from the lab's state only.
	if err := stopDaemons(state{Processes: map[string]int{string(NginxHost): pids[0], string(NginxVM): pids[1]}}, l.Dir, func(string) {}); err != nil {
		t.Error(err)
	}
	for i, arm := range Peers() {
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pids[i])); err == nil && link != "" {
			t.Errorf("%s still runs %s", arm, link)
		}
	}
	if left := nginxOf(t, l.Dir); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
}

// nginxOf lists the processes that work below dir: those of nginx, first ones and workers.
func nginxOf(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir) {
			found = append(found, link)
		}
	}
	return found
}

func TestPeersInVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM")
	}
	l, content := peerLab(t, QEMU)
	checkPeers(t, l, content)
}

// TestPeersMissing: a lab that was not set up says what to do, and leaves nothing.
func TestPeersMissing(t *testing.T) {
	opts := Options{Name: labName(), VM: NetNS, Binary: buildBinary(t), Files: t.TempDir(), Cache: t.TempDir(), Peers: true}
	l, err := Up(t.Context(), opts)
	if err == nil {
		_ = l.Down()
	}
	if err == nil || !strings.Contains(err.Error(), "scripts/setup.sh "+opts.Cache) {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(StateRoot, opts.Name)); err == nil {
		t.Error("the lab's directory is left")
	}
}
