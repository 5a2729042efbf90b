package figures

import (
	_ "embed"
	"fmt"
	"math"
	"slices"
	"strings"

	"spillway/internal/bench"
)

// mark is what was wanted of an arm: how it compares with another, in each case of a bench that the mark is about.
type mark struct {
	note  string // its heading in notes.md
	want  string
	bench string
	link  string // as bench.Env has it

	cases     func(bench.Row) bool
	arm, base string
	value     func(bench.Row) float64
	limit     float64 // of the ratio of the arm's value to the base's: that and more is wanted
	less      bool    // that and less
	above     bool    // more than that
	shown     func(ratio float64, less bool) string

	// beside measures by itself, in place of cases and all that follows.
	beside func(rows []bench.Row) (measured string, met, ok bool)
}

// What the seed reached (section IV.B).
const (
	seedCrossoverBytes = 65536
	seedGain           = 1.71 // at seedGainBytes, offload to vm
	seedGainBytes      = 3_000_000
)

// largeBytes is the size from which nginx on the host is a mark.
const largeBytes = 1_400_000

// marks in the order of the table.
func marks() []mark {
	var all []mark
	for _, set := range dataSets {
		all = append(all, mark{note: "one gigabit", want: set.title + " over 1 Gbit/s: `lease` takes at most 1 % longer than `baremetal`", bench: "dash", link: "1gbit", cases: set.is,
			arm: "lease", base: bench.ArmBareMetal, value: passSeconds, limit: 1.01, less: true, shown: percentMore})
	}
	for _, set := range dataSets[:2] {
		all = append(all, mark{note: "unshaped sets", want: set.title + ": `lease` has at least 0.8 of the MB/s of `baremetal`", bench: "dash", link: unshaped, cases: set.is,
			arm: "lease", base: bench.ArmBareMetal, value: passRate, limit: 0.8, shown: times})
	}
	mobile := dataSets[2]
	return append(all,
		mark{note: "unshaped sets", want: mobile.title + ": `lease` has at least 3 times the MB/s of `vm`", bench: "dash", link: unshaped, cases: mobile.is,
			arm: "lease", base: bench.ArmVM, value: passRate, limit: 3, shown: times},
		mark{note: "vm", want: "every file size: `lease` is at least as fast as `vm`", bench: "micro", link: unshaped, cases: anySize,
			arm: "lease", base: bench.ArmVM, value: passRate, limit: 1, shown: times},
		mark{note: "crossover", want: "`offload` pays from 64 KB on, as the seed's did", bench: "micro", link: unshaped, beside: offloadCrossover},
		mark{note: "crossover", want: "3 MB: `offload` gains at least the seed's 71 % over `vm`", bench: "micro", link: unshaped,
			cases: func(r bench.Row) bool { return r.CaseBytes == seedGainBytes }, arm: "offload", base: bench.ArmVM, value: passRate, limit: seedGain, shown: percentMore},
		mark{note: "nginx in the VM", want: "every file size: `lease` is faster than `nginx-vm`", bench: "micro", link: unshaped, cases: anySize,
			arm: "lease", base: "nginx-vm", value: passRate, limit: 1, above: true, shown: times},
		mark{note: "nginx on the host", want: "1.4 MB and larger: `lease` has at least 0.9 of the MB/s of `nginx-host`", bench: "micro", link: unshaped,
			cases: func(r bench.Row) bool { return r.CaseBytes >= largeBytes }, arm: "lease", base: "nginx-host", value: passRate, limit: 0.9, shown: times},
		mark{note: "CPU time", want: "`lease` takes at most 1.05 times the CPU time of `baremetal`, of all its processes", bench: "cpu", link: unshaped, cases: anySize,
			arm: "lease", base: bench.ArmBareMetal, value: cpuSeconds, limit: 1.05, less: true, shown: times},
	)
}

const unshaped = "unshaped"

// namedSet is a data set of the paper's Table I.
type namedSet struct{ name, title string }

func (s namedSet) is(r bench.Row) bool { return r.Case == s.name && r.Playback == nil }

var dataSets = []namedSet{{"smarttv", "Smart TV"}, {"tablet", "Tablet"}, {"mobile", "Mobile Phone"}}

func anySize(bench.Row) bool          { return true }
func passSeconds(r bench.Row) float64 { return elapsed(r).Median }
func passRate(r bench.Row) float64    { return rate(r).Median }
func cpuSeconds(r bench.Row) float64  { return r.Processes[allProcesses].CPUSecondsPerGB }

// worse rounds to the worse side, to an integer.
func worse(v float64, less bool) float64 {
	if less {
		return math.Ceil(v)
	}
	return math.Floor(v)
}

func times(ratio float64, less bool) string { return fmt.Sprintf("%.2f×", worse(100*ratio, less)/100) }

func percentMore(ratio float64, less bool) string {
	return fmt.Sprintf("%+.1f %%", worse(1000*(ratio-1), less)/10)
}

// offloadCrossover compares the size from which offload pays with the seed's.
func offloadCrossover(rows []bench.Row) (measured string, met, ok bool) {
	rows = bySize(rows)
	if len(ofArm(rows, "offload")) == 0 || len(ofArm(rows, bench.ArmVM)) == 0 {
		return "", false, false
	}
	size, pays := measuredCrossover(rows, "offload", bench.ArmVM)
	return crossoverName(size, pays), pays && size <= seedCrossoverBytes, true
}

// judged is what became of a mark.
type judged struct {
	mark
	measured string
	met      bool
}

// judge compares a mark with the rows of a report. Without ok they have nothing of it.
func (m mark) judge(rows []bench.Row) (j judged, ok bool) {
	j.mark = m
	if m.beside != nil {
		j.measured, j.met, ok = m.beside(rows)
		return j, ok
	}
	var worst float64
	var worstCase string
	var missed []string
	names := 0
	for _, name := range cases(rows) {
		a, okA := of(rows, m.arm, name)
		b, okB := of(rows, m.base, name)
		if !okA || !okB || !m.cases(a) || m.value(a) <= 0 || m.value(b) <= 0 {
			continue
		}
		ratio := m.value(a) / m.value(b)
		if good := ratio >= m.limit && !m.less || ratio <= m.limit && m.less; !good || m.above && ratio == m.limit {
			missed = append(missed, name)
		}
		if names == 0 || m.less == (ratio > worst) {
			worst, worstCase = ratio, name
		}
		names++
	}
	if names == 0 {
		return j, false
	}
	j.met, j.measured = len(missed) == 0, m.shown(worst, m.less)
	if names > 1 {
		j.measured = "at worst " + j.measured + ", at " + worstCase
		if len(missed) > 1 && len(missed) < names {
			j.measured += "; missed at " + strings.Join(missed, ", ")
		}
	}
	return j, true
}

// judgeAll judges every mark that one of the reports is about. Namespaces are no VM, and no measure of one.
func judgeAll(reports []*bench.Report) (all []judged, conditions []string) {
	for _, m := range marks() {
		for _, r := range reports {
			if r.Bench != m.bench || r.Env.Link != m.link || r.Env.Accelerator == "none" {
				continue
			}
			if j, ok := m.judge(published(r)); ok {
				all, conditions = append(all, j), append(conditions, condition(r.Env))
			}
		}
	}
	return all, conditions
}

// wantedTable shows what was wanted and what became of it.
func wantedTable(all []judged, conditions []string) string {
	if len(all) == 0 {
		return ""
	}
	var lines [][]string
	for i, j := range all {
		verdict := "met"
		if !j.met {
			verdict = "**missed**"
		}
		lines = append(lines, []string{j.want, conditions[i], j.measured, verdict})
	}
	return markdownTable([]string{"wanted", "where", "measured", ""}, lines)
}

// notes.md has a section of Markdown for each note of a mark, about why it is missed under TCG, and one about TCG itself.
//
//go:embed notes.md
var notesFile string

// noteOf is the text below a heading of notes.md.
func noteOf(heading string) string {
	for part := range strings.SplitSeq(notesFile, "\n## ") {
		if name, text, ok := strings.Cut(part, "\n"); ok && name == heading {
			return strings.TrimSpace(text)
		}
	}
	return ""
}

// missNotes explain what was missed, each note once.
func missNotes(all []judged) string {
	var parts []string
	for _, j := range all {
		if j.met {
			continue
		}
		text := noteOf(j.note)
		if text == "" {
			text = "Not explained yet."
		}
		if part := "**" + strings.ToUpper(j.note[:1]) + j.note[1:] + "**\n\n" + text; !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "\n\n")
}

// costTable shows what each request of an arm takes besides its bytes, by the fits of the model.
func costTable(reports []*bench.Report) string {
	var lines [][]string
	for _, r := range reports {
		rows := bySize(published(r))
		if r.Bench != "micro" || r.Env.Link != unshaped {
			continue
		}
		for _, arm := range arms(rows) {
			if c, ok := FitCost(ofArm(rows, arm)); ok {
				lines = append(lines, []string{arm + ", " + condition(r.Env), fmt.Sprintf("%.0f", c.FixedS*1e6), fmt.Sprintf("%.0f", c.BytesPerSec/1e6)})
			}
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return markdownTable([]string{"", "each request, µs", "and its bytes, MB/s"}, lines)
}
