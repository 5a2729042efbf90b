package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"spillway/internal/config"
	"spillway/internal/host"
)

const defaultHostConfig = "/etc/spillway/host.toml"

func hostCommand() *cobra.Command {
	var file string
	var flags config.Host
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Run the host daemon, which sends files for the VMs of this machine",
		Long: `Run the host daemon. It needs root. The file (see examples/host.toml) names the shares and the VMs; each VM needs three things, for instance
as QEMU arguments:

  the channel   -device virtio-serial-pci
                -chardev socket,id=spillway,path=/run/spillway/vm0.sock,reconnect=1
                -device virtserialport,chardev=spillway,name=spillway.0
  the share     -fsdev local,id=media,path=/srv/media,security_model=none,readonly=on
                -device virtio-9p-pci,fsdev=media,mount_tag=media
  the NIC       -netdev tap,id=net0,... -device virtio-net-pci,netdev=net0   (routed through this machine, not bridged)

SIGTERM drains it: clients go on, served by their VMs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadHost(file)
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w; examples/host.toml shows what belongs into it; --config names another file", err)
			}
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("log-level") {
				cfg.LogLevel = flags.LogLevel
			}
			if cmd.Flags().Changed("admin") {
				cfg.Admin = flags.Admin
			}
			if err := cfg.Validate(); err != nil {
				return err
			}
			shareCPUs()
			log := newLogger(cfg.LogLevel)
			d, err := host.New(cfg, log)
			if err != nil {
				return err
			}
			stop := tellSystemd(cmd.Context(), d, log)
			err = d.Run(cmd.Context())
			stop()
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; run it as root; `spillway doctor host` says what is missing", err)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", defaultHostConfig, "configuration file")
	cmd.Flags().Var(&flags.LogLevel, "log-level", "debug, info, warn or error")
	cmd.Flags().StringVar(&flags.Admin, "admin", "", "unix socket for status, metrics and recalls, empty for none; default: what the file says")
	return cmd
}

// shareCPUs leaves half of the machine to the VMs, unless the environment says otherwise. The daemon's work is short system calls: on a small machine
// idle Go threads that look for more of it take the CPU from the guest that is about to send it (docs/bench.md).
func shareCPUs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}
