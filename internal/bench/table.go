package bench

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The arms that the others are compared with.
const (
	ArmBareMetal = "baremetal"
	ArmVM        = "vm"
)

// tableWidth is the number of columns that the table keeps to, however many reasons of fallbacks there are.
const tableWidth = 120

// WriteTable writes the report as a table for people, of at most 120 columns, and behind it the rows' steps, if they have any.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: accelerator %s, host kernel %s, QEMU %s, %d CPUs, link %s", r.Bench,
		orDash(r.Env.Accelerator), orDash(r.Env.Kernel), orDash(r.Env.QEMU), r.Env.CPUs, orDash(r.Env.Link))
	if r.Env.Congestion != "" {
		fmt.Fprintf(&b, ", %s", r.Env.Congestion)
	}
	b.WriteString("\n\n")
	t := grid{
		heads: [][]string{
			{"", "", "seg-", "", "", "", "ratio", "ratio to", "hand-", "hand-", "wrong", "stalls", ""},
			{"arm", "data set", "ments", "MB", "elapsed", "MB/s", "to vm", "baremetal", "overs", "backs", "bodies", ">150ms", "fallbacks"},
		},
		left: []bool{0: true, 1: true, 12: true},
	}
	for _, row := range r.Rows {
		t.add(row.Fallbacks.lines(),
			row.Arm, row.Case, strconv.Itoa(row.N), fixed(float64(row.Bytes)/1e6, 1), row.cost(row.ElapsedS, 2)+"s", row.speed(row.MBPerS, 1),
			r.ratio(row, ArmVM), r.ratio(row, ArmBareMetal), count(row.Handovers), count(row.Handbacks), count(row.Wrong), count(row.Stalls))
	}
	t.write(&b)
	b.WriteString(r.legend())
	r.writeSteps(&b)
	r.writeProcesses(&b)
	r.writeMachine(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// legend explains what looks wrong and is not.
func (r *Report) legend() string {
	if !slices.ContainsFunc(r.Rows, func(row Row) bool { return row.Handbacks < row.Handovers }) {
		return ""
	}
	return `
Fewer handbacks than handovers: a lease stays on the host until its connection ends. In mode offload the host gives a
connection back when the client speaks again, or has said nothing for 20 ms: a client that closes it behind its last
response leaves nothing to give back.
`
}

// ratio compares a row's speed with that of another arm in the same case.
func (r *Report) ratio(row Row, arm string) string {
	i := slices.IndexFunc(r.Rows, func(other Row) bool { return other.Arm == arm && other.Case == row.Case })
	if i < 0 || r.Rows[i].MBPerS <= 0 {
		return "-"
	}
	return row.speed(row.MBPerS/r.Rows[i].MBPerS, 2)
}

// offloads tells whether a row is of an arm that the bench is about, and no baseline.
func (row Row) offloads() bool { return row.Arm != ArmBareMetal && row.Arm != ArmVM }

// speed is a figure of which more is better, and cost one of which less is. Neither is rounded in our favour: an offloading arm's to the worse side, a
// baseline's to the better.
func (row Row) speed(v float64, decimals int) string { return toSide(v, decimals, !row.offloads()) }
func (row Row) cost(v float64, decimals int) string  { return toSide(v, decimals, row.offloads()) }

// Cost is a cost of our own in microseconds, rounded up to a tenth.
func Cost(us float64) string { return toSide(us, 1, true) }

// toSide rounds up or down to a number of decimals; what has no more of them stays as it is.
func toSide(v float64, decimals int, up bool) string {
	const slack = 1e-6 // of the last decimal: less than what a report's figures have, more than what a float64's lack
	scale := math.Pow10(decimals)
	if up {
		return fixed(max(0, math.Ceil(v*scale-slack)/scale), decimals) // max: no -0
	}
	return fixed(math.Floor(v*scale+slack)/scale, decimals)
}

// WriteTimes writes how long the rows' first and last bytes took, and what the link has dropped.
func (r *Report) WriteTimes(w io.Writer) error {
	t := grid{
		heads: [][]string{
			{"ms to", "", "", "first byte", "", "", "last byte", "", "", "dropped by"},
			{"arm", "case", "n", "median", "p99", "IQR", "median", "p99", "IQR", "the link"},
		},
		left: []bool{0: true, 1: true, 9: true},
	}
	for _, row := range r.Rows {
		ms := func(us float64) string {
			if us < 10_000 { // of a small response every microsecond counts
				return row.cost(us/1000, 3)
			}
			return row.cost(us/1000, 1)
		}
		t.add(row.Drops.lines(), row.Arm, row.Case, strconv.Itoa(row.N), ms(row.FirstByteUs), ms(row.FirstByteP99Us), ms(row.FirstByteIQRUs),
			ms(row.MedianUs), ms(row.P99Us), ms(row.IQRUs))
	}
	var b strings.Builder
	t.write(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSteps writes what the parts of a handover, a handback or a request cost.
func (r *Report) writeSteps(b *strings.Builder) {
	t := grid{heads: [][]string{{"arm", "case", "step", "median", "p99"}}, left: []bool{true, true, true, false, false}}
	for _, row := range r.Rows {
		for _, name := range slices.Sorted(maps.Keys(row.Steps)) {
			step := row.Steps[name]
			t.add(nil, row.Arm, row.Case, name, Cost(step.MedianUs)+"us", Cost(step.P99Us)+"us")
		}
	}
	if len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(b)
	}
}

// writeProcesses writes what the programs took. Columns that nothing is known for are left out.
func (r *Report) writeProcesses(b *strings.Builder) {
	kB := func(n int64) string { return known(fixed(float64(n)/1000, 0), n != 0) }
	number := func(n int) string { return known(strconv.Itoa(n), n != 0) }
	columns := []struct {
		head string
		cell func(Process) string
	}{
		{"cpu s/GB", func(p Process) string { return known(fixed(p.CPUSecondsPerGB, 3), p.CPUSecondsPerGB != 0) }},
		{"RSS kB", func(p Process) string { return kB(p.RSSBytes) }},
		{"PSS kB", func(p Process) string { return kB(p.PSSBytes) }},
		{"heap kB", func(p Process) string { return kB(p.HeapBytes) }},
		{"stacks kB", func(p Process) string { return kB(p.StackBytes) }},
		{"bytes/lease", func(p Process) string { return known(count(p.RSSBytesPerLease), p.RSSBytesPerLease != 0) }},
		{"goroutines", func(p Process) string { return number(p.Goroutines) }},
		{"threads", func(p Process) string { return number(p.Threads) }},
		{"files", func(p Process) string { return number(p.OpenFiles) }},
		{"media", func(p Process) string { return number(p.MediaFiles) }},
	}
	t := grid{heads: [][]string{{"arm", "case", "leases", "process"}}, left: []bool{0: true, 1: true, 2: false, 3: true}}
	for _, c := range columns {
		used := slices.ContainsFunc(r.Rows, func(row Row) bool {
			for _, p := range row.Processes {
				if c.cell(p) != "" {
					return true
				}
			}
			return false
		})
		if used {
			t.heads[0], t.left = append(t.heads[0], c.head), append(t.left, false)
		}
	}
	for _, row := range r.Rows {
		for _, name := range slices.Sorted(maps.Keys(row.Processes)) {
			cells := []string{row.Arm, row.Case, number(row.Leases), name}
			for _, c := range columns {
				if slices.Contains(t.heads[0][4:], c.head) {
					cells = append(cells, c.cell(row.Processes[name]))
				}
			}
			t.add(nil, cells...)
		}
	}
	if len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(b)
	}
}

// writeMachine writes where the machine's CPU time went, and TCP's timeouts.
func (r *Report) writeMachine(b *strings.Builder) {
	t := grid{heads: [][]string{{"arm", "case", "machine, cpu s/GB"}}, left: []bool{true, true, true}}
	for _, row := range r.Rows {
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(row.Machine)) {
			parts = append(parts, name+" "+fixed(row.Machine[name], 3))
		}
		if len(parts) > 0 {
			t.add(nil, row.Arm, row.Case, strings.Join(parts, ", "))
		}
	}
	if len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(b)
	}
	for _, row := range r.Rows {
		for _, ns := range slices.Sorted(maps.Keys(row.TCPTimeouts)) {
			fmt.Fprintf(b, "\n%s, %s: %d TCP retransmission timeouts of the %s", row.Arm, row.Case, row.TCPTimeouts[ns], ns)
		}
		if len(row.TCPTimeouts) > 0 {
			b.WriteByte('\n')
		}
	}
}

// known is s, or nothing.
func known(s string, ok bool) string {
	if ok {
		return s
	}
	return ""
}

// lines wraps the reasons into what the table has room for.
func (c Counts) lines() []string {
	const room = 19 // what the other columns, at their usual widths, leave of tableWidth
	var lines []string
	for _, reason := range slices.Sorted(maps.Keys(c)) {
		if c[reason] == 0 {
			continue
		}
		entry := fmt.Sprintf("%s %d", reason, c[reason])
		last := len(lines) - 1
		if last >= 0 && len(lines[last])+len(", ")+len(entry) <= room {
			lines[last] += ", " + entry
		} else {
			lines = append(lines, entry)
		}
	}
	if lines == nil {
		lines = []string{"-"}
	}
	return lines
}

// grid is a table with aligned columns.
type grid struct {
	heads [][]string
	left  []bool // columns that are aligned left; the others are numbers
	rows  [][]string
}

// add adds a row; its last column, if there are lines for it, continues below.
func (g *grid) add(lines []string, cells ...string) {
	if len(lines) == 0 {
		g.rows = append(g.rows, cells)
		return
	}
	for i, line := range lines {
		if i > 0 {
			cells = make([]string, len(cells))
		}
		g.rows = append(g.rows, append(slices.Clone(cells), line))
	}
}

func (g *grid) write(b *strings.Builder) {
	all := slices.Concat(g.heads, g.rows)
	widths := make([]int, len(g.left))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if g.left[i] {
				line.WriteString(cell + pad)
			} else {
				line.WriteString(pad + cell)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

func fixed(v float64, decimals int) string { return strconv.FormatFloat(v, 'f', decimals, 64) }

func count(n int64) string { return strconv.FormatInt(n, 10) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
