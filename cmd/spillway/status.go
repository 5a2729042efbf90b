package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"spillway/internal/config"
	"spillway/internal/lab"
	"spillway/internal/status"
)

func statusCommand() *cobra.Command {
	var opts status.Options
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the host daemon is doing: VMs, leases, bytes, refusals and failures",
		Long: `Show what the host daemon of this machine is doing, as it says at its admin socket. It needs the user that the daemon runs as, which is root.

  spillway status --watch       counts and rates of each VM, every second; Ctrl-C ends it
  spillway status --leases      the live leases of each VM, those that sent most
  spillway status --json        for scripts

docs/operate.md tells what the numbers mean, and of the metrics for Prometheus.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("admin") {
				opts.Socket = configuredAdmin(defaultHostConfig)
			}
			if opts.Socket == "" {
				return errors.New("the daemon has no admin socket: set admin in its configuration, or give it with --admin")
			}
			err := status.Show(cmd.Context(), cmd.OutOrStdout(), opts)
			if !cmd.Flags().Changed("admin") {
				err = mentionLabs(err, lab.AdminSockets)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Socket, "admin", "", fmt.Sprintf("the daemon's admin socket; default: what %s says", defaultHostConfig))
	f.BoolVar(&opts.Leases, "leases", false, "show the leases instead of the counts")
	f.BoolVarP(&opts.Watch, "watch", "w", false, "show it again every second, with rates")
	f.BoolVar(&opts.JSON, "json", false, "print the daemon's JSON; with --watch one line a second")
	return cmd
}

// mentionLabs says how to ask the labs that run here, if err is that there is no daemon of this machine.
func mentionLabs(err error, sockets func() []string) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	for _, s := range sockets() {
		err = fmt.Errorf("%w\na lab runs here: spillway status --admin %s", err, s)
	}
	return err
}

// configuredAdmin is the admin socket that a configuration names. One that cannot be read means the default: the daemon may run with another one.
func configuredAdmin(file string) string {
	cfg, err := config.LoadHost(file)
	if err != nil {
		return config.DefaultHost().Admin
	}
	return cfg.Admin
}
