package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

func benchSoakCommand() *cobra.Command {
	var flags labFlags
	var plan evaluation.SoakPlan
	var minutes float64
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Clients of all kinds, while daemon, servers and channels come and go; every byte is checked",
		Long: `Clients of all kinds use the arms lease and offload: keep-alive, slow, pipelined, half-closed, and such that leave in the middle by RST or FIN. Meanwhile
connections are recalled, channels cut, the host daemon restarted (SIGTERM, SIGKILL) and servers killed. Fails at the first wrong byte, at 20 s without a
byte, at a connection that is closed while nothing was killed or cut, and when something is left at the end. Prints the seed, and how often
everything happened.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan.Duration = time.Duration(minutes * float64(time.Minute))
			if !cmd.Flags().Changed("seed") {
				plan.Seed = rand.Uint64()>>1 + 1
			}
			if err := plan.Validate(); err != nil {
				return err
			}
			opts, err := flags.options(labName("soak"), filepath.Join(flags.cache, "sizes"), io.Discard)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "soak: seed %d\n", plan.Seed)
			counts, err := evaluation.RunSoak(cmd.Context(), opts, plan, bench.NewProgress(os.Stderr))
			evaluation.SoakCounts(out, counts)
			return err
		},
	}
	flags.add(cmd, lab.NetNS)
	cmd.Flags().Float64Var(&minutes, "minutes", 10, "how long")
	cmd.Flags().Uint64Var(&plan.Seed, "seed", 0, "of everything that is decided at random; default: a new one. Another run has other timing, so that it need not go the same way")
	cmd.Flags().StringVar(&plan.Logs, "logs", "build/soak-logs", "where the lab's logs are kept when the soak fails")
	cmd.Flags().IntVar(&plan.Clients, "clients", 12, "clients at the same time")
	cmd.Flags().Int64SliceVar(&plan.Sizes, "sizes", []int64{1, 4096, 65536, 288_600, 1_400_000, 10_500_000}, "file sizes, bytes")
	return cmd
}
