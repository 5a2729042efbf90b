package figures

import (
	"bytes"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/bench"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sized is a row of a micro bench in which a request takes fixedS seconds and its bytes at a rate.
func sized(arm string, size int64, fixedS, bytesPerSec float64) bench.Row {
	s := fixedS + float64(size)/bytesPerSec
	mb := float64(size) / 1e6 / s
	return bench.Row{
		Arm: arm, Case: sizeName(float64(size)), CaseBytes: size, N: 10, Bytes: 10 * size, ElapsedS: 10 * s, MBPerS: mb, MedianUs: s * 1e6, P99Us: 2e6 * s,
		Spread: &bench.Spread{Rounds: 6, MBPerS: bench.Interval{Median: mb, Low: 0.9 * mb, High: 1.2 * mb, Coverage: 0.969},
			ElapsedS: bench.Interval{Median: 10 * s, Low: 9 * s, High: 11 * s, Coverage: 0.969}},
	}
}

// samples are reports of all benches that have figures, made of round numbers.
func samples() []File {
	env := bench.Env{Accelerator: "tcg", Kernel: "6.18.5", QEMU: "7.2.22", CPUs: 2, Link: "unshaped"}
	micro := bench.NewReport("micro", env)
	for _, size := range []int64{4096, 65536, 1_400_000, 10_500_000, 200_000_000} {
		micro.Rows = append(micro.Rows,
			sized("baremetal", size, 100e-6, 2e9), sized("vm", size, 900e-6, 300e6), sized("offload", size, 1850e-6, 1.8e9), sized("lease", size, 500e-6, 1.9e9),
			sized("nginx-host", size, 90e-6, 2e9), sized("nginx-vm", size, 1000e-6, 280e6))
	}
	refused := &micro.Rows[len(micro.Rows)-6] // baremetal, 200 MB
	refused.Refused, refused.MBPerS, refused.Spread = bench.RefusedBottleneck, 12345, nil

	env.Link = "1gbit"
	dash := bench.NewReport("dash", env)
	for i, set := range []string{"smarttv", "tablet", "mobile"} {
		for j, arm := range []string{"baremetal", "vm", "offload", "lease"} {
			s := 30 / float64(1+3*i) * (1 + 0.1*float64(j))
			dash.Rows = append(dash.Rows, bench.Row{Arm: arm, Case: set, N: 351, Bytes: 3e9, ElapsedS: s, MBPerS: 3e3 / s,
				Timeline: &bench.Timeline{IntervalMs: 100, Bytes: []int64{10e6, 11e6, int64(j) * 1e6, 12e6}}})
		}
	}
	dash.Rows = append(dash.Rows, bench.Row{Arm: "lease", Case: "20 players", N: 100, Bytes: 1e9, MBPerS: 100,
		Playback: &bench.Playback{Players: 20, Stalls: 3, StalledS: 4.5, Switches: 7, MeanKbit: 5200, StartupMs: 12}})

	many := bench.NewReport("concurrency", env)
	cpu := bench.NewReport("cpu", env)
	for _, arm := range []string{"vm", "lease"} {
		for _, n := range []int{1, 10, 1000} {
			many.Rows = append(many.Rows, bench.Row{Arm: arm, Case: fmt.Sprintf("%d connections", n), Connections: n, N: n, Bytes: 1e9, ElapsedS: 10, MBPerS: 100 + float64(len(arm))})
		}
		cpu.Rows = append(cpu.Rows, bench.Row{Arm: arm, Case: "10.5 MB", N: 1, Processes: map[string]bench.Process{allProcesses: {CPUSecondsPerGB: float64(len(arm))}, "qemu": {CPUSecondsPerGB: float64(len(arm))}}})
	}
	handover := bench.NewReport("handover", bench.Env{Accelerator: "none", Kernel: "6.18.5", CPUs: 2, Link: "unshaped"})
	handover.Rows = []bench.Row{{Arm: "offload", Case: "4 KB", N: 5000, MedianUs: 200, Steps: map[string]bench.Step{handoverStep: {MedianUs: 113}}}}
	players := bench.NewReport("dash", bench.Env{Accelerator: "tcg", Link: "unshaped"})
	players.Rows = []bench.Row{dash.Rows[len(dash.Rows)-1]}
	path := bench.NewReport("path", bench.Env{Accelerator: "tcg", Link: "40ms,100mbit"})
	path.Command = "spillway bench path --vm qemu"
	for _, stage := range []string{"warm-up", "first"} {
		path.Rows = append(path.Rows, bench.Row{Arm: "lease", Case: "1.4 MB " + stage, N: 30, MedianUs: 159_000, P99Us: 170_250, FirstByteUs: 41_000, FirstByteP99Us: 42_000})
	}
	copies := bench.NewReport("cache", bench.Env{Accelerator: "tcg", Link: "unshaped"})
	copies.Rows = []bench.Row{
		{Arm: "lease", Case: "10.5 MB", N: 1, MBPerS: 200},
		{Arm: "lease-cache", Case: "10.5 MB", N: 1, MBPerS: 198, ToLease: &bench.Interval{Median: 0.99, Low: 0.97, High: 1.01, Coverage: 0.959}},
		{Arm: "vm", Case: "set of 640 MiB", N: 10, Bytes: 1e9, MBPerS: 50,
			Memory: &bench.Memory{MediaBytes: 600e6, GuestsBytes: 1e9, GuestCacheBytes: 750e6, HostCacheBytes: 600e6, QEMUBytes: 950e6, ShareReadBytes: 250e6, HitRatio: 0.75}},
		{Arm: "lease", Case: "set of 640 MiB", N: 10, Bytes: 1e9, MBPerS: 100, Memory: &bench.Memory{MediaBytes: 600e6, GuestsBytes: 1e9, HostCacheBytes: 600e6, HitRatio: 1}},
	}
	miss := bench.NewReport("miss", bench.Env{Link: "loopback"})
	for arm, mb := range map[string]float64{"plain": 2000, "curl": 800, "cache": 1000} {
		miss.Rows = append(miss.Rows, bench.Row{Arm: arm, Case: "1.4 MB", CaseBytes: 1_400_000, N: 50, MBPerS: mb, FirstByteUs: 100, FirstByteP99Us: 200})
	}
	slices.SortFunc(miss.Rows, func(a, b bench.Row) int { return strings.Compare(a.Arm, b.Arm) })
	return []File{{"results/micro.json", micro}, {"dash.json", dash}, {"concurrency.json", many}, {"cpu.json", cpu}, {"handover.json", handover},
		{"players.json", players}, {"path.json", path}, {"cache.json", copies}, {"miss.json", miss}}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	names, err := Write(dir, samples())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, MarkdownName))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", MarkdownName)
	if *update {
		if err := os.WriteFile(golden, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(text)); d != "" {
		t.Errorf("%s (-want +got):\n%s", golden, d)
	}
	plots := 0
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		switch base := filepath.Base(name); filepath.Ext(name) {
		case ".svg":
			plots++
			if !strings.Contains(string(text), "("+PlotDir+"/"+base+")") {
				t.Errorf("the document does not show %s", base)
			}
			if !strings.Contains(string(content), "MB/s") && !strings.Contains(string(content), ", s") && !strings.Contains(string(content), "times that of vm") && !strings.Contains(string(content), "bytes for one") {
				t.Errorf("%s has an axis without a unit", base)
			}
			if strings.Contains(string(content), "NaN") || strings.Contains(string(content), "Inf") {
				t.Errorf("%s has a number that is none", base)
			}
		case ".png":
			img, err := png.Decode(bytes.NewReader(content))
			if err != nil || img.Bounds().Dx() < 1200 {
				t.Errorf("%s: %v", base, err)
			}
		}
	}
	if plots != 7 {
		t.Errorf("%d plots: %v", plots, names)
	}
}

// TestRefused: what a bench has refused is in the CSV, marked, and nowhere else.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := Write(dir, samples()[:1]); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, MarkdownName))
	if err != nil || strings.Contains(string(text), "12345") || !strings.Contains(string(text), "baremetal, 200 MB") {
		t.Errorf("%v: the refused figure is shown, or its refusal is not:\n%s", err, text)
	}
	table, err := os.ReadFile(filepath.Join(dir, CSVName))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(bytes.NewReader(table)).ReadAll()
	if err != nil || len(lines) != 1+30 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	marked := 0
	for _, line := range lines[1:] {
		if line[len(line)-1] == bench.RefusedBottleneck {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("%d lines are marked", marked)
	}
	only := bench.NewReport("micro", bench.Env{})
	only.Rows = []bench.Row{{Arm: "vm", Case: "4 KB", CaseBytes: 4096, N: 1, Refused: bench.RefusedBottleneck}}
	if _, err := Write(filepath.Join(dir, "none"), []File{{"x.json", only}}); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing to publish: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory was made for nothing")
	}
}

// TestTwice: figures of two runs are not put side by side under one name.
func TestTwice(t *testing.T) {
	twice := append(samples()[:1], samples()[:1]...)
	if _, err := Write(t.TempDir(), twice); err == nil || !strings.Contains(err.Error(), "micro.json") {
		t.Errorf("the error is %v", err)
	}
}

// TestStyles: the arms of a plot differ in their markers, and so do the lines of those that are mostly compared.
func TestStyles(t *testing.T) {
	for i, a := range armOrder {
		for _, b := range armOrder[:i] {
			x, y := styleOf(a), styleOf(b)
			if reflect.TypeOf(x.glyph) == reflect.TypeOf(y.glyph) || x.color == y.color {
				t.Errorf("%s and %s look alike", a, b)
			}
		}
		if _, ok := styles[a]; !ok {
			t.Errorf("%s has no style", a)
		}
	}
	if styleOf("kvm").glyph == nil {
		t.Error("an arm that is not known has no marker")
	}
}

func TestFitCost(t *testing.T) {
	var rows []bench.Row
	for _, size := range []int64{4096, 65536, 3_000_000, 200_000_000} {
		rows = append(rows, sized("vm", size, 1e-3, 250e6))
	}
	c, ok := FitCost(rows)
	if !ok || math.Abs(c.FixedS-1e-3) > 1e-8 || math.Abs(c.BytesPerSec-250e6) > 1e3 {
		t.Errorf("%+v, %v", c, ok)
	}
	if _, ok := FitCost(rows[:1]); ok {
		t.Error("a fit to one size")
	}
	if _, ok := FitCost(nil); ok {
		t.Error("a fit to nothing")
	}
}

// TestCrossover: the seed's own figures, 1.9 ms and a gain of 71 % at 3 MB, and what has no crossover.
func TestCrossover(t *testing.T) {
	if size, ok := Crossover(1e-3, 100e6, 200e6); !ok || math.Abs(size-200e3) > 1e-6 {
		t.Errorf("1 ms, 100 and 200 MB/s: %g, %v", size, ok)
	}
	for _, c := range []struct{ slow, fast float64 }{{100e6, 100e6}, {200e6, 100e6}} {
		if size, ok := Crossover(1e-3, c.slow, c.fast); ok {
			t.Errorf("%+v pays from %g on", c, size)
		}
	}
	if size, ok := Crossover(-1, 100e6, 200e6); !ok || size != 0 {
		t.Errorf("a way that costs less and is faster: %g, %v", size, ok)
	}
}

func TestMeasuredCrossover(t *testing.T) {
	rows := samples()[0].Report.Rows
	size, ok := measuredCrossover(rows, "offload", "vm")
	model, _ := Crossover(950e-6, 300e6, 1.8e9)
	if !ok || size < 65536 || size > 1.4e6 || math.Abs(math.Log(size/model)) > math.Log(2) {
		t.Errorf("offload pays from %g on, the model says %g", size, model)
	}
	if size, ok := measuredCrossover(rows, "lease", "vm"); !ok || size != 4096 {
		t.Errorf("lease pays from %g on, %v", size, ok)
	}
	if _, ok := measuredCrossover(rows, "vm", "lease"); ok {
		t.Error("vm pays over lease")
	}
	if _, ok := measuredCrossover(rows, "nobody", "vm"); ok {
		t.Error("an arm that is not there pays")
	}
}

func TestPredict(t *testing.T) {
	for _, p := range Predict(2e9, []float64{100e-6, 1e-3}) {
		link := p.LinkGbit / 8 * 1e9
		if limited := link <= 2e9*p.VMShare; p.Pays == limited {
			t.Errorf("%+v: the link limits both: %v", p, limited)
		}
		if p.Pays && p.SizeBytes <= 0 {
			t.Errorf("%+v", p)
		}
	}
}
