package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"spillway/internal/config"
	"spillway/internal/doctor"
	"spillway/internal/redirect"
)

func doctorCommand() *cobra.Command {
	var asJSON bool
	var hostConfig string
	env := doctor.Env{}
	cmd := &cobra.Command{
		Use:       "doctor [host|guest]",
		Short:     "Check everything that Spillway needs and say what to do about it",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"host", "guest"},
		RunE: func(cmd *cobra.Command, args []string) error {
			role := doctor.Host
			if len(args) > 0 && args[0] == "guest" {
				role = doctor.Guest
			}
			if hostConfig != "" {
				cfg, err := config.LoadHost(hostConfig)
				if err != nil {
					return err
				}
				env.Redirect = redirect.Config{
					Table: cfg.Redirect.Table, Mark: cfg.Redirect.Mark,
					RouteTable: int(cfg.Redirect.RouteTable), RulePriority: int(cfg.Redirect.Priority),
				}
			}
			report := doctor.Run(cmd.Context(), env, role)
			write := report.WriteText
			if asJSON {
				write = report.WriteJSON
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if !report.OK() {
				return errors.New("not everything is as it must be; see above")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringVarP(&hostConfig, "config", "c", "", fmt.Sprintf("host daemon's configuration, for its redirect (usually %s)", defaultHostConfig))
	f.StringVar(&env.ChannelSocket, "channel-socket", "", "host: a channel's socket to check, as /run/spillway/vm0.sock")
	f.StringVar(&env.ChannelPort, "channel-port", "", "guest: the virtio-serial port to check, as spillway.0")
	f.StringVar(&env.Share, "share", "", "directory of a share to check")
	f.StringVar(&env.CacheDir, "cache", "", "host: a cache directory to check")
	return cmd
}
