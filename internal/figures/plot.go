package figures

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"spillway/internal/bench"
)

// Size of a plot: the width of a page.
const (
	plotWidth  = 17 * vg.Centimeter
	plotHeight = 10 * vg.Centimeter
	printDPI   = 200
)

// Plot is a figure that has been made.
type Plot struct {
	Name    string // of its files, without .svg and .png
	Caption string
	plot    *plot.Plot
}

// save writes the plot below dir, as SVG and as PNG.
func (p Plot) save(dir string) error {
	picture := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(plotWidth, plotHeight), vgimg.UseDPI(printDPI))}
	p.plot.Draw(draw.New(picture))
	f, err := os.Create(filepath.Join(dir, p.Name+".png"))
	if err != nil {
		return err
	}
	_, err = picture.WriteTo(f)
	return errors.Join(err, f.Close(), p.plot.Save(plotWidth, plotHeight, filepath.Join(dir, p.Name+".svg")))
}

// roomForLegend makes the vertical axis that much longer at its upper end.
func roomForLegend(p *plot.Plot, times float64) { p.Y.Max *= times }

// legendLeft moves the legend to the left, beside the axis.
func legendLeft(p *plot.Plot) { p.Legend.Left, p.Legend.XOffs = true, -p.Legend.XOffs }

// newPlot is an empty one. Its axes have units.
func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Legend.Top = true
	p.Legend.ThumbnailWidth = 28
	p.Legend.XOffs, p.Legend.Padding = -vg.Points(4), vg.Points(1)
	p.X.Tick.Label.Font.Size = vg.Points(9)
	p.Add(plotter.NewGrid())
	return p
}

// series are points with intervals.
type series struct {
	plotter.XYs
	plotter.YErrors
}

func (s *series) add(x float64, y bench.Interval) {
	s.XYs = append(s.XYs, plotter.XY{X: x, Y: y.Median})
	s.YErrors = append(s.YErrors, struct{ Low, High float64 }{y.Median - y.Low, y.High - y.Median})
}

// draw adds the series under an arm's name. Points of a category are not joined.
func (s *series) draw(p *plot.Plot, arm string, joined bool) error {
	if len(s.XYs) == 0 {
		return nil
	}
	look := styleOf(arm)
	points, err := plotter.NewScatter(s.XYs)
	if err != nil {
		return err
	}
	points.GlyphStyle = look.marker()
	bars, err := plotter.NewYErrorBars(s)
	if err != nil {
		return err
	}
	bars.LineStyle = draw.LineStyle{Color: look.color, Width: vg.Points(0.8)}
	if !joined {
		p.Add(points, bars)
		p.Legend.Add(arm, points)
		return nil
	}
	line, err := plotter.NewLine(s.XYs)
	if err != nil {
		return err
	}
	line.LineStyle = look.line()
	p.Add(line, points, bars)
	p.Legend.Add(arm, line, points)
	return nil
}

// logX makes the axis logarithmic, with the sizes as ticks.
func logX(p *plot.Plot, ticks []plot.Tick) {
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(ticks)
}

// logY makes the axis logarithmic.
func logY(p *plot.Plot) { p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks) }

// logTicks are at 1, 2 and 5 of each power of ten.
func logTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.12g", v)})
			}
		}
	}
	return ticks
}

// sizeTicks label the sizes that were measured.
func sizeTicks(rows []bench.Row) []plot.Tick {
	var ticks []plot.Tick
	for _, row := range bySize(rows) {
		if n := len(ticks); n > 0 && ticks[n-1].Value == float64(row.CaseBytes) {
			continue
		}
		ticks = append(ticks, plot.Tick{Value: float64(row.CaseBytes), Label: sizeName(float64(row.CaseBytes))})
	}
	return ticks
}

// sizeName is a size with few digits. KB are 1024 bytes where that is a round number, as in the seed's figure 3.
func sizeName(bytes float64) string {
	switch {
	case bytes >= 1e6:
		return fmt.Sprintf("%.3g MB", bytes/1e6)
	case math.Mod(bytes, 1024) == 0:
		return fmt.Sprintf("%.0f KB", bytes/1024)
	case bytes >= 1e3:
		return fmt.Sprintf("%.3g KB", bytes/1e3)
	}
	return fmt.Sprintf("%.0f B", bytes)
}
