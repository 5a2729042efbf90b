package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
)

func benchMissCommand() *cobra.Command {
	var rounds int
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "miss",
		Short: "First byte and throughput of a cache that has to fetch, against a plain HTTP client of the same origin",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rounds < 1 {
				return fmt.Errorf("--rounds %d: use 1 or more", rounds)
			}
			own, err := os.MkdirTemp(dir, "spillway-miss-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(own)
			rows, err := evaluation.Miss(cmd.Context(), own, rounds, bench.NewProgress(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rows)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "FILE\tFIRST BYTE plain\tcache\tratio\tMB/s plain\tcache\tratio")
			for _, r := range rows {
				fmt.Fprintf(t, "%s\t%.0f µs\t%.0f µs\t%.2f\t%.0f\t%.0f\t%.2f\n", humanize.Bytes(uint64(r.Bytes)), r.PlainFirstUs, r.CacheFirstUs,
					r.CacheFirstUs/r.PlainFirstUs, r.PlainMBPerS, r.CacheMBPerS, r.CacheMBPerS/r.PlainMBPerS)
			}
			return t.Flush()
		},
	}
	f := cmd.Flags()
	f.IntVar(&rounds, "rounds", 50, "files of each size")
	f.StringVar(&dir, "dir", "", "where the cache is to be, for this time only; default: the directory for temporary files")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
