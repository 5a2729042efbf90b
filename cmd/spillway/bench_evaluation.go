package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/config"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

// evaluationArms are compared unless --arms says otherwise.
var evaluationArms = []string{"baremetal", "vm", "offload", "lease", "nginx-host", "nginx-vm"}

// evaluationFlags are what the benches of the evaluation can be told.
type evaluationFlags struct {
	benchFlags
	arms  []string
	scale float64
}

// evaluationRounds give an interval of confidence of 95 %: six values are the least for it.
const evaluationRounds = 6

func (f *evaluationFlags) add(cmd *cobra.Command, scale string) {
	f.benchFlags.add(cmd, lab.QEMU, evaluationRounds)
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := checkScale(f.scale); err != nil {
			return err
		}
		if cmd.Flags().Changed("make") && f.rounds > 0 {
			return checkReport(f.json) // no lab is needed
		}
		return check(cmd, args)
	}
	cmd.Flags().StringSliceVar(&f.arms, "arms", evaluationArms, "arms to compare; also vm-cold, vm-virtiofs, vm-tmpfs")
	cmd.Flags().Float64Var(&f.scale, "scale", 1, scale)
}

// plan of the benches of the evaluation.
func (f *evaluationFlags) plan(connections int) (evaluation.Plan, error) {
	plan := evaluation.Plan{Rounds: f.rounds, Connections: connections, Refuse: true}
	for _, a := range f.arms {
		plan.Arms = append(plan.Arms, lab.Arm(a))
	}
	return plan, plan.Validate()
}

func benchMicroCommand() *cobra.Command {
	var flags evaluationFlags
	var sizes []int64
	var connections int
	var dir string
	cmd := &cobra.Command{
		Use:   "micro",
		Short: "Bandwidth by file size, 4 KB to 200 MB: the paper's figure 3",
		Long: `Bandwidth by file size, 4 KB to 200 MB: the paper's figure 3. Arms are interleaved; medians come with the interval that they lie in with 95 % confidence (order
statistics, from 6 rounds on). The figures of an arm whose load generator was the bottleneck are refused: it used 90 % of its CPUs while the machine had some
to spare. Then the command fails, and "bench report" leaves the row out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			files := dir
			if files == "" {
				files = filepath.Join(flags.cache, "micro")
			}
			plan, err := flags.plan(connections)
			if err != nil {
				return err
			}
			if plan.Cases, err = evaluation.MicroCases(files, sizes, flags.scale); err != nil {
				return err
			}
			if dir != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "%d files are in %s\n", len(plan.Cases), dir)
				return nil
			}
			_, err = flags.run(cmd, "micro", files, plan)
			return err
		},
	}
	flags.add(cmd, "part of the requests of each pass; at least one of each size")
	flags.addThreshold(cmd, 0)
	flags.machines.add(cmd)
	cmd.Flags().Int64SliceVar(&sizes, "sizes", evaluation.MicroSizes(), "file sizes, bytes")
	cmd.Flags().IntVar(&connections, "connections", 1, "connections at the same time, each with all requests")
	cmd.Flags().StringVar(&dir, "make", "", "only make the files, in this directory: for a server that --target is to measure")
	return cmd
}

func benchDashCommand() *cobra.Command {
	var flags evaluationFlags
	players := evaluation.PlayersPlan{Seed: 1}
	cmd := &cobra.Command{
		Use:   "dash",
		Short: "Play the data sets of the paper's Table I, as the paper did (figure 4) and as players do",
		Long: `Play the data sets of the paper's Table I. First as the paper did: all segments of a set in order over one connection, as fast as they come. Then as players do:
--players of them at the same time, each taking the sets as one ladder of bit rates, with a buffer of 30 s and pauses while it is full. Their clock runs
--speed times as fast as ours. A server of --target, --host or --guest needs what "spillway dataset --set all" makes with the same --scale.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := flags.plan(1)
			if err != nil {
				return err
			}
			if players.Only && players.Players == 0 {
				return errors.New("--only-players with --players 0: nothing is left to measure")
			}
			players.Arms, players.Rounds = plan.Arms, plan.Rounds
			dir := filepath.Join(flags.cache, fmt.Sprintf("table1-%g", flags.scale))
			files, err := evaluation.TableFiles(cmd.Context(), dir, flags.scale, bench.NewProgress(os.Stderr))
			if err != nil {
				return err
			}
			plan.Cases, players.Sets = evaluation.SetCases(files), files.Sets
			if flags.machines.given() {
				_, err := flags.measureMachines(cmd, func(m *evaluation.Machines) (*bench.Report, error) {
					return m.Dash(cmd.Context(), plan, players, bench.NewProgress(os.Stderr))
				})
				return err
			}
			_, err = flags.runWith(cmd, "dash", dir, plan, func(ctx context.Context, o lab.Options, plan evaluation.Plan, p *bench.Progress) (*bench.Report, error) {
				return evaluation.RunDash(ctx, o, plan, players, p)
			})
			return err
		},
	}
	flags.add(cmd, "part of the segments of each set, as 0.1; their sizes stay")
	flags.addThreshold(cmd, config.DefaultServe().Offload.Threshold)
	flags.machines.add(cmd)
	cmd.Flags().IntVar(&players.Players, "players", 20, "players at the same time; 0: none, only as the paper did")
	cmd.Flags().BoolVar(&players.Only, "only-players", false, "not as the paper did, only as players do")
	cmd.Flags().Float64Var(&players.Speed, "speed", 30, "how much faster than ours the players' clock runs")
	cmd.Flags().DurationVar(&players.Media, "media", 10*time.Minute, "how much of the film each player plays, by its clock")
	return cmd
}

func benchConcurrencyCommand() *cobra.Command {
	var flags evaluationFlags
	var numbers []int
	var size int64
	var n int
	cmd := &cobra.Command{
		Use:   "concurrency",
		Short: "Bandwidth of 1 to 1,000 connections at the same time",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := flags.plan(1)
			if err != nil {
				return err
			}
			dir := filepath.Join(flags.cache, "concurrency")
			if plan.Cases, err = evaluation.SizeCases(dir, []int64{size}, 1); err != nil {
				return err
			}
			requests := max(1, int(flags.scale*float64(n)))
			if flags.machines.given() {
				_, err := flags.measureMachines(cmd, func(m *evaluation.Machines) (*bench.Report, error) {
					return m.Concurrency(cmd.Context(), plan, numbers, requests, bench.NewProgress(os.Stderr))
				})
				return err
			}
			_, err = flags.runWith(cmd, "concurrency", dir, plan, func(ctx context.Context, o lab.Options, plan evaluation.Plan, p *bench.Progress) (*bench.Report, error) {
				return evaluation.RunConcurrency(ctx, o, plan, numbers, requests, p)
			})
			return err
		},
	}
	flags.add(cmd, "part of the requests")
	flags.addThreshold(cmd, 0)
	flags.machines.add(cmd)
	cmd.Flags().IntSliceVar(&numbers, "connections", []int{1, 3, 10, 30, 100, 300, 1000}, "numbers of connections")
	cmd.Flags().Int64Var(&size, "size", 288_600, "of the file, bytes")
	cmd.Flags().IntVarP(&n, "requests", "n", 2000, "requests of each arm and round, over all connections together; at least three over each")
	return cmd
}
