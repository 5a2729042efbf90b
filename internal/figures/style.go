package figures

import (
	"hash/fnv"
	"image/color"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// style is how an arm is drawn, the same in every plot.
type style struct {
	color  color.RGBA
	glyph  draw.GlyphDrawer
	dashes []vg.Length
}

// glyphSize is the radius of a marker.
const glyphSize = 3.2

// Colours that are told apart by people with any kind of colour vision: M. Okabe and K. Ito, Color Universal Design, 2008.
var (
	black     = color.RGBA{A: 255}
	orange    = color.RGBA{230, 159, 0, 255}
	skyBlue   = color.RGBA{86, 180, 233, 255}
	green     = color.RGBA{0, 158, 115, 255}
	blue      = color.RGBA{0, 114, 178, 255}
	vermilion = color.RGBA{213, 94, 0, 255}
	purple    = color.RGBA{204, 121, 167, 255}
	brown     = color.RGBA{120, 60, 20, 255}  // darker than vermilion, for its nearest relative
	olive     = color.RGBA{150, 135, 20, 255} // their yellow, dark enough for paper
	grey      = color.RGBA{110, 110, 110, 255}
)

// armOrder is the order of the legends and tables; other arms follow in the order of the report.
var armOrder = []string{"baremetal", "nginx-host", "lease", "lease-cache", "offload", "vm", "vm-cold", "vm-virtiofs", "vm-tmpfs", "nginx-vm"}

// styles of the arms.
var styles = map[string]style{
	"baremetal":   {black, draw.SquareGlyph{}, []vg.Length{6, 3}},
	"nginx-host":  {grey, draw.CrossGlyph{}, []vg.Length{2, 2}},
	"lease":       {vermilion, draw.CircleGlyph{}, nil},
	"lease-cache": {brown, diamondRing{}, []vg.Length{6, 3}},
	"offload":     {blue, draw.TriangleGlyph{}, nil},
	"vm":          {green, draw.BoxGlyph{}, nil},
	"vm-cold":     {skyBlue, draw.PyramidGlyph{}, []vg.Length{4, 2, 1, 2}},
	"vm-tmpfs":    {purple, draw.RingGlyph{}, []vg.Length{4, 2, 1, 2}},
	"vm-virtiofs": {olive, diamondGlyph{}, []vg.Length{2, 2}},
	"nginx-vm":    {orange, draw.PlusGlyph{}, []vg.Length{2, 2}},
}

// diamondGlyph is a filled square that stands on a corner, diamondRing one that is not filled.
type (
	diamondGlyph struct{}
	diamondRing  struct{}
)

// DrawGlyph implements draw.GlyphDrawer.
func (diamondGlyph) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	c.SetColor(style.Color)
	c.Fill(diamond(at, style.Radius))
}

// DrawGlyph implements draw.GlyphDrawer.
func (diamondRing) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	c.SetLineStyle(draw.LineStyle{Color: style.Color, Width: vg.Points(0.8)})
	c.Stroke(diamond(at, style.Radius))
}

func diamond(at vg.Point, r vg.Length) vg.Path {
	var p vg.Path
	p.Move(vg.Point{X: at.X - r, Y: at.Y})
	p.Line(vg.Point{X: at.X, Y: at.Y - r})
	p.Line(vg.Point{X: at.X + r, Y: at.Y})
	p.Line(vg.Point{X: at.X, Y: at.Y + r})
	p.Close()
	return p
}

// spare styles are for arms of a name that is not known, as those of --target.
var spare = []style{
	{blue, draw.CircleGlyph{}, nil}, {vermilion, draw.SquareGlyph{}, []vg.Length{6, 3}}, {green, draw.PyramidGlyph{}, []vg.Length{2, 2}},
	{purple, draw.CrossGlyph{}, []vg.Length{4, 2, 1, 2}},
}

func styleOf(arm string) style {
	if s, ok := styles[arm]; ok {
		return s
	}
	h := fnv.New32a()
	h.Write([]byte(arm))
	return spare[h.Sum32()%uint32(len(spare))]
}

func (s style) line() draw.LineStyle {
	return draw.LineStyle{Color: s.color, Width: vg.Points(1.2), Dashes: s.dashes}
}

func (s style) marker() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.color, Radius: vg.Points(glyphSize), Shape: s.glyph}
}
