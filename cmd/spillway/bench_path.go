package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

func benchPathCommand() *cobra.Command {
	var flags benchFlags
	var plan evaluation.PathPlan
	var arms []string
	var congestion string
	cmd := &cobra.Command{
		Use:   "path",
		Short: "What a change of hands costs on a path with delay, response by response of a connection",
		Long: `What a change of hands costs on a path with delay. Each connection begins with a response that the server's own kernel sends in every arm, which lets
the congestion window grow (warm-up). The next (first) is the first that an offloading arm hands over; then there are some more (following).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan.Rounds, plan.Arms = flags.rounds, nil
			for _, a := range arms {
				plan.Arms = append(plan.Arms, lab.Arm(a))
			}
			if err := plan.Validate(); err != nil {
				return err
			}
			opts, err := flags.options(fmt.Sprintf("path-%d", os.Getpid()), filepath.Join(flags.cache, "path"), io.Discard)
			if err != nil {
				return err
			}
			opts.Congestion = congestion
			report, err := evaluation.RunPath(cmd.Context(), opts, plan, bench.NewProgress(os.Stderr))
			return printTimes(cmd.OutOrStdout(), report, flags.publish(cmd, report, err))
		},
	}
	flags.link = lab.Link{RTT: 40 * time.Millisecond, BitsPerSecond: 100e6}
	flags.add(cmd, lab.NetNS, 20)
	cmd.Flags().Int64SliceVar(&plan.Sizes, "sizes", []int64{1_400_000}, "response sizes, bytes")
	cmd.Flags().IntVar(&plan.Following, "following", 4, "responses of each connection behind the first that is handed over")
	cmd.Flags().StringSliceVar(&arms, "arms", []string{"baremetal", "vm", "offload", "lease"}, "arms to compare")
	cmd.Flags().StringVar(&congestion, "congestion", "cubic",
		"congestion control of host and guest, so that the arms can be compared; empty: each kernel's own")
	return cmd
}
