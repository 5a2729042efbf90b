package qemu

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"spillway/internal/guestinit"
)

// migrationPair is a booted guest, and a VM that waits for it.
func migrationPair(t *testing.T) (source, destination *VM, controls [2]string) {
	t.Helper()
	program, err := FindProgram(filepath.Join("..", "..", "build", "cache", "qemu"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, guestinit.Spec{Commands: []guestinit.Command{{Name: "echo", Args: []string{"/init", "echo"}}}})
	cfg.Binary, cfg.Firmware = program.Binary, program.Firmware
	controls[0] = filepath.Join(cfg.RunDir, "ctl.sock")
	cfg.Channels = []Channel{{Name: guestinit.ControlPort, SocketPath: controls[0], Listen: true}}
	source = boot(t, cfg)

	cfg.RunDir, cfg.Incoming = t.TempDir(), true
	controls[1] = filepath.Join(cfg.RunDir, "ctl.sock")
	cfg.Channels = []Channel{{Name: guestinit.ControlPort, SocketPath: controls[1], Listen: true}}
	if destination, err = Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := destination.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return source, destination, controls
}

func dialVM(t *testing.T, vm *VM) *QMP {
	t.Helper()
	qmp, err := vm.QMP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { qmp.Close() })
	return qmp
}

// processes asks the guest for its commands.
func processes(t *testing.T, control string) []guestinit.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	c, err := guestinit.DialControl(ctx, control)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ps, err := c.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

// TestMigration moves a guest: pre-copy ends when it is told to and not before, can be taken back until then, and the same processes run at
// the destination.
func TestMigration(t *testing.T) {
	source, destination, controls := migrationPair(t)
	before := processes(t, controls[0])
	uri := "unix:" + filepath.Join(t.TempDir(), "m.sock")
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	from, to := dialVM(t, source), dialVM(t, destination)
	if m, err := from.QueryMigration(ctx); err != nil || m.Status != MigrationNone {
		t.Fatalf("before any migration: %+v, %v", m, err)
	}
	if disks, err := from.WritableDisks(ctx); err != nil || len(disks) > 0 {
		t.Errorf("disks of a VM without any: %v, %v", disks, err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []*QMP{from, to} {
		must(q.PrepareMigration(ctx, MigrationOptions{}))
	}
	must(to.Listen(ctx, uri))
	must(from.Migrate(ctx, uri))
	m, err := from.AwaitMigration(ctx, func(m Migration) bool { return m.Passes >= 3 })
	must(err)
	if m.TransferredBytes == 0 {
		t.Errorf("%d passes without a byte", m.Passes)
	}
	// While the guest runs and writes, nothing ends by itself. An idle guest may write nothing; then QEMU waits.
	if m.Status != MigrationActive && m.Status != MigrationPreSwitchover {
		t.Errorf("pre-copy is %s", m.Status)
	}
	must(from.Pause(ctx))
	_, err = from.AwaitMigration(ctx, func(m Migration) bool { return m.Status == MigrationPreSwitchover })
	must(err)
	if state, running, err := to.RunState(ctx); err != nil || running {
		t.Errorf("the destination is %s before it was told: %v", state, err)
	}
	must(from.ContinueMigration(ctx))
	m, err = from.AwaitMigration(ctx, func(m Migration) bool { return m.Status == MigrationCompleted })
	must(err)
	must(to.Resume(ctx))
	if _, running, err := to.RunState(ctx); err != nil || !running {
		t.Errorf("the destination does not run: %v", err)
	}
	t.Logf("%+v", m)
	after := processes(t, controls[1])
	if len(after) != 1 || len(before) != 1 || after[0].PID != before[0].PID {
		t.Errorf("the guest's commands: before %+v, after %+v", before, after)
	}
}

// TestMigrationCancelled: a destination that dies, and a change of mind, leave the source as it was.
func TestMigrationCancelled(t *testing.T) {
	source, destination, controls := migrationPair(t)
	uri := "unix:" + filepath.Join(t.TempDir(), "m.sock")
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	from, to := dialVM(t, source), dialVM(t, destination)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []*QMP{from, to} {
		must(q.PrepareMigration(ctx, MigrationOptions{}))
	}
	must(to.Listen(ctx, uri))
	stream, err := from.MigrateThrough(ctx, uri, 16<<20) // slow enough to be met half-way
	must(err)
	defer stream.Close()
	_, err = from.AwaitMigration(ctx, func(m Migration) bool { return m.TransferredBytes > 1<<20 })
	must(err)
	to.Close()
	must(destination.Stop(context.Background()))
	if m, err := from.AwaitMigration(ctx, func(m Migration) bool { return m.Status == MigrationCompleted }); err == nil || errors.Is(err, ErrTimeout) {
		t.Errorf("a migration whose destination died: %+v, %v", m, err)
	}
	must(from.CancelMigration(ctx)) // of none
	if state, running, err := from.RunState(ctx); err != nil || !running {
		t.Errorf("the source is %s: %v", state, err)
	}
	if ps := processes(t, controls[0]); len(ps) != 1 || ps[0].PID == 0 {
		t.Errorf("the guest's commands: %+v", ps)
	}
}

// TestAwaitMigrationEnds: a failure is told in QEMU's words, and the end of patience as such.
func TestAwaitMigrationEnds(t *testing.T) {
	status := `{"status": "active", "ram": {"remaining": 7, "transferred": 1, "dirty-sync-count": 2, "mbps": 8.0}}`
	c := dialFake(t, fakeQMP(t, testGreeting, func(write func(string, ...any), command, id string) {
		write(`{"return": %s, "id": %q}`, status, id)
		status = `{"status": "failed", "error-desc": "Unable to write"}`
	}))
	m, err := c.AwaitMigration(t.Context(), func(m Migration) bool { return m.RemainingBytes == 7 })
	if err != nil || m.BytesPerSecond != 1e6 || m.Passes != 2 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := c.AwaitMigration(t.Context(), func(Migration) bool { return false }); err == nil || err.Error() != "qemu: the migration has ended: failed: Unable to write" {
		t.Errorf("a failed migration: %v", err)
	}
	slow := dialFake(t, fakeQMP(t, testGreeting, func(write func(string, ...any), command, id string) {
		write(`{"return": {"status": "active"}, "id": %q}`, id)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := slow.AwaitMigration(ctx, func(Migration) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a migration that does not end: %v", err)
	}
}
