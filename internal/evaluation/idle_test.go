package evaluation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

func TestIdleValidate(t *testing.T) {
	good := IdlePlan{Connections: 1, Window: 1, Size: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*IdlePlan){
		"connections: 0":     func(p *IdlePlan) { p.Connections = 0 },
		"connections: 60001": func(p *IdlePlan) { p.Connections = 60_001 },
		"window: 0":          func(p *IdlePlan) { p.Window = 0 },
		"size: 0":            func(p *IdlePlan) { p.Size = 0 },
	} {
		p := good
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestOverBar: what a lease may cost is held where there are enough of them.
func TestOverBar(t *testing.T) {
	for _, c := range []struct {
		connections int
		process     bench.Process
		want        string // in the error
	}{
		{barConnections, bench.Process{RSSBytesPerLease: maxBytesPerLease, Threads: maxThreads, MediaFiles: maxMediaFiles}, ""},
		{barConnections, bench.Process{RSSBytesPerLease: maxBytesPerLease + 1}, "24001 bytes"},
		{barConnections, bench.Process{Threads: maxThreads + 1}, "201 threads"},
		{barConnections - 1, bench.Process{RSSBytesPerLease: maxBytesPerLease + 1, Threads: maxThreads + 1}, ""},
		{1, bench.Process{MediaFiles: maxMediaFiles + 1}, "101 media files"},
	} {
		m := idleMeasurement{plan: IdlePlan{Connections: c.connections}, report: &bench.Report{Rows: []bench.Row{
			{Case: "idle", Processes: map[string]bench.Process{serverName: c.process}},
		}}}
		over := m.overBar()
		if (len(over) == 0) != (c.want == "") || len(over) > 0 && !strings.Contains(over[0].Error(), c.want) {
			t.Errorf("%+v: %v", c, over)
		}
	}
}

// TestRunIdle keeps some connections in a lab of namespaces.
func TestRunIdle(t *testing.T) {
	binary, name := buildBinary(t), labName()
	const connections, size = 40, 20_000
	plan := IdlePlan{Connections: connections, Window: 16, Size: size}
	opts := lab.Options{Name: name, VM: lab.NetNS, Binary: binary, Files: filepath.Join(t.TempDir(), "sizes")}
	report, err := RunIdle(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		phase     string
		responses int
		leases    int
	}{{"base", 0, 0}, {"slow", connections, connections}, {"idle", 0, connections}, {"at once", connections, connections},
		{"idle again", 0, connections}, {"closed", 0, 0}}
	if len(report.Rows) != len(want) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		w := want[i]
		if row.Case != w.phase || row.N != w.responses || row.Bytes != int64(w.responses)*size || row.Leases != w.leases && w.responses == 0 {
			t.Errorf("row %d is %+v, want %+v", i, row, w)
		}
		for _, process := range []string{hostName, serverName} {
			p := row.Processes[process]
			if p.RSSBytes < 1<<20 || p.PSSBytes < 1<<20 || p.HeapBytes == 0 || p.StackBytes == 0 || p.Threads == 0 || p.Goroutines == 0 {
				t.Errorf("%s, %s: %+v", row.Case, process, p)
			}
			base := report.Rows[0].Processes[process]
			if more := p.OpenFiles - base.OpenFiles; w.leases > 0 && more < connections-5 || w.phase == "closed" && more > connections/2 {
				t.Errorf("%s, %s: %d files more than at first", row.Case, process, more)
			}
		}
	}
	// Each client read slowly: its response takes as many reads as there are pieces.
	if slow := report.Rows[1]; slow.MedianUs < float64((size / (4 << 10) * 10 * time.Millisecond).Microseconds()) {
		t.Errorf("a slow response took %v us", slow.MedianUs)
	}
	if over := report.Rows[2].Handovers; over != connections {
		t.Errorf("%d handovers, want %d", over, connections)
	}
	if _, err := os.Lstat(filepath.Join(lab.StateRoot, name)); err == nil {
		t.Error("the lab is still there")
	}
	opts.VM = lab.QEMU
	if _, err := RunIdle(t.Context(), opts, plan, bench.NewProgress(nil)); err == nil || !strings.Contains(err.Error(), "netns") {
		t.Errorf("in a VM: %v", err)
	}
}
