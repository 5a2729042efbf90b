package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"spillway/internal/evict"
)

func benchEvictCommand() *cobra.Command {
	var requests int
	var files, seed uint64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "evict",
		Short: "Hit ratios of the cache's eviction, S3-FIFO, against LRU: on a Zipf trace, and on one that scans pollute",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			type row struct {
				Trace  string       `json:"trace"`
				Budget int64        `json:"budget_bytes"`
				S3FIFO evict.Ratios `json:"s3fifo"`
				LRU    evict.Ratios `json:"lru"`
			}
			var rows []row
			zipf := evict.Zipf(seed, requests, files, 1.1)
			total := evict.TotalBytes(zipf)
			for _, percent := range []int64{1, 5, 20} {
				budget := total * percent / 100
				for i, trace := range [][]evict.Request{zipf, evict.Scanned(zipf, 1000, 1000)} {
					rows = append(rows, row{[]string{"zipf", "zipf with scans"}[i], budget, evict.Simulate(evict.NewS3FIFO[struct{}](budget, len(trace)), budget, trace),
						evict.Simulate(&evict.LRU[struct{}]{}, budget, trace)})
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rows)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "TRACE\tBUDGET\tS3-FIFO hits\tbytes\tLRU hits\tbytes")
			for _, r := range rows {
				fmt.Fprintf(t, "%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\n", r.Trace, humanize.Bytes(uint64(r.Budget)), r.S3FIFO.Hits, r.S3FIFO.Bytes, r.LRU.Hits, r.LRU.Bytes)
			}
			return t.Flush()
		},
	}
	f := cmd.Flags()
	f.IntVarP(&requests, "requests", "n", 200_000, "requests of the Zipf trace")
	f.Uint64Var(&files, "files", 50_000, "different files")
	f.Uint64Var(&seed, "seed", 7, "of the trace")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
