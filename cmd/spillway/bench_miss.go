package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
)

func benchMissCommand() *cobra.Command {
	var rounds int
	var dir, json string
	cmd := &cobra.Command{
		Use:   "miss",
		Short: "First byte and throughput of a cache that has to fetch, against plain HTTP clients of the same origin",
		Long: `First byte and throughput of a cache that has to fetch, against plain HTTP clients of the same origin: net/http in this process, and curl, which writes a file too.
The origin is on the loopback; each file is one that the cache has never seen, and every body is compared.`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if rounds < 1 {
				return fmt.Errorf("--rounds %d: at least 1 is needed", rounds)
			}
			return checkReport(json)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			own, err := os.MkdirTemp(dir, "spillway-miss-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(own)
			report, err := evaluation.Miss(cmd.Context(), own, rounds, bench.NewProgress(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			report.Command = commandLine(cmd)
			if err := publish(cmd.OutOrStdout(), report, json); err != nil {
				return err
			}
			return printMiss(cmd.OutOrStdout(), report)
		},
	}
	f := cmd.Flags()
	f.IntVar(&rounds, "rounds", 50, "files of each size, for each arm")
	f.StringVar(&dir, "cache", "", "below which directory the cache is to be, for this time only; default: the directory for temporary files")
	f.StringVar(&json, "json", "", "also write the figures to this file")
	return cmd
}

// printMiss compares the cache with the plain clients.
func printMiss(out io.Writer, report *bench.Report) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nCACHE\tFIRST BYTE, to plain\tto curl\tMB/s, to plain\tto curl")
	for _, r := range evaluation.MissRatios(report) {
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\n", r.Case, r.FirstToPlain, r.FirstToCurl, r.RateToPlain, r.RateToCurl)
	}
	return t.Flush()
}
