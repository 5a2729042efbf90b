package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"spillway/internal/lab"
	"spillway/internal/redirect"
)

// readSome is how far a client reads before something happens to its response: enough to be in the middle, much less than what is left.
const readSome = 1 << 20

// TestDaemonAbsentThenLate: without a daemon the guest serves by itself; when the daemon comes, leases begin.
func TestDaemonAbsentThenLate(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	stopHost(t, l, syscall.SIGTERM)
	for _, arm := range offloading { // servers that have never seen a daemon
		killServer(t, l, arm)
		if err := l.StartServer(arm); err != nil {
			t.Fatal(err)
		}
	}
	const name = "10m.mp4"
	for _, arm := range offloading {
		serverStats(t, l, arm) // it serves
		fetch(t, l, arm, name, files.files[name])
		s := serverStats(t, l, arm)
		if s.Host != "away" || s.Counts.Handovers != 0 || s.Fallbacks["host-away"] != 1 || s.Counts.LocalBytes < uint64(len(files.files[name])) {
			t.Errorf("%s without a daemon: %+v; want one response served locally for host-away", arm, s)
		}
	}
	startHost(t, l)
	for _, arm := range offloading {
		fetch(t, l, arm, name, files.files[name])
		expectSends(t, l, arm, 1)
	}
}

// TestDaemonKilledInTransfer: the client of a daemon that was killed sees its connection closed and no wrong byte, the next one is served, and
// a new daemon takes over what the old one left.
func TestDaemonKilledInTransfer(t *testing.T) {
	files := newBigMedia(t)
	want := files.files[bigFile]
	l := newLab(t, files)
	for round := range 2 {
		var cut []*client
		for _, arm := range offloading {
			streaming := dial(t, l, arm, receiveBuffer(smallBuffer))
			streaming.begin(bigFile, want, readSome)
			idle := dial(t, l, arm)
			idle.get("64k.m4s", files.files["64k.m4s"])
			cut = append(cut, streaming, idle)
		}
		eventually(t, "the idle connection of mode offload is back", func() bool { return serverStats(t, l, lab.Offload).Counts.Handbacks == uint64(round+1) })
		stopHost(t, l, syscall.SIGKILL)
		for i, arm := range offloading {
			cut[2*i].takeCut(want[readSome:])
			if arm == lab.Lease {
				cut[2*i+1].expectClosed()
			} else { // its connection was with the guest
				cut[2*i+1].get("4k.m4s", files.files["4k.m4s"])
			}
			// Until the server has noticed, a handover may still be sent into the void, and its connection is reset.
			within(t, hangLimit, "the server knows that the daemon is away", func() bool { return serverStats(t, l, arm).Host == "away" })
			fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
			if s := serverStats(t, l, arm); s.Counts.LocalBytes < uint64(len(files.files["10m.mp4"])) || s.Counts.Lost == 0 {
				t.Errorf("round %d, %s after the kill: %+v; want the next response to be served locally", round, arm, s)
			}
		}
		startHost(t, l)
		checkRedirect(t, l)
		for _, arm := range offloading {
			before := serverStats(t, l, arm).Counts.Sends
			fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
			expectSends(t, l, arm, before+1)
		}
	}
	noLeases(t, l)
}

// TestDaemonTerminatedInTransfer: a daemon that is told to stop gives its connections back; their clients notice nothing.
func TestDaemonTerminatedInTransfer(t *testing.T) {
	files := newBigMedia(t)
	want := files.files[bigFile]
	l := newLab(t, files)
	check := watchResets(t, l)
	var streaming, idle []*client
	for _, arm := range offloading {
		s := dial(t, l, arm, receiveBuffer(smallBuffer))
		s.begin(bigFile, want, readSome)
		streaming = append(streaming, s)
		i := dial(t, l, arm)
		i.get("64k.m4s", files.files["64k.m4s"])
		idle = append(idle, i)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- l.StopHost(syscall.SIGTERM) }()
	eventually(t, "the guests know of the drain", func() bool { return serverStats(t, l, lab.Lease).Host != "up" })
	for _, i := range idle {
		i.get("10m.mp4", files.files["10m.mp4"])
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Fatalf("stop: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the daemon does not stop: it waits for clients in the middle of a response")
	}
	checkNoRedirect(t, l)
	for _, s := range streaming { // the guests have gone on where the host stopped
		s.take(want[readSome:])
	}
	for _, c := range slices.Concat(idle, streaming) { // the same connections, now without a daemon
		c.get("10m.mp4", files.files["10m.mp4"])
		must(t, c.Close())
	}
	for _, arm := range offloading {
		if s := serverStats(t, l, arm); s.Counts.Lost != 0 || s.Leases != 0 {
			t.Errorf("%s: %+v; want no lost lease", arm, s)
		}
	}
	check()
}

// checkRedirect looks at the redirect of a running daemon: complete, held, and there once.
func checkRedirect(t *testing.T, l *lab.Lab) {
	t.Helper()
	found := inspectHost(t, l)
	if !found.status.Held || !found.status.Complete() {
		t.Errorf("redirect: %+v; want it complete and held", found.status)
	}
	if len(found.tables) != 1 || len(found.rules) != 2 || len(found.routes) != 2 {
		t.Errorf("tables %v, rules %v, routes %v; want one table, and a rule and a route of each family", found.tables, found.rules, found.routes)
	}
	checkSocketFiles(t, l, "admin.sock", "lease-0.sock", "offload-0.sock")
}

// checkNoRedirect looks for anything that a daemon, which has stopped, has left.
func checkNoRedirect(t *testing.T, l *lab.Lab) {
	t.Helper()
	found := inspectHost(t, l)
	if found.status.Held || !found.status.Empty() || len(found.tables)+len(found.rules)+len(found.routes) > 0 {
		t.Errorf("left: status %+v, tables %v, rules %v, routes %v", found.status, found.tables, found.rules, found.routes)
	}
	checkSocketFiles(t, l)
	if left := hostConnections(t, l); len(left) > 0 {
		t.Errorf("connections of the VM are left on the host: %v", left)
	}
}

// hostObjects is what a daemon makes in its namespace.
type hostObjects struct {
	status redirect.Status
	tables []string
	rules  []string
	routes []string
}

func inspectHost(t *testing.T, l *lab.Lab) (found hostObjects) {
	t.Helper()
	err := l.Host.Do(func() (err error) {
		if found.status, err = redirect.Check(redirect.Config{}); err != nil {
			return err
		}
		cfg := found.status.Config
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := nft.ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			found.tables = append(found.tables, table.Name)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleListFiltered(family, &netlink.Rule{Table: cfg.RouteTable}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range rules {
				found.rules = append(found.rules, r.String())
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: cfg.RouteTable}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				found.routes = append(found.routes, r.String())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// checkSocketFiles compares the daemon's socket files with want; VM sockets of QEMU are not the daemon's.
func checkSocketFiles(t *testing.T, l *lab.Lab, want ...string) {
	t.Helper()
	var got []string
	for _, pattern := range []string{"*.sock*", ".*sock*"} {
		files, err := filepath.Glob(filepath.Join(l.Dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if base := filepath.Base(f); base != "control.sock" {
				got = append(got, base)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("socket files %v, want %v", got, want)
	}
}

// tcpTimeWait is TCP_TIME_WAIT of include/net/tcp_states.h, as /proc/net/tcp writes it.
const tcpTimeWait = "06"

// hostConnections lists the sockets of the host's namespace on the offloading servers' ports, which are the VM's: none is the host's own.
// TIME_WAIT is no socket any more.
func hostConnections(t *testing.T, l *lab.Lab) (found []string) {
	t.Helper()
	var ports []string
	for _, arm := range offloading {
		var port int
		if _, err := fmt.Sscanf(l.Addr(arm)[strings.LastIndexByte(l.Addr(arm), ':'):], ":%d", &port); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, fmt.Sprintf(":%04X", port))
	}
	err := l.Host.Do(func() error {
		for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line) // sl local_address rem_address st …
				if len(f) > 3 && f[3] != tcpTimeWait && slices.ContainsFunc(ports, func(p string) bool { return strings.HasSuffix(f[1], p) }) {
					found = append(found, strings.TrimSpace(line))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
