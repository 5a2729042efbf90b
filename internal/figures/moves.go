package figures

import (
	"errors"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Moves is what clients received while a VM moved between hosts.
type Moves struct {
	Condition string // where it was measured, in words
	Interval  time.Duration
	Bytes     []int64   // in each interval, of all clients
	Moves     [][]Phase // of each move, in their order
	Typical   int       // the move to show by itself
}

// Phase of a move, since the first interval's beginning.
type Phase struct {
	Name     string
	From, To time.Duration
}

// phaseColors are pale: the line lies over them. Neighbours differ in brightness, too.
var phaseColors = []color.RGBA{
	{235, 235, 235, 255}, {205, 205, 205, 255}, {215, 235, 250, 255}, {250, 225, 170, 255}, {235, 160, 130, 255}, {200, 230, 215, 255},
}

// Bins of the two plots, and what the second shows of the time around a move's last steps.
const (
	allMovesBin  = 200 * time.Millisecond
	oneMoveBin   = 40 * time.Millisecond
	aroundSwitch = 1500 * time.Millisecond
)

// WriteMoves plots bandwidth over time below dir, with the phases of the moves: all of it, and the last steps of a typical move. It returns the files' names.
func WriteMoves(dir string, m Moves) (names []string, err error) {
	if len(m.Moves) == 0 || m.Typical < 0 || m.Typical >= len(m.Moves) || len(m.Moves[m.Typical]) == 0 || len(m.Bytes) == 0 || m.Interval <= 0 {
		return nil, errors.New("there is no move to plot")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	end := time.Duration(len(m.Bytes)) * m.Interval
	one := m.Moves[m.Typical]
	last := one[len(one)-1]
	from := last.To - aroundSwitch
	for _, p := range one {
		if p.Name == "precopy" {
			from = p.To - aroundSwitch/2
		}
	}
	for _, part := range []struct {
		name, title string
		from, to    time.Duration
		bin         time.Duration
	}{
		{"migrate-over-time", "Bandwidth while a VM moves there and back", 0, end, allMovesBin},
		{"migrate-one-move", "Bandwidth around the switch of one move", max(from, 0), min(last.To+aroundSwitch/2, end), oneMoveBin},
	} {
		p := newPlot(part.title+" ("+m.Condition+")", "time since the start, s", "bandwidth of all clients, MB/s")
		if err := m.draw(p, part.from, part.to, part.bin); err != nil {
			return nil, err
		}
		if err := (Plot{Name: part.name, plot: p}).save(dir); err != nil {
			return nil, err
		}
		names = append(names, filepath.Join(dir, part.name+".svg"), filepath.Join(dir, part.name+".png"))
	}
	return names, nil
}

// draw adds the phases and the line of a part of the time.
func (m Moves) draw(p *plot.Plot, from, to, bin time.Duration) error {
	line := m.bandwidth(from, to, bin)
	_, _, _, top := plotter.XYRange(line)
	top *= 1.25 // room for the legend
	var known []string
	for _, move := range m.Moves {
		for _, phase := range move {
			a, b := max(phase.From, from).Seconds(), min(phase.To, to).Seconds()
			if a >= b {
				continue
			}
			band, err := plotter.NewPolygon(plotter.XYs{{X: a, Y: 0}, {X: b, Y: 0}, {X: b, Y: top}, {X: a, Y: top}})
			if err != nil {
				return err
			}
			i := slices.Index(known, phase.Name)
			first := i < 0
			if first {
				i = len(known)
				known = append(known, phase.Name)
			}
			band.Color, band.LineStyle.Width = phaseColors[i%len(phaseColors)], 0
			p.Add(band)
			if first {
				p.Legend.Add(phase.Name, band)
			}
		}
	}
	drawn, err := plotter.NewLine(line)
	if err != nil {
		return err
	}
	drawn.LineStyle = draw.LineStyle{Color: black, Width: vg.Points(0.8)}
	p.Add(drawn)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = from.Seconds(), to.Seconds(), 0, top
	return nil
}

// bandwidth is MB/s in each bin.
func (m Moves) bandwidth(from, to, bin time.Duration) (points plotter.XYs) {
	per := max(int(bin/m.Interval), 1)
	for i := int(from / m.Interval); i+per <= len(m.Bytes) && time.Duration(i)*m.Interval < to; i += per {
		var bytes int64
		for _, b := range m.Bytes[i : i+per] {
			bytes += b
		}
		seconds := (time.Duration(per) * m.Interval).Seconds()
		points = append(points, plotter.XY{X: (time.Duration(i) * m.Interval).Seconds() + seconds/2, Y: float64(bytes) / 1e6 / seconds})
	}
	return points
}
