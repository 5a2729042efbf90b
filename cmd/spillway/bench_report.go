package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/figures"
)

func readReport(name string) (figures.File, error) {
	r, err := bench.ReadFile(name)
	return figures.File{Name: name, Report: r}, err
}

func benchReportCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "report FILE.json…",
		Short: "Make tables and plots of what benches have written with --json",
		Long: `Make tables and plots of what benches have written with --json: evaluation.md, evaluation.csv, and figures/*.svg and *.png. Figures that a bench has refused are in
the CSV, marked, and nowhere else. With the reports of bench handover, a model predicts from which size offloading pays under KVM.
docs/evaluation.md is made with --out docs.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var files []figures.File
			for _, name := range args {
				f, err := readReport(name)
				if err != nil {
					return err
				}
				files = append(files, f)
			}
			names, err := figures.Write(dir, files)
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "out", "build/evaluation", "directory for the files")
	return cmd
}
