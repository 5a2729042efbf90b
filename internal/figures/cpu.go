package figures

import (
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"spillway/internal/bench"
)

// processFills are how the parts of a bar are told apart, in print as well: dark, white and between.
var processFills = map[string]color.Color{"server": grey, "host": vermilion, "qemu": color.White}

// cpuPerGB compares the arms' CPU time: a bar for each arm, of the processes that work for it. A report of several sizes has the figure of its last.
func cpuPerGB(r *bench.Report) (Plot, bool, error) {
	var rows []bench.Row
	for _, row := range published(r) {
		if cpuSeconds(row) > 0 {
			rows = append(rows, row)
		}
	}
	if r.Bench != "cpu" || len(rows) == 0 {
		return Plot{}, false, nil
	}
	name := rows[len(rows)-1].Case
	p := newPlot("CPU time for each GB sent, files of "+name+" ("+condition(r.Env)+")", "arm", "CPU time of its processes, s/GB")
	all := arms(rows)
	var below *plotter.BarChart
	for _, process := range processNames {
		fill, part := processFills[process.name]
		if !part {
			continue
		}
		values, any := make(plotter.Values, len(all)), false
		for i, arm := range all {
			row, _ := of(rows, arm, name)
			values[i] = row.Processes[process.name].CPUSecondsPerGB
			any = any || values[i] > 0
		}
		if !any {
			continue
		}
		bars, err := plotter.NewBarChart(values, vg.Points(32))
		if err != nil {
			return Plot{}, false, err
		}
		bars.Color, bars.LineStyle = fill, draw.LineStyle{Color: black, Width: vg.Points(0.8)}
		if below != nil {
			bars.StackOn(below)
		}
		below = bars
		p.Add(bars)
		p.Legend.Add(process.title, bars)
	}
	if err := sums(p, rows, all, name); err != nil {
		return Plot{}, false, err
	}
	p.NominalX(all...)
	p.X.Min, p.X.Max = -0.5, float64(len(all))-0.5
	legendLeft(p)
	p.Y.Min = 0
	roomForLegend(p, 1.25)
	return Plot{fileName("cpu-per-gb", r), "CPU time for each GB sent", p}, true, nil
}

// sums writes each bar's length above it.
func sums(p *plot.Plot, rows []bench.Row, all []string, name string) error {
	labels := plotter.XYLabels{}
	for i, arm := range all {
		if row, ok := of(rows, arm, name); ok {
			labels.XYs = append(labels.XYs, plotter.XY{X: float64(i), Y: cpuSeconds(row)})
			labels.Labels = append(labels.Labels, orDash(cpuSeconds(row), 2, ""))
		}
	}
	l, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	l.Offset.Y = vg.Points(3)
	for i := range l.TextStyle {
		l.TextStyle[i].XAlign = draw.XCenter
	}
	p.Add(l)
	return nil
}
