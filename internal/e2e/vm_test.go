package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spillway/internal/lab"
	"spillway/internal/testkit"
)

// cache is where scripts/setup.sh puts the guest kernel.
const cache = "../../build/cache"

// TestVM boots one real VM and runs all that needs one in it: the steps share it and come one after the other.
func TestVM(t *testing.T) {
	testkit.CheckFDs(t)
	files := newBigMedia(t)
	opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: vmProgram, Files: files.dir, Cache: cache, Virtiofs: true}
	ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
	defer cancel()
	l, err := lab.Up(ctx, opts)
	if err != nil {
		t.Fatalf("%v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", err)
	}
	t.Logf("accelerator %s, QEMU %s", l.Accelerator(), l.QEMUVersion())
	t.Cleanup(func() {
		if t.Failed() {
			logLab(t, l)
		}
		if err := l.Down(); err != nil {
			t.Errorf("lab down: %v", err)
		}
		checkGone(t, opts.Name, files.dir)
	})
	for _, step := range []struct {
		name string
		run  func(t *testing.T, l *lab.Lab, files *media)
	}{
		{"programs", vmPrograms},
		{"conformance", vmConformance},
		{"mixed sizes", vmMixedSizes},
		{"bypass", vmBypass},
		{"no resets", vmNoResets},
		{"recall", vmRecall},
		{"file replaced", vmReplaced},
		{"server killed in transfer", vmServerKilled},
		{"daemon killed in transfer", vmDaemonKilled},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, l, files) })
	}
}

// vmReplaced: the VM's mount goes on to show a file that was replaced or removed (cache=loose), and the servers do not.
func vmReplaced(t *testing.T, l *lab.Lab, files *media) {
	for _, arm := range offloading {
		const name = "live.mpd"
		path := filepath.Join(files.dir, name)
		put := func(content string) {
			must(t, os.WriteFile(path+".new", []byte(content), 0o644))
			must(t, os.Rename(path+".new", path))
		}
		get := func() string {
			resp, got, err := dial(t, l, arm).fetchAny(name)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%d %s", resp.StatusCode, got)
		}
		put("first")
		if got := get(); got != "200 first" {
			t.Errorf("%s: %s", arm, got)
		}
		put("the second, longer one")
		eventually(t, fmt.Sprintf("%s serves what has come in its place", arm), func() bool { return get() == "200 the second, longer one" })
		must(t, os.Remove(path))
		eventually(t, fmt.Sprintf("%s does not serve what is gone", arm), func() bool { return strings.HasPrefix(get(), "404 ") })
	}
}

// vmPrograms: the VM's own kernel takes the eBPF programs, and the servers say nothing of doing without.
func vmPrograms(t *testing.T, l *lab.Lab, _ *media) {
	console, err := os.ReadFile(filepath.Join(l.Dir, "vm0", "console.log"))
	must(t, err)
	if !strings.Contains(string(console), "session with the host") {
		t.Error("the VM's console does not have the servers' logs")
	}
	for line := range strings.Lines(string(console)) {
		if strings.Contains(line, "begin slowly") {
			t.Errorf("the VM's console: %s", line)
		}
	}
}

func vmConformance(t *testing.T, l *lab.Lab, files *media) {
	for _, arm := range []lab.Arm{lab.VM, lab.VMVirtiofs, lab.Offload, lab.Lease} {
		t.Run(string(arm), func(t *testing.T) { conformance(t, l, files, arm) })
	}
}

func vmMixedSizes(t *testing.T, l *lab.Lab, files *media) {
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			load(t, l, files, arm, 1, 3)
			load(t, l, files, arm, 8, 1)
		})
	}
}

// guestFile reads a file of the VM.
func guestFile(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, err := l.Control().Cat(ctx, name)
	must(t, err)
	return string(text)
}

// vmBypass looks at the tap, and at what the guest's own kernel has counted.
func vmBypass(t *testing.T, l *lab.Lab, files *media) {
	want := files.files[bigFile]
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			before := interfaceBytes(t, guestFile(t, l, "/proc/net/dev"))
			bypass(t, l, arm, want)
			if grown := interfaceBytes(t, guestFile(t, l, "/proc/net/dev")) - before; grown > int64(len(want))*bypassPercent/100 {
				t.Errorf("the guest counts %d bytes on its network card for %d bytes sent by the host", grown, len(want))
			}
		})
	}
}

// interfaceBytes adds up what all interfaces but the loopback have received and sent, from the text of /proc/net/dev.
func interfaceBytes(t *testing.T, text string) (total int64) {
	t.Helper()
	cards := 0
	for line := range strings.Lines(text) {
		name, counters, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || name == "lo" {
			continue
		}
		var received, sent, skip int64
		// Eight columns of what was received, then those of what was sent; the first of each is bytes.
		if _, err := fmt.Sscan(counters, &received, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &sent); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		total += received + sent
		cards++
	}
	if cards == 0 {
		t.Fatalf("no network card in %q", text)
	}
	return total
}

func vmNoResets(t *testing.T, l *lab.Lab, files *media) {
	check := watchResets(t, l)
	for _, arm := range offloading {
		for i := range 20 {
			name := files.names()[i%len(files.names())]
			fetch(t, l, arm, name, files.files[name])
		}
		load(t, l, files, arm, 1, 2)
	}
	noLeases(t, l)
	check()
}

func vmRecall(t *testing.T, l *lab.Lab, files *media) {
	before := hostStatus(t, l).Handbacks
	streaming, rest := begun(t, l, files, lab.Lease)
	idle := dial(t, l, lab.Lease)
	idle.get("10m.mp4", files.files["10m.mp4"])
	recall(t, l)
	streaming.take(rest)
	eventually(t, "both connections are back", func() bool { return hostStatus(t, l).Handbacks == before+2 })
	for _, c := range []*client{streaming, idle} {
		c.get("10m.mp4", files.files["10m.mp4"])
		must(t, c.Close())
	}
	noLeases(t, l)
}

func vmServerKilled(t *testing.T, l *lab.Lab, files *media) {
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) { serverKilled(t, l, files, arm) })
	}
}

func vmDaemonKilled(t *testing.T, l *lab.Lab, files *media) {
	streaming, rest := begun(t, l, files, lab.Lease)
	stopHost(t, l, syscall.SIGKILL)
	streaming.takeCut(rest)
	must(t, streaming.Close())
	// Until QEMU and the guest have noticed, a handover may still be sent into the void, and its connection is reset.
	within(t, hangLimit, "the guest knows that the daemon is away", func() bool { return serverStats(t, l, lab.Lease).Host == "away" })
	fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"]) // by the guest
	startHost(t, l)
	checkRedirect(t, l)
	before := serverStats(t, l, lab.Lease).Counts.Sends
	fetch(t, l, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	expectSends(t, l, lab.Lease, before+1)
}
