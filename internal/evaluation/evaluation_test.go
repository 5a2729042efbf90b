package evaluation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
	again, err := SizeCases(dir, []int64{100, 4096}, 3)
	if err != nil || !cmp.Equal(cases, again) {
		t.Errorf("a second call makes other cases: %v, %v", again, err)
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
		arm   lab.Arm
		sends uint64
		ok    bool
	}{
		{lab.Lease, 100, true}, {lab.Lease, 95, true}, {lab.Lease, 94, false}, {lab.Offload, 0, false}, {lab.VM, 0, true}, {lab.Baremetal, 0, true},
	} {
		row := bench.Row{}
		row.N = 100
		err := offloaded(c.arm, row, guest.Snapshot{Counts: guest.Counts{Sends: c.sends}, Fallbacks: map[string]uint64{"small": 7}})
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "small:7") {
			t.Errorf("%s with %d of 100: %v", c.arm, c.sends, err)
		}
	}
}

// TestRun measures a small plan in a lab of namespaces.
func TestRun(t *testing.T) {
	tmp := t.TempDir()
	binary := filepath.Join(tmp, "spillway")
	if out, err := exec.Command("go", "build", "-o", binary, "spillway/cmd/spillway").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	files := filepath.Join(tmp, "sizes")
	const n, rounds, connections = 5, 2, 2
	cases, err := SizeCases(files, []int64{4096, 300_000}, n)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("t%d-%06x", os.Getpid()%1e7, rand.Uint32()&0xffffff)
	opts := lab.Options{Name: name, VM: lab.NetNS, Binary: binary, Files: files}
	var shown bytes.Buffer
	plan := Plan{Cases: cases, Arms: lab.Arms(), Rounds: rounds, Connections: connections}
	report, err := Run(t.Context(), "test", opts, "", plan, bench.NewProgress(&shown))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) != len(cases)*len(lab.Arms()) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		arm, c := lab.Arms()[i%4], cases[i/4]
		if row.Arm != string(arm) || row.Case != c.Name || row.N != n*rounds*connections || row.Wrong != 0 {
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
	if _, err := Run(t.Context(), "test", lab.Options{Name: "NO"}, "", plan, bench.NewProgress(nil)); err == nil {
		t.Error("a lab that cannot be")
	}
}
