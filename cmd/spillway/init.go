package main

import (
	"os"

	"github.com/spf13/cobra"

	"spillway/internal/guestinit"
)

// initCommand is PID 1 of the lab's VM.
func initCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "init",
		Short:  "Be the init of a lab's VM",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return guestinit.Main() },
	}
}

// isInit tells that the kernel has started us as /init, which it does without arguments.
func isInit() bool { return os.Getpid() == 1 && len(os.Args) == 1 }
