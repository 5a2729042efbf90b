package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestProcesses: the processes are known and tell of themselves, and a channel that is cut comes back.
func TestProcesses(t *testing.T) {
	l, err := Up(t.Context(), Options{Name: labName(), VM: NetNS, Binary: buildBinary(t), Files: t.TempDir(), CPUs: 2, MaxLeases: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	pids := l.PIDs()
	for _, name := range []string{"host", "baremetal", "vm", "offload", "lease"} {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[name])); err != nil || !strings.HasPrefix(string(text), l.Binary) {
			t.Errorf("%s is %d: %q, %v", name, pids[name], text, err)
		}
	}
	host, err := l.HostMetrics(t.Context())
	if err != nil || host["go_goroutines"] < 2 {
		t.Errorf("the host's metrics: %v, %v", host, err)
	}
	server, err := l.ServerMetrics(t.Context(), Lease)
	if err != nil || server["go_memstats_heap_inuse_bytes"] < 1000 {
		t.Errorf("the server's metrics: %v, %v", server, err)
	}
	var status struct {
		VMs []struct {
			MaxLeases     int    `json:"max_leases"`
			SessionsTotal uint64 `json:"sessions_total"`
		}
	}
	sessions := func() uint64 {
		if err := l.HostAdmin(t.Context(), "GET", "/status", &status); err != nil {
			t.Fatal(err)
		}
		return status.VMs[0].SessionsTotal
	}
	before := sessions()
	if status.VMs[0].MaxLeases != 7 {
		t.Errorf("the VM may have %d leases, want 7", status.VMs[0].MaxLeases)
	}
	if cut, err := l.CutChannel(Lease); err != nil || cut != l.CPUs {
		t.Errorf("%d connections of the channel cut, want %d: %v", cut, l.CPUs, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	for sessions() < before+uint64(l.CPUs) {
		if ctx.Err() != nil {
			t.Fatalf("%d sessions, as before the cut", before)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := l.WaitArm(ctx, Lease); err != nil {
		t.Error(err)
	}
	counts, err := l.TCPTimeouts(t.Context())
	if err != nil || len(counts) != 3 {
		t.Errorf("TCP timeouts: %v, %v", counts, err)
	}
}

func TestPlainMetrics(t *testing.T) {
	got := plainMetrics("# HELP a b\n# TYPE a gauge\na 1.5e+06\nb{x=\"y\"} 2\nc nothing\nd\n")
	if len(got) != 1 || got["a"] != 1.5e6 {
		t.Errorf("%v", got)
	}
}

func TestTCPExtension(t *testing.T) {
	const text = "TcpExt: SyncookiesSent TCPTimeouts Other\nTcpExt: 1 23 4\nIpExt: InNoRoutes TCPTimeouts\nIpExt: 5 6\n"
	if n, err := tcpExtension(text, "TCPTimeouts"); n != 23 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := tcpExtension(text, "Nothing"); err == nil {
		t.Error("a counter that there is not")
	}
}
