package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/config"
	"spillway/internal/evaluation"
	"spillway/internal/figures"
	"spillway/internal/lab"
	"spillway/internal/migrate"
)

func labMigrateCommand() *cobra.Command {
	var flags labFlags
	var name, file, plots string
	var bandwidth config.Size
	plan := evaluation.MovesPlan{Clients: evaluation.DefaultMoveClients()}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move a VM between two hosts while ten clients stream from it",
		Long: `Move a VM between two hosts while ten clients stream from it, each over one connection: one downloads the Smart TV segments, eight the Tablet ones, and
one reads 200 KB/s. Every byte is compared; a reset, a failed request or a wrong byte ends it. docs/migration.md explains the figures.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := plan.Validate(); err != nil {
				return err
			}
			opts, err := flags.options(name, "", io.Discard)
			if err != nil {
				return err
			}
			plan.BytesPerSecond = int64(bandwidth)
			progress := bench.NewProgress(os.Stderr)
			files, err := lab.DemoFiles(cmd.Context(), flags.cache, func(step string) { progress.Step("%s", step) })
			if err != nil {
				return err
			}
			opts.Files = files.Dir
			report, err := evaluation.RunMoves(cmd.Context(), opts, files, plan, progress)
			if report != nil {
				printMoves(cmd.OutOrStdout(), report)
				if file != "" {
					err = joinWrite(err, file, report)
				}
				if plots != "" {
					err = errors.Join(err, plotMoves(cmd.OutOrStdout(), plots, report))
				}
			}
			return err
		},
	}
	flags.vm, flags.cpus = string(lab.QEMU), 1
	flags.link, bandwidth = lab.Link{BitsPerSecond: 1e9}, 64<<20
	cmd.Flags().StringVar(&flags.cache, "cache", "build/cache", "where scripts/setup.sh has put guest kernel and QEMU, and where data sets are kept")
	cmd.Flags().Var(&flags.link, "link", "rate of the clients' link")
	cmd.Flags().StringVar(&name, "name", fmt.Sprintf("migrate-%d", os.Getpid()), "the lab's name")
	cmd.Flags().IntVar(&plan.Moves, "moves", 20, "how often the VM moves: there, and back, and there …")
	cmd.Flags().DurationVar(&plan.Between, "between", 2*time.Second, "undisturbed streaming before each move")
	cmd.Flags().Var(&bandwidth, "bandwidth", "of pre-copy, bytes a second; 0: as fast as it goes")
	cmd.Flags().BoolVar(&plan.Recall, "recall", false, "leases are recalled for a move, although they could go along")
	cmd.Flags().StringVar(&file, "json", "", "also write the report, with the bandwidth over time, to this file")
	cmd.Flags().StringVar(&plots, "plot", "", "also plot bandwidth over time, with the phases of the moves, to this directory (SVG and PNG)")
	flags.addThreshold(cmd, config.DefaultServe().Offload.Threshold)
	return cmd
}

// plotMoves writes the plots. The move that is shown by itself is the one with the median stall.
func plotMoves(out io.Writer, dir string, r *evaluation.MovesReport) error {
	all := figures.Moves{
		Condition: fmt.Sprintf("VM under %s, link %s, ten clients", strings.ToUpper(r.Environment.Accelerator), r.Environment.Link),
		Interval:  time.Duration(r.IntervalMs * float64(time.Millisecond)), Bytes: r.Samples,
	}
	byStall := make([]int, len(r.Moves))
	for i, m := range r.Moves {
		byStall[i] = i
		var phases []figures.Phase
		for _, p := range []migrate.Phase{migrate.Check, migrate.Start, migrate.Precopy, migrate.Hold, migrate.Switch, migrate.Answer} {
			if began, ok := m.Began[p]; ok {
				from := began.Sub(r.Began)
				phases = append(phases, figures.Phase{Name: string(p), From: from, To: from + time.Duration(m.PhasesMs[p]*float64(time.Millisecond))})
			}
		}
		all.Moves = append(all.Moves, phases)
	}
	slices.SortFunc(byStall, func(a, b int) int { return cmp.Compare(r.Moves[a].StallMs, r.Moves[b].StallMs) })
	if len(byStall) > 0 {
		all.Typical = byStall[len(byStall)/2]
	}
	names, err := figures.WriteMoves(dir, all)
	for _, name := range names {
		fmt.Fprintln(out, name)
	}
	return err
}

// joinWrite writes a report as JSON.
func joinWrite(err error, file string, report any) error {
	text, merr := json.MarshalIndent(report, "", "  ")
	if merr == nil {
		merr = os.WriteFile(file, append(text, '\n'), 0o644)
	}
	if err == nil {
		err = merr
	}
	return err
}

func printMoves(out io.Writer, r *evaluation.MovesReport) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "move\ttotal ms\tpre-copy ms\tcarried\trecalled\thold ms\tpaused ms\tdowntime ms\tlongest stall ms\t(before)\tMB/s before\tduring\t%\t")
	for i, m := range r.Moves {
		fmt.Fprintf(t, "%d\t%.0f\t%.0f\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.0f\t\n", i+1, m.TotalMs, m.PhasesMs["precopy"], m.Carried, m.Recalled, m.HoldMs, m.PausedMs, m.DowntimeMs,
			m.StallMs, m.StallBeforeMs, m.BeforeMBps, m.DuringMBps, 100*m.DuringMBps/m.BeforeMBps)
	}
	t.Flush()
	printStalls(out, r)
	fmt.Fprintf(out, "%d requests, %.1f MB, every byte right, on ten connections that lived all the time; accelerator %s, QEMU %s\n",
		r.Requests, float64(r.Bytes)/1e6, r.Environment.Accelerator, r.Environment.QEMU)
}

// printStalls tells what the longest stall of each move was made of, and how long connections took to change hands.
func printStalls(out io.Writer, r *evaluation.MovesReport) {
	phases := []migrate.Phase{evaluation.BeforeMove, migrate.Check, migrate.Start, migrate.Precopy, migrate.Hold, migrate.Switch, migrate.Answer, evaluation.AfterMove}
	fmt.Fprintln(out, "\nThe longest stall of each move, ms of it in each phase; and the connections: back at the guest (from its recall on), leased again (from the hold on), median and most")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "move\tclient\tstall ms\t")
	for _, p := range phases {
		fmt.Fprintf(t, "%s\t", p)
	}
	fmt.Fprintln(t, "back ms\tmost\tagain ms\tmost\tTCP timeouts\t")
	for i, m := range r.Moves {
		var worst evaluation.MoveClient
		var back, again []float64
		for _, c := range m.Clients {
			if c.StallMs > worst.StallMs {
				worst = c
			}
			if c.TookMs > 0 {
				back = append(back, c.TookMs)
			}
			if c.AgainMs > 0 {
				again = append(again, c.AgainMs)
			}
		}
		fmt.Fprintf(t, "%d\t%d\t%.0f\t", i+1, worst.Client, worst.StallMs)
		for _, p := range phases {
			fmt.Fprintf(t, "%.0f\t", worst.PhasesMs[p])
		}
		timeouts := int64(0)
		for _, n := range m.TCPTimeouts {
			timeouts += n
		}
		fmt.Fprintf(t, "%.0f\t%.0f\t%.0f\t%.0f\t%d\t\n", middle(back), most(back), middle(again), most(again), timeouts)
	}
	t.Flush()
	fmt.Fprintln(out)
}

// middle is the median; 0 of nothing.
func middle(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	of = slices.Sorted(slices.Values(of))
	return of[len(of)/2]
}

// most is the largest; 0 of nothing.
func most(of []float64) float64 { return slices.Max(append([]float64{0}, of...)) }
