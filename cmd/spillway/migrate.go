package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/config"
	"spillway/internal/migrate"
)

const defaultMigrateConfig = "/etc/spillway/migrate.toml"

func migrateCommand() *cobra.Command {
	var file, to string
	var asJSON, recall bool
	var bandwidth config.Size
	cmd := &cobra.Command{
		Use:   "migrate VM --to HOST",
		Short: "Move a running VM to another host while its clients stream",
		Long: `Move a running VM to another host while its clients stream. The file (see examples/migrate.toml) names the hosts that the VM may be at: their daemons' admin sockets, the
VM's QMP sockets, and the commands that start and end its QEMU there. Sockets of another machine are forwarded ones (ssh -L).

Ctrl-C before the switch-over leaves everything as it was, and so does every failure before it. docs/migration.md tells what the steps are, and what to do when one fails.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.LoadMigrate(file)
			if err != nil {
				return err
			}
			from, dest, err := cfg.Sides(args[0], to, func(h config.MigrateHost) bool { return answers(h.QMP) })
			if err != nil {
				return err
			}
			plan := migrate.Plan{
				VM: args[0], From: side(from), To: side(dest), URI: dest.Incoming, BytesPerSecond: int64(bandwidth), Recall: recall,
				Start: func(ctx context.Context) error { return runAndWait(ctx, dest.Start, dest.QMP) },
				Stop:  func(ctx context.Context) error { return runCommand(ctx, dest.Stop) },
			}
			progress := bench.NewProgress(os.Stderr)
			plan.Progress = func(e migrate.Event) {
				if e.Phase == migrate.Precopy && e.Copied.Passes > 0 {
					progress.Update("%.0f MB sent, %.0f MB left", float64(e.Copied.TransferredBytes)/1e6, float64(e.Copied.RemainingBytes)/1e6)
					return
				}
				if !e.Taken {
					progress.Step("%s", e.Phase)
				}
			}
			report, err := migrate.Run(cmd.Context(), plan)
			progress.Done("")
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s runs at %s after %.1f s; paused for %.0f ms; %d leases went along and %d were recalled, within %.0f ms, %d clients closed\n",
				report.VM, report.To, report.TotalMs/1000, report.PausedMs, report.Carried, report.Recalled, report.HoldMs, report.Closed)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", defaultMigrateConfig, "configuration file")
	cmd.Flags().StringVar(&to, "to", "", "the host to move to, as the file names it")
	cmd.Flags().Var(&bandwidth, "bandwidth", "of pre-copy, bytes a second; 0: as fast as it goes")
	cmd.Flags().BoolVar(&recall, "recall", false, "give all connections back to the VM for the move, although they could go along")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	_ = cmd.MarkFlagRequired("to") // it exists
	return cmd
}

func side(h config.MigrateHost) migrate.Side {
	return migrate.Side{Name: h.Name, Admin: h.Admin, QMP: h.QMP, Addresses: h.Addresses}
}

// runCommand runs a command of the configuration.
func runCommand(ctx context.Context, command []string) error {
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", command, err, out)
	}
	return nil
}

// startLimit bounds the time until a QEMU that was started listens.
const startLimit = 30 * time.Second

// runAndWait starts the destination's QEMU and waits until its QMP socket is there.
func runAndWait(ctx context.Context, command []string, qmp string) error {
	if err := runCommand(ctx, command); err != nil {
		return err
	}
	for deadline := time.Now().Add(startLimit); !answers(qmp); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("nobody listens at %s", qmp))
		}
	}
	return nil
}

// answers tells whether somebody listens at a unix socket.
func answers(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
