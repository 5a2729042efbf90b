package qemu

import (
	"context"
	"fmt"
	"time"
)

// MigrationOptions of a move. Both sides are given the same.
type MigrationOptions struct {
	// AutoConverge slows the guest down while it writes memory faster than that is sent.
	AutoConverge bool
	// MultifdChannels is how many connections carry the memory; 0: the one that everything else goes over. It needs a URI of a socket.
	MultifdChannels int
}

// unbounded is more than any machine moves, bytes per second.
const unbounded = 1 << 40

// PrepareMigration tells one side of a migration how it is to go, before Listen or Migrate.
//
// QEMU's own idea of when to switch over, as soon as what is left fits into an allowed downtime, is all but switched off: it goes on copying until the
// guest is paused (Pause) or writes no memory at all, and then it waits for ContinueMigration. With return-path the source hears whether the
// destination could take the VM.
func (c *QMP) PrepareMigration(ctx context.Context, opts MigrationOptions) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	capabilities := []capability{
		{"events", true}, {"pause-before-switchover", true}, {"return-path", true},
		{"auto-converge", opts.AutoConverge}, {"multifd", opts.MultifdChannels > 0},
	}
	if err := c.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	parameters := map[string]any{
		"max-bandwidth":  int64(unbounded), // see MigrateThrough
		"downtime-limit": 1,                // ms; 0 would end pre-copy after one pass, whatever was written meanwhile (migration_iteration_run, migration/migration.c)
	}
	if opts.MultifdChannels > 0 {
		parameters["multifd-channels"] = opts.MultifdChannels
	}
	if c.version.atLeast(8, 2) {
		parameters["avail-switchover-bandwidth"] = 1000 // bytes a second: with the above, one byte may be left
	}
	return c.Execute(ctx, "migrate-set-parameters", parameters, nil)
}

// Listen makes a VM that was started with Config.Incoming wait for the source at uri ("unix:PATH", "tcp:ADDRESS:PORT").
func (c *QMP) Listen(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate-incoming", map[string]any{"uri": uri}, nil)
}

// Migrate begins pre-copy to uri. It returns when QEMU has begun.
func (c *QMP) Migrate(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate", map[string]any{"uri": uri}, nil)
}

// ContinueMigration lets a migration in MigrationPreSwitchover go on to its end.
func (c *QMP) ContinueMigration(ctx context.Context) error {
	return c.Execute(ctx, "migrate-continue", map[string]any{"state": MigrationPreSwitchover}, nil)
}

// CancelMigration ends a migration; the VM is as it was. Without one it does nothing.
func (c *QMP) CancelMigration(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}

// Pause stops the guest's CPUs.
func (c *QMP) Pause(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Resume lets the guest's CPUs run, from Pause or after a migration that has arrived.
func (c *QMP) Resume(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// RunState of a VM, and whether its CPUs run ("running", "paused", "inmigrate", "postmigrate" …).
func (c *QMP) RunState(ctx context.Context) (state string, running bool, err error) {
	var reply struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	err = c.Execute(ctx, "query-status", nil, &reply)
	return reply.Status, reply.Running, err
}

// WritableDisks names the block devices that the guest can write to.
func (c *QMP) WritableDisks(ctx context.Context) (names []string, err error) {
	var reply []struct {
		Device   string `json:"device"`
		QDev     string `json:"qdev"`
		Inserted *struct {
			ReadOnly bool `json:"ro"`
		} `json:"inserted"`
	}
	if err := c.Execute(ctx, "query-block", nil, &reply); err != nil {
		return nil, err
	}
	for _, b := range reply {
		if b.Inserted != nil && !b.Inserted.ReadOnly {
			name := b.Device
			if name == "" {
				name = b.QDev
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// MigrationStatus of a VM, as query-migrate names it (qapi/migration.json).
type MigrationStatus string

// Those that mean something here. There are more on the way from one to the next.
const (
	MigrationNone          MigrationStatus = ""
	MigrationActive        MigrationStatus = "active"
	MigrationPreSwitchover MigrationStatus = "pre-switchover"
	MigrationCompleted     MigrationStatus = "completed"
	MigrationFailed        MigrationStatus = "failed"
	MigrationCancelled     MigrationStatus = "cancelled"
)

// Over tells that nothing is under way.
func (s MigrationStatus) Over() bool {
	return s == MigrationNone || s == MigrationCompleted || s == MigrationFailed || s == MigrationCancelled
}

// Migration is how far a migration is.
type Migration struct {
	Status MigrationStatus
	Reason string // of a failure

	Total    time.Duration // since Migrate
	Downtime time.Duration // QEMU's own, of a completed one: without the time that the guest was paused before

	TransferredBytes int64
	RemainingBytes   int64 // to be sent, as far as is known
	Passes           int64 // over the memory
	BytesPerSecond   int64 // sent lately
}

// QueryMigration asks how far the migration is. MigrationNone means that there never was one.
func (c *QMP) QueryMigration(ctx context.Context) (Migration, error) {
	var reply struct {
		Status   MigrationStatus `json:"status"`
		Error    string          `json:"error-desc"`
		Total    int64           `json:"total-time"` // ms
		Downtime int64           `json:"downtime"`   // ms
		RAM      struct {
			Transferred int64   `json:"transferred"`
			Remaining   int64   `json:"remaining"`
			Passes      int64   `json:"dirty-sync-count"`
			MbPerSecond float64 `json:"mbps"`
		} `json:"ram"`
	}
	if err := c.Execute(ctx, "query-migrate", nil, &reply); err != nil {
		return Migration{}, err
	}
	return Migration{
		Status: reply.Status, Reason: reply.Error,
		Total: time.Duration(reply.Total) * time.Millisecond, Downtime: time.Duration(reply.Downtime) * time.Millisecond,
		TransferredBytes: reply.RAM.Transferred, RemainingBytes: reply.RAM.Remaining, Passes: reply.RAM.Passes,
		BytesPerSecond: int64(reply.RAM.MbPerSecond * 1e6 / 8),
	}, nil
}

// migrationPoll is how often AwaitMigration looks. While it waits for the end, clients wait too.
const migrationPoll = time.Millisecond

// AwaitMigration waits until done is satisfied. A migration that is over otherwise is an error.
func (c *QMP) AwaitMigration(ctx context.Context, done func(Migration) bool) (Migration, error) {
	return c.WatchMigration(ctx, migrationPoll, done)
}

// WatchMigration is AwaitMigration that looks only so often: each look takes QEMU's big lock from the guest.
func (c *QMP) WatchMigration(ctx context.Context, every time.Duration, done func(Migration) bool) (Migration, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		m, err := c.QueryMigration(ctx)
		switch {
		case ctx.Err() != nil:
			return m, fmt.Errorf("qemu: migration (%s, %d bytes left): %w", m.Status, m.RemainingBytes, timeoutError(ctx))
		case err != nil:
			return m, err
		case done(m):
			return m, nil
		case m.Status.Over():
			if m.Reason != "" {
				return m, fmt.Errorf("qemu: the migration has ended: %s: %s", m.Status, m.Reason)
			}
			return m, fmt.Errorf("qemu: the migration has ended: %s", m.Status)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
