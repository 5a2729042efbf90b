package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/evaluation"
	"spillway/internal/figures"
	"spillway/internal/lab"
)

// step is a bench of the whole evaluation.
type step struct {
	file    string // of its JSON
	command func() *cobra.Command
	args    []string
}

// evaluationSteps are all benches of the evaluation with their conditions: as fast as it goes, and the seed's link. What is about handovers is measured
// without a VM too, as the model's lower bound.
func evaluationSteps(vm, cache string, scale float64, rounds int) []step {
	common := func(vm string, more ...string) []string {
		return append([]string{"--vm", vm, "--cache", cache, "--rounds", fmt.Sprint(rounds)}, more...)
	}
	part := fmt.Sprint(scale)
	media := "--media=" + max(time.Minute, time.Duration(scale*float64(10*time.Minute))).String() // the players' part takes its time on any machine
	steps := []step{
		{"micro-unshaped.json", benchMicroCommand, common(vm, "--scale", part)},
		{"micro-1gbit.json", benchMicroCommand, common(vm, "--scale", part, "--link", "1gbit")},
		{"dash-unshaped.json", benchDashCommand, common(vm, "--scale", part, media)},
		{"dash-1gbit.json", benchDashCommand, common(vm, "--scale", part, media, "--link", "1gbit")},
		{"dash-40ms.json", benchDashCommand, common(vm, "--scale", part, media, "--link", "40ms,1gbit", "--arms", "baremetal,vm,lease")},
		{"concurrency-unshaped.json", benchConcurrencyCommand, common(vm, "--scale", part)},
		{"cpu.json", benchCPUCommand, common(vm, "--requests", scaled(200, scale), "--arms", strings.Join(evaluationArms, ","))},
		{"handover.json", benchHandoverCommand, common(vm, "--requests", scaled(2000, scale))},
	}
	if vm != string(lab.NetNS) {
		steps = append(steps, step{"handover-netns.json", benchHandoverCommand, common(string(lab.NetNS), "--requests", scaled(5000, scale))})
	}
	return steps
}

// scaled is a number of requests.
func scaled(n int, scale float64) string { return fmt.Sprint(max(1, int(scale*float64(n)))) }

func benchAllCommand() *cobra.Command {
	var vm, cache, dir string
	var scale float64
	var rounds int
	var only []string
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Run the whole evaluation, and make its report",
		Long: `Run the whole evaluation, one bench after the other, and make its report: micro and dash as fast as it goes and at 1 Gbit/s, dash with 40 ms of round-trip time,
concurrency, cpu and handover. A bench that fails, or whose figures are refused in part, does not keep the others from running; what it wrote is in the report,
and the command fails at the end. With --scale 1 on a VM without KVM it takes hours.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkScale(scale); err != nil {
				return err
			}
			steps := evaluationSteps(vm, cache, scale, rounds)
			if len(only) > 0 {
				for _, name := range only {
					if !slices.ContainsFunc(steps, func(s step) bool { return s.file == name+".json" }) {
						return fmt.Errorf("--only %s: there is no such bench; there are %v", name, stepNames(steps))
					}
				}
				steps = slices.DeleteFunc(steps, func(s step) bool { return !slices.Contains(only, strings.TrimSuffix(s.file, ".json")) })
			}
			return runSteps(cmd, steps, dir)
		},
	}
	f := cmd.Flags()
	f.StringVar(&vm, "vm", string(lab.QEMU), "the guest: qemu (a real VM) or netns (a network namespace that stands for one)")
	f.StringVar(&cache, "cache", "build/cache", "where scripts/setup.sh has put kernel and nginx, and where data sets are kept")
	f.StringVar(&dir, "out", "build/evaluation", "directory for the JSON of each bench, and for the report")
	f.Float64Var(&scale, "scale", 1, "part of segments and requests, as 0.1")
	f.IntVar(&rounds, "rounds", evaluationRounds, "timed passes of each arm")
	f.StringSliceVar(&only, "only", nil, "some of the benches, as micro-unshaped,dash-1gbit")
	return cmd
}

func stepNames(steps []step) []string {
	var names []string
	for _, s := range steps {
		names = append(names, strings.TrimSuffix(s.file, ".json"))
	}
	return names
}

// runSteps runs the benches and makes the report of those that wrote something.
func runSteps(cmd *cobra.Command, steps []step, dir string) error {
	var files []figures.File
	var errs []error
	for _, s := range steps {
		fmt.Fprintf(cmd.OutOrStdout(), "\n== %s\n", strings.TrimSuffix(s.file, ".json"))
		file := filepath.Join(dir, s.file)
		err := runStep(cmd.Context(), cmd, s, file)
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.file, err))
		}
		if !onlyRefused(err) {
			continue // its file, if there is one, is of an earlier run or not to be trusted
		}
		r, err := readReport(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		files = append(files, r)
	}
	names, err := figures.Write(dir, files)
	for _, name := range names {
		fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return errors.Join(append(errs, err)...)
}

// onlyRefused tells whether nothing is wrong but that figures were refused, which are marked.
func onlyRefused(err error) bool {
	if err == nil {
		return true
	}
	if _, ok := err.(*evaluation.BottleneckError); ok {
		return true
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return !onlyRefused(e) })
	}
	inner := errors.Unwrap(err)
	return inner != nil && onlyRefused(inner)
}

// runStep runs one bench as if it had been typed.
func runStep(ctx context.Context, parent *cobra.Command, s step, file string) error {
	c := s.command()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetOut(parent.OutOrStdout())
	c.SetErr(parent.ErrOrStderr())
	c.SetArgs(append(slices.Clone(s.args), "--json", file))
	return c.ExecuteContext(ctx)
}
