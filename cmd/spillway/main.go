// Command spillway lets media servers in virtual machines stream at the speed of the host. README.md shows how to use it and
// docs/architecture.md how it works. There is one file for each subcommand.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"spillway/internal/config"
)

func main() {
	if isInit() {
		os.Args = append(os.Args, "init")
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "spillway:", err)
		os.Exit(1)
	}
}

// run carries out the command line. SIGINT, SIGTERM and SIGHUP end a command in order; a second one ends the process at once.
func run() error {
	signal.Ignore(syscall.SIGPIPE) // writes then fail with EPIPE: `spillway bench | head` must still take its lab down
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) has it
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	context.AfterFunc(ctx, stop)
	return rootCommand().ExecuteContext(ctx)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "spillway",
		Short: "Streams media from virtual machines at the speed of the host",
		Long: `Spillway lets a media server in a virtual machine hand its client's TCP connection to the host, which sends the file with
sendfile(2) from the page cache that all VMs share. See README.md and docs/.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.AddCommand(hostCommand(), statusCommand(), migrateCommand(), cacheCommand(), serveCommand(), labCommand(), benchCommand(), doctorCommand(), datasetCommand(), initCommand(), delaylineCommand())
	return root
}

// groupCommand only holds other commands. Alone it shows its help; a subcommand that there is not is an error, which cobra by itself reports for the
// root only.
func groupCommand(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(subcommands...)
	return cmd
}

// newLogger logs to standard error; systemd and the lab keep it.
func newLogger(level config.LogLevel) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level.Level()}))
}
