package figures

import (
	"fmt"
	"slices"

	"spillway/internal/bench"
)

// playerTable shows what players saw.
func playerTable(rows []bench.Row) string {
	var lines [][]string
	for _, arm := range arms(rows) {
		for _, row := range rows {
			if p := row.Playback; row.Arm == arm {
				lines = append(lines, []string{arm, fmt.Sprint(p.Players), fmt.Sprintf("%.0f", p.MeanKbit), fmt.Sprint(p.Stalls), fmt.Sprintf("%.1f", p.StalledS),
					fmt.Sprint(p.Switches), fmt.Sprintf("%.0f", p.StartupMs), orDash(rate(row).Median, 1, "")})
			}
		}
	}
	return "Players, by their own clock: times stalled are of all of them and all rounds.\n\n" + markdownTable([]string{"", "players", "mean bit rate, kbit/s", "times stalled", "stalled, s", "switches", "start, ms", "MB/s"}, lines)
}

// firstByte and lastByte of a response, µs: the median and the 99th percentile.
func firstByte(r bench.Row) (median, p99 float64) { return r.FirstByteUs, r.FirstByteP99Us }
func lastByte(r bench.Row) (median, p99 float64)  { return r.MedianUs, r.P99Us }

// medianP99 shows both.
func medianP99(median, p99, unit float64, decimals int) string {
	if median <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f (%.*f)", decimals, median/unit, decimals, p99/unit)
}

// timesTable has a row for each case and a column for each arm, in ms; it is empty when nothing is known.
func timesTable(rows []bench.Row, times func(bench.Row) (median, p99 float64)) string {
	known := false
	all := arms(rows)
	var lines [][]string
	for _, name := range cases(rows) {
		cells := []string{name}
		for _, arm := range all {
			cell := "–"
			if row, ok := of(rows, arm, name); ok {
				median, p99 := times(row)
				cell = medianP99(median, p99, 1000, 2)
				known = known || median > 0
			}
			cells = append(cells, cell)
		}
		lines = append(lines, cells)
	}
	if !known {
		return ""
	}
	return markdownTable(append([]string{""}, all...), lines)
}

// steps of a handover and a handback as guest.Step names them, in their order. round_trip is all but what the host has the connection for.
var steps = []struct{ name, title string }{
	{"freeze_extract", "guest: freeze, read what is queued, extract"}, {"handover", "the above, channel, restore on the host, channel"},
	{"park_restore", "guest: park, restore in place"}, {"release", "channel, host lets go, channel"}, {"handback", "the two above"},
	{handoverStep, "all, handover and handback, without sending and waiting"},
}

// stepTable has a row for each step and a column for each arm that goes through all of them with each response; others do a few times only.
func stepTable(rows []bench.Row) string {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r bench.Row) bool { return r.Steps[handoverStep].MedianUs == 0 })
	all := arms(rows)
	var lines [][]string
	for _, step := range steps {
		cells, known := []string{step.title}, false
		for _, arm := range all {
			cell := "–"
			if i := slices.IndexFunc(rows, func(r bench.Row) bool { return r.Arm == arm && r.Steps[step.name].MedianUs > 0 }); i >= 0 {
				cell, known = medianP99(rows[i].Steps[step.name].MedianUs, rows[i].Steps[step.name].P99Us, 1, 0), true
			}
			cells = append(cells, cell)
		}
		if known {
			lines = append(lines, cells)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return markdownTable(append([]string{""}, all...), lines)
}

// processNames of the rows of bench cpu, and what people call them.
var processNames = []struct{ name, title string }{{"server", "server"}, {"host", "daemon"}, {"qemu", "QEMU, all of the VM"}, {allProcesses, "together"}}

// cpuTable has a row for each case and arm.
func cpuTable(rows []bench.Row) string {
	var lines [][]string
	for _, name := range cases(rows) {
		for _, arm := range arms(rows) {
			row, ok := of(rows, arm, name)
			if !ok {
				continue
			}
			cells := []string{arm + ", " + name}
			for _, p := range processNames {
				cells = append(cells, orDash(row.Processes[p.name].CPUSecondsPerGB, 3, ""))
			}
			ratio := 0.0
			if base, ok := of(rows, bench.ArmBareMetal, name); ok && cpuSeconds(base) > 0 {
				ratio = cpuSeconds(row) / cpuSeconds(base)
			}
			cells = append(cells, orDash(ratio, 2, "×"), orDash(machineSeconds(row), 3, ""))
			lines = append(lines, cells)
		}
	}
	heads := []string{""}
	for _, p := range processNames {
		heads = append(heads, p.title)
	}
	return "CPU time, seconds for each GB of bodies.\n\n" + markdownTable(append(heads, "to baremetal", "whole machine, client included"), lines)
}

// machineSeconds is the time of all CPUs.
func machineSeconds(r bench.Row) (sum float64) {
	for _, v := range r.Machine {
		sum += v
	}
	return sum
}
