package figures

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"spillway/internal/bench"
)

// Names of what Write makes below its directory.
const (
	MarkdownName = "evaluation.md"
	CSVName      = "evaluation.csv"
	PlotDir      = "figures"
)

//go:embed evaluation.md.tmpl
var markdown string

// File is a report and where it was read from.
type File struct {
	Name   string
	Report *bench.Report
}

// section is what the template shows of a report.
type section struct {
	*bench.Report
	File, Title, Condition string
	Plots                  []Plot
	Tables                 []string
}

// document is what the template shows.
type document struct {
	Reports                 []section
	TCG                     bool
	Refused                 []string
	BusyPercent             int
	Crossovers, Predictions string
	Wanted, Notes, Costs    string // what was wanted, why it is missed, and what each request takes
	TCGNote                 string
}

// ErrNothing means that no report has a row that may be published.
var ErrNothing = errors.New("there is nothing to publish: every row is refused or empty")

// titles of the sections, by bench.
var titles = map[string]string{
	"micro": "Bandwidth by file size", "request": "Time per request", "dash": "Data sets", "demo": "Small data sets", "concurrency": "Many connections",
	"cpu": "CPU time", "handover": "Handover and handback", "path": "A path with delay", "idle": "Idle connections",
	"cache": "The cache: hits, and copies in memory", "miss": "The cache: misses",
}

// Write makes Markdown, CSV and plots of the reports below dir, and returns the names of the files. Nothing is written when a plot cannot be made.
func Write(dir string, files []File) ([]string, error) {
	doc := document{BusyPercent: int(100 * bench.BusyClient)}
	var reports []*bench.Report
	var rows int
	for _, f := range files {
		s, err := newSection(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		doc.Reports, reports = append(doc.Reports, s), append(reports, f.Report)
		doc.TCG = doc.TCG || f.Report.Env.Accelerator == "tcg"
		rows += len(published(f.Report))
		for _, row := range f.Report.Rows {
			if row.Refused != "" {
				doc.Refused = append(doc.Refused, fmt.Sprintf("%s, %s: %s, %s", f.Report.Bench, s.Condition, row.Arm, row.Case))
			}
		}
	}
	if rows == 0 {
		return nil, ErrNothing
	}
	if err := uniquePlots(doc.Reports); err != nil {
		return nil, err
	}
	all, conditions := judgeAll(reports)
	doc.Wanted, doc.Costs = wantedTable(all, conditions), costTable(reports)
	if doc.TCG { // which is what the notes are about
		doc.Notes, doc.TCGNote = missNotes(all), noteOf("TCG")
	}
	doc.Crossovers, doc.Predictions = crossoverTable(reports), predictionTable(reports)
	return doc.write(dir, reports)
}

// uniquePlots refuses two reports of one bench in one condition: their plots would have one name, and figures of two runs are not comparable.
func uniquePlots(sections []section) error {
	seen := map[string]string{}
	for _, s := range sections {
		for _, p := range s.Plots {
			if other, ok := seen[p.Name]; ok {
				return fmt.Errorf("%s and %s are of the same bench (%s, %s): give one of them", other, s.File, s.Bench, s.Condition)
			}
			seen[p.Name] = s.File
		}
	}
	return nil
}

func newSection(f File) (section, error) {
	s := section{Report: f.Report, File: filepath.Base(f.Name), Condition: condition(f.Report.Env)}
	title, ok := titles[f.Report.Bench]
	if !ok {
		title = f.Report.Bench
	}
	if !slices.ContainsFunc(f.Report.Rows, func(r bench.Row) bool { return r.Playback == nil }) && len(f.Report.Rows) > 0 {
		title = "Players"
	}
	s.Title = title + " (" + s.Condition + ")"
	s.Tables = tables(f.Report)
	var err error
	s.Plots, err = plots(f.Report)
	return s, err
}

// write puts everything into files.
func (d document) write(dir string, reports []*bench.Report) (names []string, err error) {
	t, err := template.New(MarkdownName).Parse(markdown)
	if err != nil {
		return nil, err
	}
	var text, table strings.Builder
	if err := errors.Join(t.Execute(&text, d), WriteCSV(&table, reports)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, PlotDir), 0o755); err != nil {
		return nil, err
	}
	for _, s := range d.Reports {
		for _, p := range s.Plots {
			if err := p.save(filepath.Join(dir, PlotDir)); err != nil {
				return names, err
			}
			names = append(names, filepath.Join(dir, PlotDir, p.Name+".svg"), filepath.Join(dir, PlotDir, p.Name+".png"))
		}
	}
	for name, content := range map[string]string{MarkdownName: text.String(), CSVName: table.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return names, err
		}
		names = append(names, filepath.Join(dir, name))
	}
	slices.Sort(names)
	return names, nil
}
