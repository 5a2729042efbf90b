package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample is a report with every field and every width that a real one has.
func sample() *Report {
	r := NewReport("demo", Env{Accelerator: "tcg", Kernel: "6.18.5", QEMU: "7.2.22", CPUs: 2, Link: "unshaped"})
	add := func(arm, dataCase string, n int, bytes int64, seconds float64, median float64) *Row {
		r.Rows = append(r.Rows, Row{
			Arm: arm, Case: dataCase, N: n, Bytes: bytes, ElapsedS: seconds, MBPerS: rounded(float64(bytes) / 1e6 / seconds),
			MedianUs: median, P99Us: 3 * median,
		})
		return &r.Rows[len(r.Rows)-1]
	}
	add("baremetal", "smarttv", 351, 3_685_500_000, 2.811, 7890)
	add("vm", "smarttv", 351, 3_685_500_000, 74.412, 21_200).Stalls = 3
	offload := add("offload", "smarttv", 351, 3_685_500_000, 4.395, 12_500)
	offload.Handovers, offload.Handbacks = 351, 350
	offload.Steps = map[string]Step{"handover": {MedianUs: 38.25, P99Us: 120}, "handback": {MedianUs: 77, P99Us: 288.125}}
	lease := add("lease", "smarttv", 351, 3_685_500_000, 3.422, 9750)
	lease.Handovers = 1
	lease.Drops = Counts{"queue_full": 7, "lost": 0}
	lease.IQRUs, lease.FirstByteUs, lease.FirstByteP99Us, lease.FirstByteIQRUs = 812.5, 40_812.5, 45_000, 250
	lease.Fallbacks = Counts{"small": 12, "mptcp": 1, "share-unknown": 1234, "host-away": 3, "unread-input": 2, "never": 0}
	lease.TCPTimeouts, lease.Machine = Counts{"client": 3}, map[string]float64{"user": 0.25, "softirq": 0.125}
	lease.Processes = map[string]Process{"host": {CPUSecondsPerGB: 0.375, RSSBytes: 123_456_000}, "server": {OpenFiles: 10_012, Threads: 9}}
	lease.Leases = 10_000
	add("lease", "alone", 0, 0, 1, 0).Wrong = 100_000
	return r
}

// golden compares with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestReportJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "demo.json")
	r := sample()
	for range 2 { // the second time over a file that is there
		if err := r.WriteFile(path); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b)
	back, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Rows {
		if r.Rows[i].Fallbacks == nil { // written as {}
			r.Rows[i].Fallbacks = Counts{}
		}
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("temporary files are left: %v, %v", entries, err)
	}
}

// TestSchema holds the names and kinds of the fields by themselves, apart from Go's types and from the golden file.
// TestReportIntoPipe asks for the report where nothing can be renamed to, as --json /dev/stdout does.
func TestReportIntoPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(path)
		got <- b
	}()
	if err := sample().WriteFile(path); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", <-got)
	if info, err := os.Stat(path); err != nil || info.Mode().IsRegular() {
		t.Errorf("the pipe was replaced: %v, %v", info.Mode(), err)
	}
}

// TestReportThroughLink keeps a symbolic link and replaces what it names.
func TestReportThroughLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target.json"), filepath.Join(dir, "link.json")
	if err := os.WriteFile(target, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := sample().WriteFile(link); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v", err)
	}
	if b, err := os.ReadFile(target); err != nil || string(b) == "old" {
		t.Errorf("the link's target was not written: %v", err)
	}
}

func TestSchema(t *testing.T) {
	b, err := json.Marshal(&Report{Schema: Schema, Rows: []Row{{}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"schema":1,"bench":"","env":{"accelerator":"","kernel":"","qemu":"","cpus":0,"link":""},` +
		`"rows":[{"arm":"","case":"","n":0,"bytes":0,"elapsed_s":0,"mb_per_s":0,"median_us":0,"p99_us":0,` +
		`"wrong":0,"stalls":0,"handovers":0,"handbacks":0,"fallbacks":{}}]}`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if b, err := json.Marshal(NewReport("x", Env{})); err != nil || !strings.HasSuffix(string(b), `"rows":[]}`) {
		t.Errorf("a report without rows: %s, %v", b, err)
	}
}

func TestReportErrors(t *testing.T) {
	dir := t.TempDir()
	occupied := filepath.Join(dir, "occupied")
	if err := os.MkdirAll(filepath.Join(occupied, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := sample().WriteFile(occupied); err == nil {
		t.Error("a report was written over a directory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("temporary files are left: %v, %v", entries, err)
	}
	other := filepath.Join(dir, "other.json")
	if err := os.WriteFile(other, []byte(`{"schema":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(other); err == nil || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("another schema: %v", err)
	}
}

// TestCongestion: it is in the JSON and in the table's head, where it was set.
func TestCongestion(t *testing.T) {
	r := NewReport("path", Env{Link: "40ms", Congestion: "cubic"})
	var table bytes.Buffer
	b, err := json.Marshal(r)
	if err := errors.Join(err, r.WriteTable(&table)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"link":"40ms","congestion":"cubic"}`) {
		t.Errorf("the JSON is %s", b)
	}
	if head, _, _ := strings.Cut(table.String(), "\n"); !strings.HasSuffix(head, "link 40ms, cubic") {
		t.Errorf("the table begins with %q", head)
	}
}

// TestRounding: never in our favour, and only where there is something to round.
func TestRounding(t *testing.T) {
	ours, theirs := Row{Arm: "lease"}, Row{Arm: ArmVM}
	for _, c := range []struct {
		got, want string
	}{
		{ours.speed(2.999, 2), "2.99"}, {ours.speed(0.3, 1), "0.3"}, {ours.speed(2.3, 2), "2.30"}, {ours.speed(0, 1), "0.0"},
		{theirs.speed(2.991, 2), "3.00"}, {theirs.speed(0.7, 1), "0.7"}, {theirs.speed(0, 1), "0.0"},
		{ours.cost(1.201, 2), "1.21"}, {ours.cost(1.1, 1), "1.1"}, {theirs.cost(1.209, 2), "1.20"}, {theirs.cost(0.29, 2), "0.29"},
		{Cost(112.901), "113.0"}, {Cost(113), "113.0"}, {Cost(0), "0.0"},
	} {
		if c.got != c.want {
			t.Errorf("%s, want %s", c.got, c.want)
		}
	}
}

// TestLegend: only where a reader would ask.
func TestLegend(t *testing.T) {
	for handbacks, want := range map[int64]bool{7: false, 6: true} {
		r := &Report{Rows: []Row{{Arm: "lease"}, {Arm: "offload", Handovers: 7, Handbacks: handbacks}}}
		if got := r.legend() != ""; got != want {
			t.Errorf("7 handovers and %d handbacks: a legend: %v", handbacks, got)
		}
	}
}

func TestTimes(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteTimes(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "times.txt", b.Bytes())
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.Bytes())
	for line := range strings.Lines(b.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > tableWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}
