package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

func benchCPUCommand() *cobra.Command {
	var flags benchFlags
	var sizes []int64
	var n, connections int
	var arms []string
	cmd := &cobra.Command{
		Use:   "cpu",
		Short: "CPU seconds of the host for each GB that it sends",
		Long: `CPU seconds for each GB of bodies: user and system time of the processes that work for an arm, which are the host daemon, the server, and QEMU with
everything that the VM does. Beside it stands what all CPUs of the machine spent meanwhile, with the client and whatever else runs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := filepath.Join(flags.cache, "sizes")
			plan := evaluation.Plan{Rounds: flags.rounds, Connections: connections}
			for _, a := range arms {
				plan.Arms = append(plan.Arms, lab.Arm(a))
			}
			if err := plan.Validate(); err != nil {
				return err
			}
			each, err := flags.perRound(n)
			if err != nil {
				return err
			}
			if plan.Cases, err = evaluation.SizeCases(dir, sizes, each); err != nil {
				return err
			}
			var report *bench.Report
			switch {
			case !flags.machines.given():
				report, err = flags.runWith(cmd, "cpu", dir, plan, evaluation.RunCPU)
			case len(flags.machines.pids) == 0:
				return errors.New("--pid is needed: whose CPU time is it about?")
			default:
				report, err = flags.run(cmd, "cpu", dir, plan)
			}
			if report != nil {
				printCPU(cmd.OutOrStdout(), report)
			}
			return err
		},
	}
	flags.add(cmd, lab.QEMU, 10)
	flags.addThreshold(cmd, 0)
	flags.machines.add(cmd)
	cmd.Flags().Int64SliceVar(&sizes, "sizes", []int64{10_500_000}, "file sizes, bytes")
	cmd.Flags().IntVarP(&n, "requests", "n", 1000, "requests of each arm and size, all rounds together, on each connection")
	cmd.Flags().IntVar(&connections, "connections", 1, "connections at the same time")
	cmd.Flags().StringSliceVar(&arms, "arms", []string{"baremetal", "vm", "offload", "lease"},
		"arms to compare: baremetal, vm, vm-cold, vm-virtiofs, vm-tmpfs, offload, lease")
	return cmd
}

// printCPU says in words what the bench is about.
func printCPU(out io.Writer, report *bench.Report) {
	for _, row := range report.Rows {
		if processes, machine := evaluation.CPURatio(report, row); processes > 0 && row.Arm == string(lab.Lease) {
			fmt.Fprintf(out, "\nlease, %s: its processes take %.3f of baremetal's CPU time, at most %.2f is wanted; the machine, with the client and all else, %.3f\n",
				row.Case, processes, evaluation.MaxCPURatio, machine)
		}
	}
}
