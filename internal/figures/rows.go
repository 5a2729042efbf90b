package figures

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"spillway/internal/bench"
)

// published are the rows of a report that its bench has not refused, and that are about something.
func published(r *bench.Report) []bench.Row {
	return slices.DeleteFunc(slices.Clone(r.Rows), func(row bench.Row) bool { return row.Refused != "" || row.N == 0 })
}

// arms of rows, in the order of the legends.
func arms(rows []bench.Row) []string {
	var names []string
	for _, row := range rows {
		if !slices.Contains(names, row.Arm) {
			names = append(names, row.Arm)
		}
	}
	rank := func(arm string) int {
		if i := slices.Index(armOrder, arm); i >= 0 {
			return i
		}
		return len(armOrder)
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	return names
}

// cases of rows, in their order.
func cases(rows []bench.Row) []string {
	var names []string
	for _, row := range rows {
		if !slices.Contains(names, row.Case) {
			names = append(names, row.Case)
		}
	}
	return names
}

// of finds a row.
func of(rows []bench.Row, arm, dataCase string) (bench.Row, bool) {
	i := slices.IndexFunc(rows, func(r bench.Row) bool { return r.Arm == arm && r.Case == dataCase })
	if i < 0 {
		return bench.Row{}, false
	}
	return rows[i], true
}

// rate is a row's bandwidth with its interval, in MB/s: of its passes, or if it has none of all requests together.
func rate(row bench.Row) bench.Interval {
	if row.Spread != nil && row.Spread.MBPerS.Median > 0 {
		return row.Spread.MBPerS
	}
	return bench.Interval{Median: row.MBPerS, Low: row.MBPerS, High: row.MBPerS}
}

// elapsed is the time of a pass, in seconds.
func elapsed(row bench.Row) bench.Interval {
	if row.Spread != nil && row.Spread.Rounds > 0 {
		return row.Spread.ElapsedS
	}
	return bench.Interval{Median: row.ElapsedS, Low: row.ElapsedS, High: row.ElapsedS}
}

// bySize are the rows whose bodies are of one size, the smallest first.
func bySize(rows []bench.Row) []bench.Row {
	sized := slices.DeleteFunc(slices.Clone(rows), func(r bench.Row) bool { return r.CaseBytes == 0 })
	slices.SortStableFunc(sized, func(a, b bench.Row) int { return cmp.Compare(a.CaseBytes, b.CaseBytes) })
	return sized
}

// condition says in words where a report was measured.
func condition(env bench.Env) string {
	guest := map[string]string{"tcg": "VM under TCG", "kvm": "VM under KVM", "none": "namespaces, no VM", "unknown": "servers that were there"}[env.Accelerator]
	link := env.Link
	switch {
	case link == "unshaped":
		link = "link unshaped"
	case link != "":
		link = "link " + link
	}
	return strings.Join(slices.DeleteFunc([]string{cmp.Or(guest, env.Accelerator), link}, func(s string) bool { return s == "" }), ", ")
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// fileName of a plot, without its end.
func fileName(what string, r *bench.Report) string {
	return strings.Trim(notInNames.ReplaceAllString(strings.ToLower(fmt.Sprintf("%s-%s-%s", what, r.Env.Accelerator, r.Env.Link)), "-"), "-")
}
