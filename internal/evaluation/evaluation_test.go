package evaluation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"spillway/internal/bench"
	"spillway/internal/dataset"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSizeName(t *testing.T) {
	for size, want := range map[int64]string{
		4096: "4 KB", 65536: "64 KB", 288_600: "288.6 KB", 1_400_000: "1.4 MB", 10_500_000: "10.5 MB", 25_000_000: "25 MB",
		1: "1 B", 1000: "1 KB", 1023: "1023 B", 1 << 20: "1024 KB",
	} {
		if got := SizeName(size); got != want {
			t.Errorf("SizeName(%d) = %q, want %q", size, got, want)
		}
	}
}

func TestSizeCases(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sizes")
	cases, err := SizeCases(dir, []int64{100, 4096}, 3)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(dir, "4096.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "100.bin"), make([]byte, 100), 0o644); err != nil { // of the right size only
		t.Fatal(err)
	}
	again, err := SizeCases(dir, []int64{100, 4096}, 3)
	if err != nil || !cmp.Equal(cases, again) {
		t.Errorf("a second call makes other cases: %v, %v", again, err)
	}
	if after, err := os.Stat(filepath.Join(dir, "4096.bin")); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("a file that was right has been written again: %v", err)
	}
	for i, size := range []int64{100, 4096} {
		content, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%d.bin", size)))
		if err != nil || int64(len(content)) != size {
			t.Fatalf("%d bytes, %v", len(content), err)
		}
		sum := sha256.Sum256(content)
		target := bench.Target{Path: fmt.Sprintf("/media/%d.bin", size), Bytes: size, SHA256: hex.EncodeToString(sum[:])}
		want := Case{Name: SizeName(size), Targets: []bench.Target{target, target, target}}
		if d := cmp.Diff(want, cases[i]); d != "" {
			t.Error(d)
		}
		if d := (&measurement{of: cases[i]}).distinct(); len(d) != 1 || d[0] != target {
			t.Errorf("distinct are %v", d)
		}
	}
	if _, err := SizeCases(filepath.Join(dir, "100.bin"), []int64{1}, 1); err == nil {
		t.Error("a directory that is a file")
	}
}

func TestSetCases(t *testing.T) {
	m := &dataset.Manifest{}
	m.Segments = append(m.Segments, dataset.File{Name: "a.m4s", Size: 5, SHA256: "sum"})
	got := SetCases(&lab.Files{Sets: []lab.Set{{Name: "tablet", Manifest: m}}})
	want := []Case{{Name: "tablet", Targets: []bench.Target{{Path: "/media/tablet/a.m4s", Bytes: 5, SHA256: "sum"}}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestOffloaded: figures of an arm that did not offload are no figures.
func TestOffloaded(t *testing.T) {
	for _, c := range []struct {
		arm              lab.Arm
		sends, handovers uint64
		want             string // in the error
	}{
		{lab.Lease, 100, 0, ""}, {lab.Lease, 95, 0, ""}, {lab.Lease, 94, 0, "small:7"}, {lab.VM, 0, 0, ""}, {lab.Baremetal, 0, 0, ""},
		{lab.Offload, 0, 0, "small:7"}, {lab.Offload, 95, 95, ""}, {lab.Offload, 100, 94, "only 94 of 100"},
	} {
		counts := guest.Counts{Sends: c.sends, Handovers: c.handovers}
		err := offloaded(c.arm, 100, guest.Snapshot{Counts: counts, Fallbacks: map[string]uint64{"small": 7}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestStalled: a stall of an arm that offloads is an error, one of the others is a figure.
func TestStalled(t *testing.T) {
	for arm, fails := range map[lab.Arm]bool{
		lab.Lease: true, lab.Offload: true, lab.VM: false, lab.VMCold: false, lab.VMTmpfs: false, lab.Baremetal: false,
	} {
		row := bench.Row{Stalls: 2, TCPTimeouts: bench.Counts{"client": 5}}
		err := stalled(arm, row)
		if (err != nil) != fails || fails && (!strings.Contains(err.Error(), "2 waits") || !strings.Contains(err.Error(), "client:5")) {
			t.Errorf("%s: %v", arm, err)
		}
		if err := stalled(arm, bench.Row{}); err != nil {
			t.Errorf("%s without a stall: %v", arm, err)
		}
	}
}

// TestWrongBodies: they do not keep the row from being published.
func TestWrongBodies(t *testing.T) {
	var timed, verified bench.Recorder
	timed.Add(bench.Result{Elapsed: time.Millisecond, Bytes: 5})
	timed.AddWrong(bench.Result{}, errors.New("too short"))
	verified.AddWrong(bench.Result{}, errors.New("another sum"))
	row, err := newRow(lab.VM, "4 KB", &timed, &verified, guest.Snapshot{})
	if row.N != 1 || row.Wrong != 2 || row.Bytes != 5 || row.MedianUs != 1000 {
		t.Errorf("the row is %+v", row)
	}
	for _, want := range []string{"arm vm", "2 wrong bodies", "too short", "another sum"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Plan{Arms: lab.Arms(), Rounds: 1, Connections: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Plan){
		"rounds":      func(p *Plan) { p.Rounds = 0 },
		"connections": func(p *Plan) { p.Connections = -1 },
		"bogus":       func(p *Plan) { p.Arms = []lab.Arm{"bogus"} },
		"vm-cold":     func(p *Plan) { p.Arms, p.Connections = lab.AllArms(), 2 },
		"twice":       func(p *Plan) { p.Arms = []lab.Arm{lab.VM, lab.Lease, lab.VM} },
	} {
		p := good
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// labName is one that no other test uses.
func labName() string { return fmt.Sprintf("t%d-%06x", os.Getpid()%1e7, rand.Uint32()&0xffffff) }

// buildBinary builds the spillway binary.
func buildBinary(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "spillway")
	if out, err := exec.Command("go", "build", "-o", binary, "spillway/cmd/spillway").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

// TestRun measures a small plan in a lab of namespaces.
func TestRun(t *testing.T) {
	binary := buildBinary(t)
	files := filepath.Join(t.TempDir(), "sizes")
	const n, rounds, connections = 5, 2, 2
	cases, err := SizeCases(files, []int64{4096, 300_000}, n)
	if err != nil {
		t.Fatal(err)
	}
	name := labName()
	opts := lab.Options{Name: name, VM: lab.NetNS, Binary: binary, Files: files}
	var shown bytes.Buffer
	plan := Plan{Cases: cases, Arms: lab.Arms(), Rounds: rounds, Connections: connections}
	lie := Case{Name: "lie", Targets: slices.Clone(cases[0].Targets)}
	for i := range lie.Targets {
		lie.Targets[i].SHA256 = strings.Repeat("0", 2*sha256.Size) // as if the server sent something else
	}
	cases = append([]Case{lie}, cases...)
	plan.Cases = cases
	report, err := Run(t.Context(), "test", opts, plan, bench.NewProgress(&shown))
	if err == nil || !strings.HasPrefix(err.Error(), "lie: ") || !strings.Contains(err.Error(), "arm lease: 2 wrong bodies") ||
		strings.Contains(err.Error(), "KB") {
		t.Fatal(err)
	}
	if len(report.Rows) != len(cases)*len(lab.Arms()) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		arm, c := lab.Arms()[i%4], cases[i/4]
		if row.Arm != string(arm) || row.Case != c.Name || row.N != n*rounds*connections ||
			row.Wrong != map[string]int64{"lie": connections}[c.Name] {
			t.Errorf("row %d is %+v, want %s, %s", i, row, arm, c.Name)
		}
		wantOver := map[lab.Arm]int64{lab.Lease: rounds * connections, lab.Offload: n * rounds * connections}[arm]
		if row.Handovers != wantOver {
			t.Errorf("%s, %s: %d handovers, want %d; fallbacks %v", arm, c.Name, row.Handovers, wantOver, row.Fallbacks)
		}
	}
	if env := report.Env; env.Accelerator != "none" || env.Link != "unshaped" || env.Kernel == "" || env.CPUs == 0 {
		t.Errorf("environment is %+v", env)
	}
	if left, _ := filepath.Glob("/run/netns/spw-" + name + "-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if !strings.Contains(shown.String(), "round 2 of 2") {
		t.Errorf("progress is %q", shown.String())
	}
	if _, err := Run(t.Context(), "test", lab.Options{Name: "NO"}, plan, bench.NewProgress(nil)); err == nil {
		t.Error("a lab that cannot be")
	}
}

// TestRunCold: requests of the cold arm are as others, in a lab of namespaces too, and there is no arm with a memory of its own.
func TestRunCold(t *testing.T) {
	files := filepath.Join(t.TempDir(), "sizes")
	cases, err := SizeCases(files, []int64{4096, 300_000}, 3)
	if err != nil {
		t.Fatal(err)
	}
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: files}
	plan := Plan{Cases: cases, Arms: []lab.Arm{lab.VM, lab.VMCold}, Rounds: 2, Connections: 1}
	report, err := Run(t.Context(), "test", opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range report.Rows {
		if row.Arm != string(plan.Arms[i%2]) || row.N != 6 || row.Wrong != 0 || row.ElapsedS <= 0 {
			t.Errorf("row %d is %+v", i, row)
		}
	}
	plan.Arms = lab.AllArms()
	if _, err := Run(t.Context(), "test", opts, plan, bench.NewProgress(nil)); err == nil || !strings.Contains(err.Error(), "vm-tmpfs") {
		t.Errorf("an arm in a namespace with a memory of its own: %v", err)
	}
}
