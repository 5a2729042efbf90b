package figures

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"spillway/internal/bench"
)

// plots makes the figures that a report has data for.
func plots(r *bench.Report) ([]Plot, error) {
	var all []Plot
	for _, make := range []func(*bench.Report) (Plot, bool, error){bandwidthBySize, crossoverPlot, elapsedBySet, bandwidthOverTime, byConnections, cpuPerGB, copiesPlot} {
		p, ok, err := make(r)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// lines draws a line for each arm through what point says of a row.
func lines(p *plot.Plot, rows []bench.Row, point func(bench.Row) (x float64, y bench.Interval, ok bool)) error {
	for _, arm := range arms(rows) {
		var s series
		for _, row := range rows {
			if row.Arm != arm {
				continue
			}
			if x, y, ok := point(row); ok {
				s.add(x, y)
			}
		}
		if err := s.draw(p, arm, true); err != nil {
			return err
		}
	}
	return nil
}

// bandwidthBySize is the seed's figure 3.
func bandwidthBySize(r *bench.Report) (Plot, bool, error) {
	rows := bySize(published(r))
	if r.Bench != "micro" && r.Bench != "request" || len(cases(rows)) < 2 {
		return Plot{}, false, nil
	}
	p := newPlot("Bandwidth by file size ("+condition(r.Env)+")", "file size", "bandwidth, MB/s")
	logX(p, sizeTicks(rows))
	logY(p)
	p.Legend.Top = false // the lines rise: there is room below their right ends
	err := lines(p, rows, func(row bench.Row) (float64, bench.Interval, bool) {
		return float64(row.CaseBytes), rate(row), rate(row).Low > 0
	})
	return Plot{fileName(r.Bench+"-bandwidth", r), "Bandwidth by file size; the seed's figure 3", p}, true, err
}

// crossoverPlot shows from which size each arm pays.
func crossoverPlot(r *bench.Report) (Plot, bool, error) {
	rows := bySize(published(r))
	if r.Bench != "micro" && r.Bench != "request" || len(cases(rows)) < 2 || !slices.Contains(arms(rows), bench.ArmVM) {
		return Plot{}, false, nil
	}
	p := newPlot("Where offloading pays ("+condition(r.Env)+")", "file size", "bandwidth, times that of vm")
	logX(p, sizeTicks(rows))
	logY(p)
	legendLeft(p)
	others := slices.DeleteFunc(slices.Clone(rows), func(row bench.Row) bool { return row.Arm == bench.ArmVM })
	err := lines(p, others, func(row bench.Row) (float64, bench.Interval, bool) {
		base, ok := of(rows, bench.ArmVM, row.Case)
		if !ok || rate(base).Median == 0 || rate(row).Median == 0 {
			return 0, bench.Interval{}, false
		}
		times := rate(row).Median / rate(base).Median
		return float64(row.CaseBytes), bench.Interval{Median: times, Low: times, High: times}, true
	})
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.LineStyle = draw.LineStyle{Color: grey, Width: vg.Points(0.6)}
	p.Add(one)
	roomForLegend(p, 4)
	return Plot{fileName(r.Bench+"-crossover", r), "Bandwidth compared with the VM's own: above 1 an arm is faster", p}, true, err
}

// categories draws the arms side by side within each case.
func categories(p *plot.Plot, rows []bench.Row, value func(bench.Row) bench.Interval) error {
	names, all := cases(rows), arms(rows)
	const width = 0.7 // of the distance between two cases
	for i, arm := range all {
		var s series
		for j, name := range names {
			if row, ok := of(rows, arm, name); ok && value(row).Low > 0 {
				s.add(float64(j)+width*(float64(i)+0.5)/float64(len(all))-width/2, value(row))
			}
		}
		if err := s.draw(p, arm, false); err != nil {
			return err
		}
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(names))-0.5
	p.Y.Min /= 1.2 // no marker on the axis
	roomForLegend(p, 3)
	logY(p)
	return nil
}

// elapsedBySet is the seed's figure 4.
func elapsedBySet(r *bench.Report) (Plot, bool, error) {
	rows := slices.DeleteFunc(published(r), func(row bench.Row) bool { return row.Playback != nil })
	if r.Bench != "dash" && r.Bench != "demo" || len(rows) == 0 {
		return Plot{}, false, nil
	}
	p := newPlot("Elapsed time by data set ("+condition(r.Env)+")", "data set", "elapsed time, s")
	return Plot{fileName(r.Bench+"-elapsed", r), "Time to stream all segments of a data set over one connection; the seed's figure 4", p}, true,
		categories(p, rows, elapsed)
}

// byConnections shows what many connections together get.
func byConnections(r *bench.Report) (Plot, bool, error) {
	rows := published(r)
	if r.Bench != "concurrency" || len(cases(rows)) < 2 {
		return Plot{}, false, nil
	}
	p := newPlot("Bandwidth by number of connections ("+condition(r.Env)+")", "connections at the same time", "bandwidth of all together, MB/s")
	var ticks []plot.Tick
	for _, row := range rows {
		ticks = append(ticks, plot.Tick{Value: float64(row.Connections), Label: fmt.Sprint(row.Connections)})
	}
	logX(p, slices.CompactFunc(ticks, func(a, b plot.Tick) bool { return a == b }))
	logY(p)
	legendLeft(p)
	err := lines(p, rows, func(row bench.Row) (float64, bench.Interval, bool) {
		return float64(row.Connections), rate(row), rate(row).Low > 0
	})
	roomForLegend(p, 4)
	return Plot{fileName("concurrency-bandwidth", r), "Bandwidth of all connections together", p}, true, err
}

// farApart are downloads one of which takes that many times as long as the other.
const farApart = 5

// markersOverTime are enough to tell the lines apart.
const markersOverTime = 10

// over draws a line with some markers on it.
func over(p *plot.Plot, arm string, all, marked series) error {
	line, err := plotter.NewLine(all.XYs)
	if err != nil {
		return err
	}
	line.LineStyle = styleOf(arm).line()
	points, err := plotter.NewScatter(marked.XYs)
	if err != nil {
		return err
	}
	points.GlyphStyle = styleOf(arm).marker()
	p.Add(line, points)
	p.Legend.Add(arm, line, points)
	return nil
}

// bandwidthOverTime draws the first case that has timelines.
func bandwidthOverTime(r *bench.Report) (Plot, bool, error) {
	rows := slices.DeleteFunc(published(r), func(row bench.Row) bool { return row.Timeline == nil || row.Timeline.IntervalMs <= 0 })
	if len(rows) == 0 {
		return Plot{}, false, nil
	}
	rows = slices.DeleteFunc(rows, func(row bench.Row) bool { return row.Case != rows[0].Case })
	p := newPlot(fmt.Sprintf("Bandwidth over time, %s (%s)", rows[0].Case, condition(r.Env)), "time since the start, s", "bandwidth, MB/s")
	shortest, longest := math.Inf(1), 0.0
	for _, arm := range arms(rows) {
		row, _ := of(rows, arm, rows[0].Case)
		var line, marked series
		length := row.Timeline.IntervalMs * float64(len(row.Timeline.Bytes))
		shortest, longest = min(shortest, length), max(longest, length)
		seconds := row.Timeline.IntervalMs / 1000
		for i, bytes := range row.Timeline.Bytes {
			v := float64(bytes) / 1e6 / seconds
			at := bench.Interval{Median: v, Low: v, High: v}
			line.add((float64(i)+0.5)*seconds, at)
			if i%(len(row.Timeline.Bytes)/markersOverTime+1) == 0 {
				marked.add((float64(i)+0.5)*seconds, at)
			}
		}
		if err := over(p, arm, line, marked); err != nil {
			return Plot{}, false, err
		}
	}
	if longest > farApart*shortest { // else the fast arms share a few millimetres
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
	}
	p.Y.Min = 0
	roomForLegend(p, 1.6)
	return Plot{fileName(r.Bench+"-over-time", r), "Bandwidth over time, one pass of each arm: " + rows[0].Case, p}, true, nil
}
