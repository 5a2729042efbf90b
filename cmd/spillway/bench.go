package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"spillway/internal/bench"
	"spillway/internal/config"
	"spillway/internal/evaluation"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

func benchCommand() *cobra.Command {
	return groupCommand(&cobra.Command{
		Use:   "bench",
		Short: "Measure, in a lab of its own on this machine",
		Long: `Measure, in a lab of its own on this machine. All arms of a bench run in one lab, interleaved; every body's SHA-256 is checked in a pass
that is not timed. docs/bench.md explains the figures.`,
	}, benchDemoCommand(), benchRequestCommand(), benchHandoverCommand(), benchPathCommand(), benchIdleCommand(), benchSoakCommand(), benchCPUCommand(), benchEvictCommand(),
		benchCacheCommand(), benchMissCommand(), benchMicroCommand(), benchDashCommand(), benchConcurrencyCommand(), benchReportCommand(), benchAllCommand())
}

// benchFlags are what every bench can be told.
type benchFlags struct {
	labFlags
	machines machineFlags // in place of a lab, where the bench can do that
	json     string
	rounds   int
}

func (f *benchFlags) add(cmd *cobra.Command, defaultVM lab.Kind, rounds int) {
	f.labFlags.add(cmd, defaultVM)
	cmd.Flags().StringVar(&f.json, "json", "", "also write the figures to this file")
	cmd.Flags().IntVar(&f.rounds, "rounds", rounds, "timed passes of each arm")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { // before data sets are made
		if f.rounds < 1 {
			return fmt.Errorf("--rounds %d: at least 1 is needed", f.rounds)
		}
		if err := errors.Join(checkReport(f.json), f.machines.check(cmd)); err != nil || f.machines.given() {
			return err
		}
		_, err := f.options(labName(cmd.Name()), "", io.Discard)
		return err
	}
}

// labName is the name of a bench's own lab.
func labName(bench string) string { return fmt.Sprintf("%s-%d", bench, os.Getpid()) }

// checkReport finds out before a long run whether its report can be written.
func checkReport(file string) error {
	if file == "" {
		return nil
	}
	dir := filepath.Dir(file)
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", dir)
	}
	if err != nil {
		return fmt.Errorf("--json %s: %w; make the directory first", file, err)
	}
	return nil
}

// perRound divides n requests over the rounds, and makes some more of them when that leaves a rest.
func (f *benchFlags) perRound(n int) (int, error) {
	if n < 1 {
		return 0, fmt.Errorf("--requests %d: at least 1 is needed", n)
	}
	return (n + f.rounds - 1) / f.rounds, nil
}

// run measures plan, in a lab or on the user's machines, and publishes the report.
func (f *benchFlags) run(cmd *cobra.Command, name, files string, plan evaluation.Plan) (*bench.Report, error) {
	if f.machines.given() {
		plan.Rounds = f.rounds
		return f.measureMachines(cmd, func(m *evaluation.Machines) (*bench.Report, error) {
			return m.Run(cmd.Context(), name, plan, bench.NewProgress(os.Stderr))
		})
	}
	return f.runWith(cmd, name, files, plan, func(ctx context.Context, opts lab.Options, plan evaluation.Plan, p *bench.Progress) (*bench.Report, error) {
		return evaluation.Run(ctx, name, opts, plan, p)
	})
}

// runWith is run for a measurement of another kind.
func (f *benchFlags) runWith(cmd *cobra.Command, name, files string, plan evaluation.Plan,
	measure func(context.Context, lab.Options, evaluation.Plan, *bench.Progress) (*bench.Report, error)) (*bench.Report, error) {
	plan.Rounds = f.rounds
	opts, err := f.options(labName(name), files, io.Discard)
	if err != nil {
		return nil, err
	}
	report, err := measure(cmd.Context(), opts, plan, bench.NewProgress(os.Stderr))
	return report, f.publish(cmd, report, err)
}

// runTimes is run, and prints a table of times too.
func (f *benchFlags) runTimes(cmd *cobra.Command, name, files string, plan evaluation.Plan) error {
	report, err := f.run(cmd, name, files, plan)
	return printTimes(cmd.OutOrStdout(), report, err)
}

// printTimes prints a table of times, if there is a report.
func printTimes(out io.Writer, report *bench.Report, err error) error {
	if report == nil || len(report.Rows) == 0 {
		return err
	}
	fmt.Fprintln(out)
	return errors.Join(err, report.WriteTimes(out))
}

// publish prints the table and writes the JSON, also of figures that are not to be trusted; err says why, if it is not nil.
func (f *benchFlags) publish(cmd *cobra.Command, report *bench.Report, err error) error {
	if report != nil && len(report.Rows) > 0 {
		report.Command = commandLine(cmd)
		err = errors.Join(err, publish(cmd.OutOrStdout(), report, f.json))
	}
	return err
}

// commandLine is what a bench was told, flags by name, without where its files are.
func commandLine(cmd *cobra.Command) string {
	words := []string{"spillway", "bench", cmd.Name()}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "json" || f.Name == "cache" {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			if values = list.GetSlice(); f.Value.Type() != "stringArray" {
				values = []string{strings.Join(values, ",")}
			}
		}
		for _, v := range values {
			if f.Value.Type() == "bool" {
				words = append(words, "--"+f.Name+"="+v)
				continue
			}
			words = append(words, "--"+f.Name, strings.Trim(v, "[]"))
		}
	})
	return strings.Join(words, " ")
}

// publish prints the table and writes the JSON, unless its file has no name. Neither keeps the other from being written.
func publish(out io.Writer, report *bench.Report, file string) error {
	fmt.Fprintln(out)
	err := report.WriteTable(out)
	if file == "" {
		return err
	}
	if jsonErr := report.WriteFile(file); jsonErr != nil {
		return errors.Join(err, jsonErr)
	}
	fmt.Fprintf(out, "\nwritten to %s\n", file)
	return err
}

func benchDemoCommand() *cobra.Command {
	var flags benchFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Stream small data sets in the shape of the paper's Table I through every arm",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress := bench.NewProgress(os.Stderr)
			files, err := lab.DemoFiles(cmd.Context(), flags.cache, func(step string) { progress.Step("%s", step) })
			if err != nil {
				return err
			}
			progress.Done("")
			plan := evaluation.Plan{Cases: evaluation.SetCases(files), Arms: lab.Arms(), Connections: 1}
			_, err = flags.run(cmd, "demo", files.Dir, plan)
			return err
		},
	}
	flags.add(cmd, lab.QEMU, 3)
	flags.addThreshold(cmd, config.DefaultServe().Offload.Threshold)
	return cmd
}

func benchRequestCommand() *cobra.Command {
	var flags benchFlags
	var sizes []int64
	var n, connections int
	var arms []string
	cmd := &cobra.Command{
		Use:   "request",
		Short: "Time per request for files of several sizes, keep-alive",
		Long: `Time per request for files of several sizes, keep-alive. Besides the four arms there are others for comparison: vm-cold, whose requests find nothing cached in
the VM (in the namespace lab, on the host), and for a VM only vm-virtiofs, which mounts the share with virtiofs, and vm-tmpfs, which has the files in the VM's
memory. Fails on a wrong body, and on a wait of over 150 ms (and the link's round trip) within a request of an arm that offloads.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := filepath.Join(flags.cache, "sizes")
			plan := evaluation.Plan{Rounds: flags.rounds, Connections: connections, NoStalls: true}
			for _, a := range arms {
				plan.Arms = append(plan.Arms, lab.Arm(a))
			}
			each, err := flags.perRound(n)
			if err == nil {
				err = plan.Validate()
			}
			if err != nil {
				return err
			}
			if plan.Cases, err = evaluation.SizeCases(dir, sizes, each); err != nil {
				return err
			}
			return flags.runTimes(cmd, "request", dir, plan)
		},
	}
	flags.add(cmd, lab.NetNS, 5)
	flags.addThreshold(cmd, 0)
	flags.machines.add(cmd)
	cmd.Flags().Int64SliceVar(&sizes, "sizes", []int64{4096, 65536, 288_600, 1_400_000, 10_500_000, 25_000_000}, "file sizes, bytes")
	cmd.Flags().IntVarP(&n, "requests", "n", 1000, "requests of each arm and size, all rounds together, on each connection")
	cmd.Flags().IntVar(&connections, "connections", 1, "connections at the same time")
	cmd.Flags().StringSliceVar(&arms, "arms", []string{"baremetal", "vm", "offload", "lease"},
		"arms to compare: baremetal, vm, vm-cold, vm-virtiofs, vm-tmpfs, offload, lease, lease-cache, nginx-host, nginx-vm")
	return cmd
}

func benchHandoverCommand() *cobra.Command {
	var flags benchFlags
	var n int
	const size = 4096
	cmd := &cobra.Command{
		Use:   "handover",
		Short: "What a handover and a handback cost, step by step",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := filepath.Join(flags.cache, "sizes")
			each, err := flags.perRound(n)
			if err != nil {
				return err
			}
			cases, err := evaluation.SizeCases(dir, []int64{size}, each)
			if err != nil {
				return err
			}
			began := time.Now()
			report, err := flags.run(cmd, "handover", dir, evaluation.Plan{
				Cases: cases, Arms: []lab.Arm{lab.Offload, lab.Lease}, Connections: 1, NoStalls: true,
			})
			if err != nil {
				return err
			}
			printHandover(cmd.OutOrStdout(), report, time.Since(began))
			return nil
		},
	}
	flags.add(cmd, lab.NetNS, 5)
	cmd.Flags().IntVarP(&n, "requests", "n", 5000, "requests of each arm, all rounds together")
	return cmd
}

// printHandover says in words what the bench is about.
func printHandover(w io.Writer, report *bench.Report, took time.Duration) {
	for _, row := range report.Rows {
		if round, ok := row.Steps[string(guest.StepRound)]; ok {
			fmt.Fprintf(w, "\n%s: handover and handback, without sending and draining: median %s us, p99 %s us (%d of them)\n",
				row.Arm, bench.Cost(round.MedianUs), bench.Cost(round.P99Us), row.Handbacks)
		}
		fmt.Fprintf(w, "%s: %d requests of %s, %d stalls over 150 ms\n", row.Arm, row.N, row.Case, row.Stalls)
	}
	fmt.Fprintf(w, "took %.0f s\n", took.Seconds())
}
