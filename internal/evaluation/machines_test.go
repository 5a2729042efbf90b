package evaluation

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/bench"
)

func TestParseServer(t *testing.T) {
	for s, want := range map[string]Server{
		"http://10.0.0.1:8080/media/":                            {Arm: "target", Addr: "10.0.0.1:8080", Path: "/media/"},
		"kvm=http://server/media":                                {Arm: "kvm", Addr: "server:80", Path: "/media/"},
		"http://[fd00::1]/":                                      {Arm: "target", Addr: "[fd00::1]:80", Path: "/"},
		"host=http://127.0.0.1:1/a%20b/c/d":                      {Arm: "host", Addr: "127.0.0.1:1", Path: "/a%20b/c/d/"},
		"lease=http://10.0.0.2:82/m/,admin=http://10.0.0.2:9082": {Arm: "lease", Addr: "10.0.0.2:82", Path: "/m/", Admin: "http://10.0.0.2:9082"},
		"vm=http://10.0.0.2:82/m/,admin=http://10.0.0.2:9082/":   {Arm: "vm", Addr: "10.0.0.2:82", Path: "/m/", Admin: "http://10.0.0.2:9082"},
		"lease=http://10.0.0.2:82/m/":                            {}, // nobody knows whether it offloads
		"offload=http://10.0.0.2:82/m/":                          {},
		"lease=http://10.0.0.2:82/m/,http://10.0.0.2:9082":       {},
		"lease=http://10.0.0.2:82/m/,admin=10.0.0.2:9082":        {},
		"https://server/":                                        {},
		"server:8080":                                            {},
		"=http://server/":                                        {},
		"http:///media/":                                         {},
		"a=b":                                                    {},
		"http://server/media/?x=1":                               {},
	} {
		got, err := ParseServer(s, "target")
		if got != want || (err != nil) != (want == Server{}) {
			t.Errorf("ParseServer(%q) = %+v, %v", s, got, err)
		}
	}
}

// TestMachines measures two servers that are there; one of them sends something else.
func TestMachines(t *testing.T) {
	dir := t.TempDir()
	cases, err := MicroCases(dir, []int64{4096, 65536}, 0.02)
	if err != nil {
		t.Fatal(err)
	}
	good := httptest.NewServer(http.StripPrefix("/x/", http.FileServer(http.Dir(dir))))
	defer good.Close()
	other := t.TempDir()
	for _, name := range []string{"4096.bin", "65536.bin"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		content[100] ^= 1
		if err := os.WriteFile(filepath.Join(other, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bad := httptest.NewServer(http.FileServer(http.Dir(other)))
	defer bad.Close()
	m := &Machines{Servers: []Server{server(t, "good="+good.URL+"/x"), server(t, "bad="+bad.URL)}}
	m.Env = bench.Env{Accelerator: "kvm", QEMU: "9.2", Link: "10gbit"}
	report, err := m.Run(t.Context(), "micro", Plan{Cases: cases, Rounds: 3, Connections: 2}, bench.NewProgress(nil))
	if err == nil || !strings.Contains(err.Error(), "arm bad: 2 wrong bodies") || strings.Contains(err.Error(), "arm good") {
		t.Errorf("the error is %v", err)
	}
	if len(report.Rows) != 4 {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		if row.N != len(cases[i/2].Targets)*3*2 || row.Spread.Rounds != 3 || row.CaseBytes != cases[i/2].Targets[0].Bytes {
			t.Errorf("row %d is %+v", i, row)
		}
	}
	if d := cmp.Diff(m.Env, report.Env); d != "" {
		t.Errorf("of machines elsewhere nothing is known but what the user says: %s", d)
	}
	plan := Plan{Cases: cases[:1], Rounds: 1, Connections: 1}
	// This process stands for a host's: its kernel and CPUs are the host's, and it is no QEMU with a VM of KVM's.
	m.Servers, m.Running, m.Env = m.Servers[:1], map[string]int{"qemu": os.Getpid(), "good": os.Getpid()}, bench.Env{}
	report, err = m.Run(t.Context(), "micro", plan, bench.NewProgress(nil))
	if err != nil || report.Env.Accelerator != "tcg" || report.Env.Kernel == "" || report.Env.CPUs == 0 || report.Env.Link != "unknown" ||
		report.Rows[0].Processes[serverName].CPUSecondsPerGB <= 0 {
		t.Errorf("with processes on this machine: %+v, %v", report, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for name, servers := range map[string][]Server{
		"twice":              {m.Servers[0], m.Servers[0]},
		"vm-cold":            {server(t, "vm-cold="+good.URL)},
		"connection refused": {{Arm: "gone", Addr: l.Addr().String(), Path: "/"}},
	} {
		if _, err := (&Machines{Servers: servers}).Run(t.Context(), "micro", plan, bench.NewProgress(nil)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func server(t *testing.T, s string) Server {
	t.Helper()
	parsed, err := ParseServer(s, "target")
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// TestMachinesCounters: an arm that offloads is believed only when its server says so, and its counters begin where the passes begin.
func TestMachinesCounters(t *testing.T) {
	dir := t.TempDir()
	cases, err := SizeCases(dir, []int64{4096}, 5)
	if err != nil {
		t.Fatal(err)
	}
	mode, host := "lease", "up"
	var requests atomic.Int64
	sends := int64(1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		n := requests.Load()
		fmt.Fprintf(w, `{"mode": %q, "host": %q, "counts": {"sends": %d, "handovers": %d}, "fallbacks": {"small": 7, "path": %d}}`, mode, host, 1000+sends*n, 500+n, n)
	})
	files := http.FileServer(http.Dir(dir))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { requests.Add(1); files.ServeHTTP(w, r) })
	s := httptest.NewServer(mux)
	defer s.Close()
	run := func() (*bench.Report, error) {
		m := &Machines{Servers: []Server{server(t, "lease="+s.URL+"/,admin="+s.URL)}}
		return m.Run(t.Context(), "micro", Plan{Cases: cases, Rounds: 2, Connections: 1}, bench.NewProgress(nil))
	}
	report, err := run()
	if err != nil {
		t.Fatal(err)
	}
	if row := report.Rows[0]; row.Handovers != 10 || row.Fallbacks["path"] != 10 || len(row.Fallbacks) != 1 {
		t.Errorf("the timed passes have 10 requests, and the row %+v", row)
	}
	sends = 0 // it serves by itself
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "only 0 of 10 responses") {
		t.Errorf("an arm that does not offload: %v", err)
	}
	host = "away"
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "no session with the host daemon") {
		t.Errorf("a server without a host: %v", err)
	}
	mode = "off"
	if _, err := run(); err == nil || !strings.Contains(err.Error(), `mode "off"`) {
		t.Errorf("a server of another mode: %v", err)
	}
}
