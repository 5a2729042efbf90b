package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/evaluation"
	"spillway/internal/lab"
)

func benchIdleCommand() *cobra.Command {
	var flags labFlags
	var plan evaluation.IdlePlan
	var json string
	cmd := &cobra.Command{
		Use:   "idle",
		Short: "What thousands of leased connections cost that do nothing",
		Long: `What thousands of leased connections cost that do nothing. Each first reads a response slowly, a window of them at a time; then all are idle; then all
ask at once, and every body is checked. Fails on an error, a wrong body, a connection that is not leased, and, from 1000 connections on, when
host daemon or guest server take more than 24,000 bytes of resident memory for each lease, or more than 200 threads.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(plan.Validate(), checkReport(json)); err != nil {
				return err
			}
			opts, err := flags.options(labName("idle"), filepath.Join(flags.cache, "sizes"), io.Discard)
			if err != nil {
				return err
			}
			report, err := evaluation.RunIdle(cmd.Context(), opts, plan, bench.NewProgress(os.Stderr))
			return (&benchFlags{json: json}).publish(cmd, report, err)
		},
	}
	flags.add(cmd, lab.NetNS)
	cmd.Flags().StringVar(&json, "json", "", "also write the figures to this file")
	cmd.Flags().IntVar(&plan.Connections, "connections", 10_000, "leased connections")
	cmd.Flags().IntVar(&plan.Window, "window", 500, "connections that read slowly at the same time")
	cmd.Flags().Int64Var(&plan.Size, "size", 64<<10, "response size, bytes")
	return cmd
}
