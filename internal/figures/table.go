package figures

import (
	"fmt"
	"slices"
	"strings"

	"spillway/internal/bench"
)

// markdownTable is one with its first column aligned left and the others right.
func markdownTable(heads []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(heads)
	b.WriteString("|---|" + strings.Repeat("---:|", len(heads)-1) + "\n")
	for _, r := range rows {
		line(r)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// tables of a report: one of the arms, and those that are its bench's own.
func tables(r *bench.Report) []string {
	rows := published(r)
	if len(rows) == 0 {
		return nil
	}
	players := slices.DeleteFunc(slices.Clone(rows), func(row bench.Row) bool { return row.Playback == nil })
	others := slices.DeleteFunc(rows, func(row bench.Row) bool { return row.Playback != nil })
	var all []string
	switch {
	case len(others) == 0:
	case r.Bench == "dash" || r.Bench == "demo":
		all = append(all, "Elapsed, s; a dash where a figure is missing or refused.\n\n"+armTable(others, passSeconds, 2, false))
		all = appendTable(all, "Time to the first byte of a response, ms: median (99 % are below).", timesTable(others, firstByte))
	case r.Bench == "cpu":
		all = append(all, cpuTable(others))
	case r.Bench == "cache":
		all = appendTable(all, "A hit: the lease over a complete cache share beside the lease over a directory, passes in turns.", hitTable(others))
		all = appendTable(all, "Two VMs that serve one working set, each from its own page cache (`vm`) or by leases from the host's (`lease`). The hit ratio is of bytes, in the cache that\n"+
			"the media are sent from: the guest's, or the host's.", memoryTable(others))
	case r.Bench == "miss":
		all = appendTable(all, "Time to the first byte of the body, ms: median (99 % are below).", timesTable(others, firstByte))
		all = append(all, "MB/s of one file, medians.\n\n"+armTable(others, func(row bench.Row) float64 { return rate(row).Median }, 0, true))
	case r.Bench == "path":
		all = appendTable(all, "Time to the last byte of a response, ms: median (99 % are below). warm-up: the first of a connection, by the server's own kernel in every arm; first: the next, which\n"+
			"`lease` and `offload` hand the connection over for; following: the others.", timesTable(others, lastByte))
		all = appendTable(all, "Time to its first byte, ms.", timesTable(others, firstByte))
	case r.Bench == "handover" || r.Bench == "idle":
		all = appendTable(all, "Time of a request, ms: median (99 % are below).", timesTable(others, lastByte))
		all = appendTable(all, "Steps of a handover and a handback, µs: median (99 % are below).", stepTable(others))
	default:
		all = append(all, "MB/s; a dash where a figure is missing or refused.\n\n"+armTable(others, func(row bench.Row) float64 { return rate(row).Median }, 1, true))
	}
	if len(players) > 0 {
		all = append(all, playerTable(players))
	}
	return all
}

// appendTable adds a table with its caption, unless it is empty.
func appendTable(all []string, caption, table string) []string {
	if table == "" {
		return all
	}
	return append(all, caption+"\n\n"+table)
}

// ratios of the tables: the first arm to the second.
var ratios = [][2]string{{"lease", "vm"}, {"lease", "nginx-vm"}, {"lease", "nginx-host"}, {"lease", "baremetal"}, {"offload", "vm"}, {"cache", "plain"}, {"cache", "curl"}}

// armTable has a row for each case, a column for each arm, and how much better the first arm of each ratio is than the second.
func armTable(rows []bench.Row, value func(bench.Row) float64, decimals int, moreIsBetter bool) string {
	all := arms(rows)
	heads := append([]string{""}, all...)
	compared := slices.DeleteFunc(slices.Clone(ratios), func(p [2]string) bool { return !slices.Contains(all, p[0]) || !slices.Contains(all, p[1]) })
	for _, p := range compared {
		heads = append(heads, fmt.Sprintf("%s to %s", p[0], p[1]))
	}
	var lines [][]string
	for _, name := range cases(rows) {
		cells := []string{name}
		of := func(arm string) float64 {
			if row, ok := of(rows, arm, name); ok {
				return value(row)
			}
			return 0
		}
		for _, arm := range all {
			cells = append(cells, orDash(of(arm), decimals, ""))
		}
		for _, p := range compared {
			times := 0.0
			if a, b := of(p[0]), of(p[1]); a > 0 && b > 0 {
				times = a / b
				if !moreIsBetter {
					times = b / a
				}
			}
			cells = append(cells, orDash(times, 2, "×"))
		}
		lines = append(lines, cells)
	}
	note := ""
	if len(compared) > 0 {
		note = "\n\nThe last columns say how many times better the first arm is than the second."
	}
	return markdownTable(heads, lines) + note
}

func orDash(v float64, decimals int, unit string) string {
	if v <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f%s", decimals, v, unit)
}

// crossoverTable compares, for each report with several sizes, the size from which an arm was faster than the VM with what the model says of it.
func crossoverTable(reports []*bench.Report) string {
	var lines [][]string
	for _, r := range reports {
		rows := bySize(published(r))
		if r.Bench != "micro" && r.Bench != "request" {
			continue
		}
		base, ok := FitCost(ofArm(rows, bench.ArmVM))
		if !ok {
			continue
		}
		for _, arm := range []string{"offload", "lease"} {
			c, ok := FitCost(ofArm(rows, arm))
			if !ok {
				continue
			}
			extra := c.FixedS - base.FixedS
			measured, pays := measuredCrossover(rows, arm, bench.ArmVM)
			model, modelPays := Crossover(extra, base.BytesPerSec, c.BytesPerSec)
			lines = append(lines, []string{arm + ", " + condition(r.Env), fmt.Sprintf("%.0f", extra*1e6), fmt.Sprintf("%.0f", base.BytesPerSec/1e6),
				fmt.Sprintf("%.0f", c.BytesPerSec/1e6), crossoverName(model, modelPays), crossoverName(measured, pays)})
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return markdownTable([]string{"", "extra time, µs", "B_vm, MB/s", "B_host, MB/s", "crossover by the model", "measured"}, lines) +
		"\n\nTimes and bandwidths are fits to the medians of all sizes."
}

func ofArm(rows []bench.Row, arm string) []bench.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r bench.Row) bool { return r.Arm != arm })
}

func crossoverName(bytes float64, pays bool) string {
	switch {
	case !pays:
		return "never"
	case bytes < 1:
		return "always"
	}
	return sizeName(float64(int64(bytes)))
}

// handoverStep is the name of the step that is a handover and a handback.
const handoverStep = "round_trip"

// predictionTable fills the model in for KVM. It is empty unless a handover and the host's bandwidth on an unshaped link were measured.
func predictionTable(reports []*bench.Report) string {
	var handovers []float64
	var host float64
	for _, r := range reports {
		rows := published(r)
		for _, row := range rows {
			if step := row.Steps[handoverStep]; r.Bench == "handover" && row.Arm == "offload" && step.MedianUs > 0 {
				handovers = append(handovers, step.MedianUs/1e6)
			}
		}
		if c, ok := FitCost(ofArm(bySize(rows), bench.ArmBareMetal)); ok && r.Env.Link == "unshaped" && (r.Bench == "micro" || r.Bench == "request") {
			host = max(host, c.BytesPerSec)
		}
	}
	if len(handovers) == 0 || host == 0 {
		return ""
	}
	slices.Sort(handovers)
	handovers = slices.Compact([]float64{handovers[0], handovers[len(handovers)-1]})
	var lines [][]string
	for _, p := range Predict(host, handovers) {
		lines = append(lines, []string{fmt.Sprintf("%g Gbit/s", p.LinkGbit), fmt.Sprintf("%.0f %%", 100*p.VMShare), fmt.Sprintf("%.0f", p.HandoverS*1e6),
			crossoverName(p.SizeBytes, p.Pays)})
	}
	return fmt.Sprintf("B_host without a link: %.0f MB/s.\n\n", host/1e6) +
		markdownTable([]string{"link (prediction)", "VM's share of B_host, assumed", "handover and handback, µs, measured", "crossover, predicted"}, lines)
}
