package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway/internal/qemu"
)

// switchOver moves the addresses and then the VM. Until its last step returns without an error, the VM has not run at the destination.
func (m *move) switchOver(ctx context.Context) error {
	if m.carry {
		return m.carryOver(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, m.PrecopyTimeout)
	defer cancel()
	m.left = true
	if err := m.destination.arrive(ctx, m.From); err != nil {
		return err
	}
	if err := m.source.depart(ctx, m.To); err != nil {
		return err
	}
	time.Sleep(settle)
	began := time.Now()
	m.paused = true
	if err := m.from.Pause(ctx); err != nil {
		return err
	}
	if err := m.sendRest(ctx); err != nil {
		return err
	}
	return m.goOnThere(ctx, began)
}

// sendRest sends what is left of the memory of the paused VM, and its devices.
func (m *move) sendRest(ctx context.Context) error {
	m.stream.Flood()
	if _, err := m.from.AwaitMigration(ctx, func(now qemu.Migration) bool { return now.Status == qemu.MigrationPreSwitchover }); err != nil {
		return err
	}
	if err := m.from.ContinueMigration(ctx); err != nil {
		return err
	}
	last, err := m.from.AwaitMigration(ctx, func(now qemu.Migration) bool { return now.Status == qemu.MigrationCompleted })
	if err != nil {
		return err
	}
	m.migrating = false
	m.report.DowntimeMs, m.report.Bytes, m.report.Passes = ms(last.Downtime), last.TransferredBytes, last.Passes
	return nil
}

// goOnThere lets the VM run, paused since then: the commit point.
func (m *move) goOnThere(ctx context.Context, paused time.Time) error {
	if err := ctx.Err(); err != nil { // the last chance
		return err
	}
	if err := m.to.Resume(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("%w: %w", errMayRun, err)
	}
	m.report.PausedMs = ms(time.Since(paused))
	return nil
}

// errMayRun marks an error after which the VM may have run at the destination.
var errMayRun = errors.New("the order to go on was not answered")
