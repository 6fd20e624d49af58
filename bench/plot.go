package main

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// plotsDir holds the plots, beside the raw results that they are made from. The
// same results always give the same bytes, on the same architecture: some
// round a product before they add to it and some do not.
const plotsDir = "plots"

// A drawing is a plot of the results.
type drawing struct {
	name  string // end of its file's name
	title string
	// draw is nil without an error if the results do not have what it shows.
	draw func(*Results) (*canvas, error)
}

// A canvas is a plot with its size.
type canvas struct {
	*plot.Plot
	width, height vg.Length
}

var drawings = []drawing{
	{"cpu", "CPU time per request, to nginx' in the same round", (*Results).drawCPU},
	{"engines", "CPU time per request of 100 B, uring to epoll", (*Results).drawEngines},
	{"latency", "Latency at a given rate", (*Results).drawLatency},
}

const plotWidth = 18 * vg.Centimeter

// plotLabelRoom is behind the names of loads: fonts that stand in for a missing
// one are wider, and would end under the bars.
const plotLabelRoom = "       "

// plotColors are those of programs, by the index in the results. They can be
// told apart by eyes that do not see all colours (Okabe and Ito).
var plotColors = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, color.RGBA{0x56, 0xb4, 0xe9, 0xff}, color.RGBA{0x99, 0x99, 0x99, 0xff},
}

// plotFile is the name of a plot of the results in the file at path.
func plotFile(path string, d *drawing) string {
	return strings.TrimSuffix(filepath.Base(path), ".json") + "-" + d.name + ".svg"
}

// drawAll are all plots of the results in the file at path, by file name.
func (r *Results) drawAll(path string) (map[string][]byte, error) {
	all := map[string][]byte{}
	for i := range drawings {
		d := &drawings[i]
		c, err := d.draw(r)
		if err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
		if c == nil {
			continue
		}
		c.Title.Text = d.title
		if all[plotFile(path, d)], err = c.svg(); err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
	}
	return all, nil
}

// savePlots writes all plots of the results in the file at path.
func (r *Results) savePlots(path string) error {
	all, err := r.drawAll(path)
	if err != nil {
		return err
	}
	dir := filepath.Join(filepath.Dir(path), plotsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writePlots links the plots of the results in the file at path.
func (r *Results) writePlots(w *strings.Builder, path string) {
	for i := range drawings {
		d := &drawings[i]
		if c, err := d.draw(r); err == nil && c != nil { // savePlots tells the error
			fmt.Fprintf(w, "\n![%s](bench/results/%s/%s)\n", d.title, plotsDir, plotFile(path, d))
		}
	}
}

// newCanvas is an empty plot.
func newCanvas(height vg.Length) *canvas {
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.TextStyle.Font = font.From(sans, 12)
	p.Title.Padding = vg.Millimeter * 3
	p.Legend.TextStyle.Font = font.From(sans, 9)
	p.Legend.ThumbnailWidth, p.Legend.Padding = 6*vg.Millimeter, vg.Millimeter
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font = font.From(sans, 10)
		axis.Tick.Label.Font = font.From(sans, 9)
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xdd}, color.Gray{0xdd}
	p.Add(grid)
	return &canvas{p, plotWidth, height}
}

// svg is the plot as a file.
func (c *canvas) svg() ([]byte, error) {
	w, err := c.WriterTo(c.width, c.height, "svg")
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if _, err := w.WriteTo(&text); err != nil {
		return nil, err
	}
	// Where the font is missing, one like it.
	return bytes.ReplaceAll(text.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;")), nil
}

// points are medians with their intervals: the second coordinate is that of the
// figure, however the plot lies.
type points struct {
	at     []float64
	figure []spread
}

func (p *points) add(at float64, values []float64) {
	if len(values) == 0 {
		return
	}
	low, high := bootstrap(values)
	p.at, p.figure = append(p.at, at), append(p.figure, spread{spreadOf(values).median, low, high})
}

func (p *points) Len() int                            { return len(p.at) }
func (p *points) XY(i int) (x, y float64)             { return p.at[i], p.figure[i].median }
func (p *points) YError(i int) (below, above float64) { return p.figure[i].errors() }

// lying are points whose figure is horizontal.
type lying struct{ *points }

func (p lying) XY(i int) (x, y float64)             { return p.figure[i].median, p.at[i] }
func (p lying) XError(i int) (below, above float64) { return p.figure[i].errors() }

// errors are the distances of the median to the ends.
func (s spread) errors() (below, above float64) { return s.median - s.low, s.high - s.median }

// drawCPU has a group of bars for each load, and a bar for each program.
func (r *Results) drawCPU() (*canvas, error) {
	const bar = 2.2 * vg.Millimeter
	var names []string
	var shown []Load
	for _, l := range slices.Backward(r.Loads) { // the first one is on top
		if l.Beside == 0 && len(r.ratios(l.Name, reference, reference, cpuPerRequest.of)) > 0 {
			names, shown = append(names, l.Name+plotLabelRoom), append(shown, l)
		}
	}
	programs := slices.DeleteFunc(slices.Clone(r.Programs), func(p Program) bool { return p.Name == reference })
	if len(shown) == 0 || len(programs) == 0 {
		return nil, nil
	}
	group := float64(len(programs)) + 1.5 // in bars
	height := vg.Length(float64(len(shown))*group)*bar + 3*vg.Centimeter
	c := newCanvas(height)
	c.X.Label.Text, c.X.Min = "ratio, with the interval of its median; less is better", 0
	for i, p := range programs {
		var figures points
		lengths := make(plotter.Values, len(shown))
		offset := (float64(len(programs)-1)/2 - float64(i)) / group
		for k := range shown {
			ratios := values(r.ratios(shown[k].Name, p.Name, reference, cpuPerRequest.of))
			figures.add(float64(k)+offset, ratios)
			if len(ratios) > 0 {
				lengths[k] = spreadOf(ratios).median
			}
		}
		bars, err := plotter.NewBarChart(lengths, bar)
		if err != nil {
			return nil, err
		}
		bars.Horizontal, bars.XMin, bars.Color, bars.LineStyle.Width = true, offset, r.color(p.Name), 0
		whiskers, err := plotter.NewXErrorBars(lying{&figures})
		if err != nil {
			return nil, err
		}
		whiskers.CapWidth = bar / 2
		c.Add(bars, whiskers)
		c.Legend.Add(p.Name, bars)
	}
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(shown)) - 0.5}})
	if err != nil {
		return nil, err
	}
	c.Add(one)
	c.Legend.Add(reference, one)
	c.NominalY(names...)
	c.X.Max *= 1.25 // room for the legend
	return c, nil
}

// color is that of a program in all plots.
func (r *Results) color(program string) color.Color {
	i := slices.IndexFunc(r.Programs, func(p Program) bool { return p.Name == program })
	return plotColors[max(i, 0)%len(plotColors)]
}

// drawEngines has the difference of the engines by the number of connections.
func (r *Results) drawEngines() (*canvas, error) {
	var figures points
	var ticks plot.ConstantTicks
	for _, l := range r.Loads {
		if l.Name != "100 B, "+plural(l.Connections, "connection") {
			continue
		}
		figures.add(float64(l.Connections), values(r.ratios(l.Name, nameRing, nameEpoll, cpuPerRequest.of)))
		ticks = append(ticks, plot.Tick{Value: float64(l.Connections), Label: fmt.Sprint(l.Connections)})
	}
	if len(figures.at) == 0 {
		return nil, nil
	}
	line, dots, err := plotter.NewLinePoints(&figures)
	if err != nil {
		return nil, err
	}
	whiskers, err := plotter.NewYErrorBars(&figures)
	if err != nil {
		return nil, err
	}
	dots.Shape, dots.Color, line.Color = draw.CircleGlyph{}, plotColors[0], plotColors[0]
	c := newCanvas(8 * vg.Centimeter)
	c.X.Label.Text, c.X.Scale, c.X.Tick.Marker = "connections", plot.LogScale{}, ticks
	c.Y.Label.Text = "ratio; below 1 uring costs less"
	c.Add(line, whiskers, dots)
	c.X.Min, c.X.Max = c.X.Min*0.8, c.X.Max*1.25
	one, err := plotter.NewLine(plotter.XYs{{X: c.X.Min, Y: 1}, {X: c.X.Max, Y: 1}})
	if err != nil {
		return nil, err
	}
	c.Add(one)
	return c, nil
}

// drawLatency has two lines for each program: p50, and p99 in dashes.
func (r *Results) drawLatency() (*canvas, error) {
	if r.Open == nil {
		return nil, nil
	}
	c := newCanvas(11 * vg.Centimeter)
	c.X.Label.Text, c.Y.Label.Text = "requests per second", "us; solid: p50, dashes: p99"
	c.Y.Scale, c.Y.Tick.Marker = plot.LogScale{}, decimalTicks{}
	drawn := false
	for i, p := range r.Open.Programs {
		for _, line := range []struct {
			of     func(*OpenRun) float64
			dashes []vg.Length
		}{{openP50, nil}, {openP99, []vg.Length{vg.Points(4), vg.Points(3)}}} {
			points := r.Open.curve(p.Name, line.of)
			if len(points) == 0 {
				continue
			}
			drawn = true
			curve, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return nil, err
			}
			curve.Color, curve.Width, curve.Dashes = plotColors[i%len(plotColors)], vg.Points(1.5), line.dashes
			dots.Color, dots.Shape, dots.Radius = curve.Color, draw.CircleGlyph{}, vg.Points(2)
			c.Add(curve, dots)
			if line.dashes == nil {
				c.Legend.Add(p.Name, curve)
			}
		}
	}
	if !drawn {
		return nil, nil
	}
	c.Legend.Top, c.Legend.Left = true, true
	return c, nil
}

// curve is a figure's median by the median rate, in ascending order of rates.
func (o *OpenResults) curve(program string, f func(*OpenRun) float64) plotter.XYs {
	var list plotter.XYs
	for _, l := range levels {
		x, y := o.figures(l.name, program, func(r *OpenRun) float64 { return r.Rate }), o.figures(l.name, program, f)
		if x.median > 0 && y.median > 0 { // not NaN
			list = append(list, plotter.XY{X: x.median, Y: y.median})
		}
	}
	slices.SortFunc(list, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
	return list
}

// decimalTicks are those of a logarithmic axis: 1, 2 and 5 times the powers of
// ten.
type decimalTicks struct{}

func (decimalTicks) Ticks(least, most float64) []plot.Tick {
	var list []plot.Tick
	for power := math.Pow(10, math.Floor(math.Log10(least))); power <= most; power *= 10 {
		for _, digit := range []float64{1, 2, 5} {
			if v := digit * power; v >= least && v <= most {
				list = append(list, plot.Tick{Value: v, Label: fmt.Sprintf("%g", v)})
			}
		}
	}
	return list
}
