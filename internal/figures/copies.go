package figures

import (
	"fmt"
	"slices"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"spillway/internal/bench"
)

// copies are the rows of bench cache that are about memory.
func copies(rows []bench.Row) []bench.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r bench.Row) bool { return r.Memory == nil })
}

// hitTable compares the lease over a cache share with the lease over a directory.
func hitTable(rows []bench.Row) string {
	var lines [][]string
	for _, row := range rows {
		if row.ToLease == nil {
			continue
		}
		base, _ := of(rows, "lease", row.Case)
		in := *row.ToLease
		lines = append(lines, []string{row.Case, orDash(rate(base).Median, 1, ""), orDash(rate(row).Median, 1, ""), fmt.Sprintf("%.3f", in.Median),
			fmt.Sprintf("%.3f to %.3f", in.Low, in.High), fmt.Sprintf("%.0f %%", 100*in.Coverage)})
	}
	if len(lines) == 0 {
		return ""
	}
	return markdownTable([]string{"", "lease, MB/s", "lease-cache, MB/s", "ratio of a round", "between", "with"}, lines)
}

// memoryTable has a row for each working set and arm.
func memoryTable(rows []bench.Row) string {
	var lines [][]string
	mb := func(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/1e6) }
	for _, row := range copies(rows) {
		m := *row.Memory
		lines = append(lines, []string{row.Case + ", " + row.Arm, mb(m.MediaBytes), mb(m.GuestCacheBytes), mb(m.HostCacheBytes), fmt.Sprintf("%.2f", m.PerMedia()),
			mb(m.QEMUBytes - m.QEMUBeforeBytes), fmt.Sprintf("%.3f", m.HitRatio), mb(m.ShareReadBytes), mb(m.DiskReadBytes), orDash(rate(row).Median, 1, "")})
	}
	if len(lines) == 0 {
		return ""
	}
	return markdownTable([]string{"", "media, MB", "guests' page caches, MB", "host's page cache, MB", "bytes for one of media", "QEMUs have grown by, MB", "hit ratio",
		"QEMUs have read, MB", "from disk, MB", "MB/s"}, lines)
}

// copiesPlot draws the page caches of each working set and arm, in bytes for one byte of media.
func copiesPlot(r *bench.Report) (Plot, bool, error) {
	rows := copies(published(r))
	if r.Bench != "cache" || len(rows) == 0 {
		return Plot{}, false, nil
	}
	p := newPlot("Copies of the media in memory, two guests ("+condition(r.Env)+")", "working set, arm", "page cache, bytes for one byte of media")
	var names []string
	host, guests := make(plotter.Values, len(rows)), make(plotter.Values, len(rows))
	highest := 0.0
	for i, row := range rows {
		m := *row.Memory
		names = append(names, row.Case+", "+row.Arm)
		host[i] = float64(m.HostCacheBytes) / float64(max(m.MediaBytes, 1))
		guests[i], highest = m.PerMedia()-host[i], max(highest, m.PerMedia())
	}
	below, err := plotter.NewBarChart(host, vg.Points(32))
	if err != nil {
		return Plot{}, false, err
	}
	above, err := plotter.NewBarChart(guests, vg.Points(32))
	if err != nil {
		return Plot{}, false, err
	}
	above.StackOn(below)
	edge := draw.LineStyle{Color: black, Width: vg.Points(0.8)}
	below.Color, below.LineStyle = processFills["host"], edge
	above.Color, above.LineStyle = processFills["qemu"], edge
	p.Add(below, above)
	p.Legend.Add("guests' page caches", above)
	p.Legend.Add("host's page cache", below)
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(rows))-0.5
	p.Y.Min, p.Y.Max = 0, 1.3*highest
	return Plot{fileName("cache-copies", r), "Copies of the media in memory: page caches of two guests and of their host", p}, true, nil
}
