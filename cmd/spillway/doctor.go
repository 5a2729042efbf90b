package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

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
		Use:   "doctor [host|guest]",
		Short: "Check everything that Spillway needs and say what to do about it",
		Long: `Check everything that Spillway needs on this machine and say what to do about it: on the host (the default) or inside a VM (guest). Run it as root
before the daemon or the server is started, and again when something is odd. It leaves everything as it was. A FAIL must be put right: without it
nothing works, and the exit status is 1. A WARN works, with less than there could be.`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"host", "guest"},
		RunE: func(cmd *cobra.Command, args []string) error {
			role := doctor.Host
			if len(args) > 0 {
				if !slices.Contains(cmd.ValidArgs, args[0]) {
					return fmt.Errorf("there is no role %q; use host (the machine that the VMs run on) or guest (inside a VM)", args[0])
				}
				role = doctor.Role(args[0])
			}
			for flag, of := range map[string]doctor.Role{
				"config": doctor.Host, "channel-socket": doctor.Host, "cache": doctor.Host, "channel-port": doctor.Guest,
			} {
				if cmd.Flags().Changed(flag) && of != role {
					return fmt.Errorf("--%s is not for the role %s; see spillway doctor --help", flag, role)
				}
			}
			if role == doctor.Guest {
				if env.ChannelPort == "" {
					env.ChannelPort = strings.TrimPrefix(config.DefaultServe().Offload.Channels[0], "virtio:")
				}
			} else if err := hostEnvironment(&env, hostConfig); err != nil {
				return err
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
	f.StringVarP(&hostConfig, "config", "c", "", fmt.Sprintf("host: the daemon's configuration, for its redirect, channel and share; default: %s if it is there", defaultHostConfig))
	f.StringVar(&env.ChannelSocket, "channel-socket", "", "host: a channel's socket to check, as /run/spillway/vm0.sock")
	f.StringVar(&env.ChannelPort, "channel-port", "", "guest: the virtio-serial port to check; default: spillway.0")
	f.StringVar(&env.Share, "share", "", "directory of a share to check")
	f.StringVar(&env.CacheDir, "cache", "", "host: a cache directory to check")
	return cmd
}

// hostEnvironment tells the checks what the daemon's configuration says: its redirect, the first channel and the first share.
func hostEnvironment(env *doctor.Env, file string) error {
	implied := file == ""
	if implied {
		file = defaultHostConfig
	}
	cfg, err := config.LoadHost(file)
	if implied && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = cfg.Validate(); err != nil {
			err = fmt.Errorf("the daemon does not start with %s:\n%w", file, err)
		}
	}
	if err != nil {
		return err
	}
	env.Redirect = redirect.Config{
		Table: cfg.Redirect.Table, Mark: cfg.Redirect.Mark,
		RouteTable: int(cfg.Redirect.RouteTable), RulePriority: int(cfg.Redirect.Priority),
	}
	if env.Share == "" && len(cfg.Shares) > 0 {
		env.Share = cfg.Shares[0].Path
	}
	for _, vm := range cfg.VMs {
		for _, c := range vm.Channels {
			if path, ok := strings.CutPrefix(c, "unix:"); ok && env.ChannelSocket == "" {
				env.ChannelSocket = path
			}
		}
	}
	return nil
}
