package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/figures"
	"spillway/internal/lab"
	"spillway/internal/testkit"
)

// TestVMEvaluation plays a tenth of the paper's Table I, all three data sets, through a real VM, as fast as it goes and over 1 Gbit/s, and makes the report. What
// depends on the machine's speed is not asked for: how long it takes, stalls, and whether the load generator is a bottleneck.
func TestVMEvaluation(t *testing.T) {
	testkit.CheckFDs(t)
	scale := 0.1
	if raceEnabled { // whose client is several times as slow
		scale = 0.01
	}
	files, err := evaluation.TableFiles(t.Context(), filepath.Join(t.TempDir(), "table1"), scale, bench.NewProgress(nil))
	must(t, err)
	var reports []figures.File
	for _, link := range []lab.Link{{}, {BitsPerSecond: 1e9}} {
		opts := lab.Options{Name: labName(), VM: lab.QEMU, Binary: vmProgram, Files: files.Dir, Cache: cache, Link: link}
		plan := evaluation.Plan{Cases: evaluation.SetCases(files), Arms: lab.Arms(), Rounds: 1, Connections: 1}
		report, err := evaluation.RunDash(t.Context(), opts, plan, evaluation.PlayersPlan{}, bench.NewProgress(nil))
		if err != nil {
			t.Fatalf("%v\nWhat the VM needs is installed by: scripts/setup.sh build/cache", err)
		}
		checkGone(t, opts.Name, files.Dir)
		checkRows(t, report, files)
		reports = append(reports, figures.File{Name: opts.Name + ".json", Report: report})
	}
	dir := t.TempDir()
	names, err := figures.Write(dir, reports)
	must(t, err)
	text, err := os.ReadFile(filepath.Join(dir, figures.MarkdownName))
	must(t, err)
	for _, want := range []string{"link unshaped", "link 1gbit", "smarttv", "tablet", "mobile"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the report has nothing of %q", want)
		}
	}
	const plots = 2 * 2 * 2 // elapsed and over time, SVG and PNG, of each link
	if len(names) != plots+2 {
		t.Errorf("files of the report are %v", names)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			t.Errorf("%s is empty (%v)", name, err)
		}
	}
}

// checkRows: each arm has played each set, every body of it right, and by the way that it is about.
func checkRows(t *testing.T, report *bench.Report, files *lab.Files) {
	t.Helper()
	if len(report.Rows) != len(files.Sets)*len(lab.Arms()) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		set, arm := files.Sets[i/len(lab.Arms())], lab.Arms()[i%len(lab.Arms())]
		var bytes int64
		for _, s := range set.Manifest.Segments {
			bytes += s.Size
		}
		if row.Case != set.Name || row.Arm != string(arm) || row.N != len(set.Manifest.Segments) || row.Bytes != bytes || row.Wrong != 0 || row.Timeline == nil {
			t.Errorf("row %d is %+v, want %d segments of %s by %s with %d bytes", i, row, len(set.Manifest.Segments), set.Name, arm, bytes)
		}
		// A response that the guest sends by itself, as its host is slow to answer, is one that needs no handover; a tenth of them would be no arm of its own.
		large := int64(float64(row.N) * 0.9)
		if want := map[lab.Arm]int64{lab.Lease: 1, lab.Offload: large}[arm]; row.Handovers < want {
			t.Errorf("%s, %s: %d handovers, want %d; fallbacks %v", arm, set.Name, row.Handovers, want, row.Fallbacks)
		}
		if row.Stalls > 0 {
			t.Logf("%s, %s, link %s: %d stalls; TCP's timeouts: %v", arm, set.Name, report.Env.Link, row.Stalls, row.TCPTimeouts)
		}
	}
}
