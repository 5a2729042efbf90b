package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

func benchCacheCommand() *cobra.Command {
	var flags benchFlags
	plan := evaluation.CachePlan{Hits: evaluation.Plan{Connections: 1}, Seed: 1}
	var sizes []int64
	var setsMiB []int64
	var hits int
	var scale float64
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "What a hit of a cache share costs, and what memory two VMs' copies of the media take",
		Long: `What a hit of a cache share costs, and what memory two VMs' copies of the media take. First the lease over a complete cache share (lease-cache) beside the lease
over a directory, interleaved. Then, in VMs only, working sets that two VMs serve to clients who ask by popularity (Zipf): each VM through its own mount (vm), and both
by leases from the host's one copy (lease), each in a lab that begins with empty caches.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkScale(scale); err != nil {
				return err
			}
			plan.Rounds, plan.Requests = flags.rounds, max(flags.rounds, int(scale*float64(plan.Requests)))
			plan.Sets = nil
			for _, mib := range setsMiB {
				plan.Sets = append(plan.Sets, mib<<20)
			}
			each, err := flags.perRound(max(1, int(scale*float64(hits))))
			if err != nil {
				return err
			}
			dir := filepath.Join(flags.cache, "sizes")
			if plan.Hits.Cases, err = evaluation.SizeCases(dir, sizes, each); err != nil {
				return err
			}
			opts, err := flags.options(labName("cache"), dir, io.Discard)
			if err != nil {
				return err
			}
			report, err := evaluation.RunCache(cmd.Context(), opts, plan, bench.NewProgress(os.Stderr))
			err = flags.publish(cmd, report, err)
			if report != nil {
				printCache(cmd.OutOrStdout(), report)
			}
			return err
		},
	}
	flags.add(cmd, lab.QEMU, 20)
	flags.addThreshold(cmd, 0)
	f := cmd.Flags()
	f.Int64SliceVar(&sizes, "sizes", []int64{288_600, 10_500_000}, "file sizes of the hits, bytes")
	f.IntVar(&hits, "hits", 1000, "requests of each arm and size, all rounds together")
	f.Int64SliceVar(&setsMiB, "sets", []int64{128, 640}, "working sets, MiB: the guests have 512 each")
	f.IntVarP(&plan.Requests, "requests", "n", 1000, "requests of each VM for a working set, all rounds together")
	f.Float64Var(&scale, "scale", 1, "part of the requests")
	return cmd
}

// printCache says in words what the bench is about.
func printCache(out io.Writer, report *bench.Report) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i, r := range report.Rows {
		if in := r.ToLease; in != nil {
			verdict := "that is a difference"
			switch {
			case in.Coverage < 0.95:
				verdict = "too few rounds for a verdict"
			case in.Low <= 1 && 1 <= in.High:
				verdict = "no difference can be measured"
			}
			fmt.Fprintf(out, "\nlease-cache, %s: %.3f of lease's MB/s, between %.3f and %.3f with %.0f %%: %s\n", r.Case, in.Median, in.Low, in.High, 100*in.Coverage, verdict)
		}
		m := r.Memory
		if m == nil {
			continue
		}
		if i == 0 || report.Rows[i-1].Memory == nil {
			fmt.Fprintln(t, "\nARM\tSET\tMB IN GUESTS' CACHES\tHOST'S CACHE\tFOR EACH BYTE OF MEDIA\tQEMU, MB MORE\tHITS\tMB/s")
		}
		mb := func(bytes int64) float64 { return float64(bytes) / 1e6 }
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.0f\t%.3f\t%.1f\n", r.Arm, r.Case, mb(m.GuestCacheBytes), mb(m.HostCacheBytes), m.PerMedia(),
			mb(m.QEMUBytes-m.QEMUBeforeBytes), m.HitRatio, r.MBPerS)
	}
	_ = t.Flush() // a terminal that has gone needs no table
}
