// Package figures makes of the benches' JSON what people read: CSV, plots (SVG and PNG), and the evaluation as Markdown, with a model of where offloading pays.
//
// It stands behind the benches and measures nothing. A row that a bench has refused is in the CSV, marked, and in no plot and no table. Plots tell the arms
// apart by marker and dash as well as by colour, so that they can be printed in black.
//
// It needs no capability.
package figures
