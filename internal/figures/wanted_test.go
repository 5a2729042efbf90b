package figures

import (
	"strings"
	"testing"

	"spillway/internal/bench"
)

// TestMarks: each is met or missed by the figures, at the limit too, and shows them rounded to the worse side.
func TestMarks(t *testing.T) {
	row := func(arm, name string, mb float64) bench.Row {
		return bench.Row{Arm: arm, Case: name, N: 1, MBPerS: mb, ElapsedS: 1 / mb, CaseBytes: 1}
	}
	any := mark{cases: anySize, arm: "lease", base: "vm", value: passRate, limit: 1, shown: times}
	above, less := any, any
	above.above = true
	less.less, less.limit, less.value, less.shown = true, 1.01, passSeconds, percentMore
	for name, c := range map[string]struct {
		mark     mark
		lease    map[string]float64 // MB/s by case; the VM has 100
		measured string
		met      bool
	}{
		"more":           {any, map[string]float64{"a": 150, "b": 120.9}, "at worst 1.20×, at b", true},
		"as much":        {any, map[string]float64{"a": 100}, "1.00×", true},
		"not above":      {above, map[string]float64{"a": 100}, "1.00×", false},
		"a little below": {any, map[string]float64{"a": 99.99}, "0.99×", false},
		"missed twice":   {any, map[string]float64{"a": 50, "b": 60, "c": 101}, "at worst 0.50×, at a; missed at a, b", false},
		"missed at all":  {any, map[string]float64{"a": 60, "b": 50}, "at worst 0.50×, at b", false},
		"time":           {less, map[string]float64{"a": 100, "b": 99.5}, "at worst +0.6 %, at b", true},
		"too much time":  {less, map[string]float64{"a": 98.9}, "+1.2 %", false},
	} {
		var rows []bench.Row
		for _, dataCase := range []string{"a", "b", "c"} {
			if mb, ok := c.lease[dataCase]; ok {
				rows = append(rows, row("vm", dataCase, 100), row("lease", dataCase, mb))
			}
		}
		if j, ok := c.mark.judge(rows); !ok || j.measured != c.measured || j.met != c.met {
			t.Errorf("%s: %q, met %v, %v; want %q, %v", name, j.measured, j.met, ok, c.measured, c.met)
		}
	}
	if _, ok := any.judge([]bench.Row{row("lease", "a", 1)}); ok {
		t.Error("compared with an arm that is not there")
	}
}

// TestWanted: a mark is judged by the reports that it is about, what a bench has refused is none, and each mark that is missed is explained.
func TestWanted(t *testing.T) {
	for _, m := range marks() {
		if noteOf(m.note) == "" {
			t.Errorf("notes.md has nothing under %q", m.note)
		}
		if (m.beside == nil) == (m.value == nil) || m.value != nil && (m.cases == nil || m.shown == nil || m.limit == 0) {
			t.Errorf("%q lacks something", m.want)
		}
	}
	if noteOf("TCG") == "" || noteOf("nothing") != "" {
		t.Error("notes.md")
	}
	micro := samples()[0].Report
	all, _ := judgeAll([]*bench.Report{micro})
	if table := wantedTable(all, make([]string, len(all))); !strings.Contains(table, "`lease` is faster than `nginx-vm`") || strings.Contains(table, "Gbit") {
		t.Errorf("the marks of micro are\n%s", table)
	}
	for i := range micro.Rows {
		if micro.Rows[i].Arm == "lease" {
			micro.Rows[i].Refused = bench.RefusedBottleneck
		}
	}
	all, _ = judgeAll([]*bench.Report{micro})
	if table := wantedTable(all, make([]string, len(all))); strings.Contains(table, "`lease`") {
		t.Errorf("refused figures are judged:\n%s", table)
	}
	namespaces := *micro
	namespaces.Env.Accelerator = "none"
	if all, _ := judgeAll([]*bench.Report{&namespaces}); len(all) != 0 {
		t.Errorf("namespaces are judged as a VM: %v", all)
	}
	missed := []judged{{mark: mark{note: "crossover"}}, {mark: mark{note: "crossover"}}, {mark: mark{note: "vm"}, met: true}, {mark: mark{note: "what is this"}}}
	if text := missNotes(missed); strings.Count(text, "Crossover") != 1 || strings.Contains(text, noteOf("vm")) || !strings.Contains(text, "Not explained yet") {
		t.Errorf("the notes are\n%s", text)
	}
}
