package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
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

// evaluationSteps are all benches of the evaluation with their conditions. Each has as many rounds and as large a part of its requests as make all of them take
// less than 50 minutes in a VM under TCG; scale is a part of that, and rounds, unless they are 0, replace each one's own. What is about handovers is measured
// without a VM too, as the model's lower bound.
func evaluationSteps(vm, cache string, scale float64, rounds int) []step {
	one := func(name string, command func() *cobra.Command, vm string, ownRounds int, more ...string) step {
		n := cmp.Or(rounds, ownRounds)
		return step{name + ".json", command, append([]string{"--vm", vm, "--cache", cache, "--rounds", fmt.Sprint(n)}, more...)}
	}
	part := func(of float64) string { return fmt.Sprintf("--scale=%.4g", of*scale) }
	media := "--media=" + max(time.Minute, time.Duration(scale*float64(5*time.Minute))).String() // the players' part takes its time on any machine
	const fourArms = "--arms=baremetal,vm,offload,lease"
	steps := []step{
		one("micro-unshaped", benchMicroCommand, vm, 6, part(1)),
		one("micro-1gbit", benchMicroCommand, vm, 6, part(0.1), "--link", "1gbit"),
		one("dash-unshaped", benchDashCommand, vm, 3, part(1), "--players=0"),
		one("dash-1gbit", benchDashCommand, vm, 3, part(1), "--players=0", "--link", "1gbit", fourArms),
		one("dash-40ms", benchDashCommand, vm, 3, part(0.1), "--players=0", "--link", "40ms,1gbit", fourArms),
		one("players", benchDashCommand, vm, 3, part(1), "--only-players", media),
		one("concurrency", benchConcurrencyCommand, vm, 3, part(0.25)),
		one("cpu", benchCPUCommand, vm, 6, "--requests", scaled(300, scale), "--arms", strings.Join(evaluationArms, ",")),
		one("path", benchPathCommand, vm, int(max(1, 30*scale))),
		one("cache", benchCacheCommand, vm, 20, part(1)),
		{"miss.json", benchMissCommand, []string{"--cache", cache, "--rounds", scaled(cmp.Or(rounds, 50), scale)}},
		one("handover", benchHandoverCommand, vm, 5, "--requests", scaled(2000, scale)),
	}
	if vm != string(lab.NetNS) {
		steps = append(steps, one("handover-netns", benchHandoverCommand, string(lab.NetNS), 5, "--requests", scaled(5000, scale)),
			one("cache-netns", benchCacheCommand, string(lab.NetNS), 20, part(1)))
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
	var resume bool
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Run the whole evaluation, and make its report",
		Long: `Run the whole evaluation, one bench after the other, and make its report: micro and dash as fast as it goes and at 1 Gbit/s, dash with 40 ms of round-trip time,
players, concurrency, cpu, path, handover, cache and miss. A bench that fails, or whose figures are refused in part, does not keep the others from running; the report has those that
did not fail, and the command fails at the end. In a VM under TCG it takes about 47 minutes on a machine that does nothing else.

With --resume a bench is not run again whose JSON is in --out and was measured with the same flags: what was interrupted goes on, and --only repeats some.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkScale(scale); err != nil {
				return err
			}
			if rounds < 0 {
				return fmt.Errorf("--rounds %d: 0 means each bench's own", rounds)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
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
			return runSteps(cmd, steps, dir, resume)
		},
	}
	f := cmd.Flags()
	f.StringVar(&vm, "vm", string(lab.QEMU), "the guest: qemu (a real VM) or netns (a network namespace that stands for one)")
	f.StringVar(&cache, "cache", "build/cache", "where scripts/setup.sh has put kernel and nginx, and where data sets are kept")
	f.StringVar(&dir, "out", "build/evaluation", "directory for the JSON of each bench, and for the report")
	f.Float64Var(&scale, "scale", 1, "part of segments and requests, as 0.1")
	f.IntVar(&rounds, "rounds", 0, "timed passes of each arm, in every bench; 0: each bench's own")
	f.BoolVar(&resume, "resume", false, "leave out what --out has already, measured with the same flags")
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

// runSteps runs the benches and makes the report of those that wrote something, or had before.
func runSteps(cmd *cobra.Command, steps []step, dir string, resume bool) error {
	var files []figures.File
	var errs []error
	for _, s := range steps {
		name := strings.TrimSuffix(s.file, ".json")
		file := filepath.Join(dir, s.file)
		if r, err := readReport(file); resume && err == nil && r.Report.Command == s.commandLine() {
			fmt.Fprintf(cmd.OutOrStdout(), "\n== %s: there already\n", name)
			files = append(files, r)
			continue
		}
		fmt.Fprintf(cmd.OutOrStdout(), "\n== %s: %s\n", name, s.commandLine())
		before, _ := os.Stat(file) // nil: there is none
		began := time.Now()
		err := runStep(cmd.Context(), cmd, s, file)
		if after, statErr := os.Stat(file); !onlyRefused(err) && statErr == nil && !os.SameFile(before, after) { // it was written
			err = errors.Join(err, os.Rename(file, file+".failed")) // nothing to resume with
		}
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		fmt.Fprintf(cmd.OutOrStdout(), "== %s took %.0f s\n", name, time.Since(began).Seconds())
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.file, err))
		}
		if !onlyRefused(err) {
			continue
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

// commandLine is what the step's report says that it was measured with.
func (s step) commandLine() string {
	c := s.command()
	if err := c.ParseFlags(s.args); err != nil {
		return "" // which running it says
	}
	return commandLine(c)
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
