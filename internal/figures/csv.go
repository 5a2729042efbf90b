package figures

import (
	"encoding/csv"
	"io"
	"strconv"

	"spillway/internal/bench"
)

// csvColumns are of one row of a report each; units are in their names.
var csvColumns = []struct {
	name string
	of   func(r *bench.Report, row bench.Row) string
}{
	{"bench", func(r *bench.Report, _ bench.Row) string { return r.Bench }},
	{"accelerator", func(r *bench.Report, _ bench.Row) string { return r.Env.Accelerator }},
	{"link", func(r *bench.Report, _ bench.Row) string { return r.Env.Link }},
	{"arm", func(_ *bench.Report, row bench.Row) string { return row.Arm }},
	{"case", func(_ *bench.Report, row bench.Row) string { return row.Case }},
	{"case_bytes", func(_ *bench.Report, row bench.Row) string { return strconv.FormatInt(row.CaseBytes, 10) }},
	{"connections", func(_ *bench.Report, row bench.Row) string { return strconv.Itoa(row.Connections) }},
	{"n", func(_ *bench.Report, row bench.Row) string { return strconv.Itoa(row.N) }},
	{"bytes", func(_ *bench.Report, row bench.Row) string { return strconv.FormatInt(row.Bytes, 10) }},
	{"elapsed_s", func(_ *bench.Report, row bench.Row) string { return number(row.ElapsedS) }},
	{"pass_s_median", func(_ *bench.Report, row bench.Row) string { return number(elapsed(row).Median) }},
	{"pass_s_low", func(_ *bench.Report, row bench.Row) string { return number(elapsed(row).Low) }},
	{"pass_s_high", func(_ *bench.Report, row bench.Row) string { return number(elapsed(row).High) }},
	{"mb_per_s_median", func(_ *bench.Report, row bench.Row) string { return number(rate(row).Median) }},
	{"mb_per_s_low", func(_ *bench.Report, row bench.Row) string { return number(rate(row).Low) }},
	{"mb_per_s_high", func(_ *bench.Report, row bench.Row) string { return number(rate(row).High) }},
	{"coverage", func(_ *bench.Report, row bench.Row) string { return number(rate(row).Coverage) }},
	{"request_us_median", func(_ *bench.Report, row bench.Row) string { return number(row.MedianUs) }},
	{"request_us_p99", func(_ *bench.Report, row bench.Row) string { return number(row.P99Us) }},
	{"cpu_s_per_gb", func(_ *bench.Report, row bench.Row) string {
		return number(row.Processes[allProcesses].CPUSecondsPerGB)
	}},
	{"wrong", func(_ *bench.Report, row bench.Row) string { return strconv.FormatInt(row.Wrong, 10) }},
	{"stalls", func(_ *bench.Report, row bench.Row) string { return strconv.FormatInt(row.Stalls, 10) }},
	{"refused", func(_ *bench.Report, row bench.Row) string { return row.Refused }},
}

// allProcesses is the name of the sum over the processes of an arm.
const allProcesses = "all"

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// WriteCSV writes a line for each row of the reports, with a header. Unknown is 0 or empty.
func WriteCSV(w io.Writer, reports []*bench.Report) error {
	c := csv.NewWriter(w)
	fields := make([]string, len(csvColumns))
	for i, column := range csvColumns {
		fields[i] = column.name
	}
	if err := c.Write(fields); err != nil {
		return err
	}
	for _, r := range reports {
		for _, row := range r.Rows {
			for i, column := range csvColumns {
				fields[i] = column.of(r, row)
			}
			if err := c.Write(fields); err != nil {
				return err
			}
		}
	}
	c.Flush()
	return c.Error()
}
