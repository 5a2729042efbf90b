package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"spillway/internal/qemu"
)

// rollbackTimeout bounds the way back. Each step has its own limits, too.
const rollbackTimeout = 30 * time.Second

// rollBack makes everything as it was and returns the error to report. All steps are tried, whatever becomes of the others; the VM comes first.
func (m *move) rollBack(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if errors.Is(cause, errMayRun) {
		return m.afterCommit(ctx, cause)
	}
	out := &Error{VM: m.VM, Phase: m.phase, Runs: AtSource}
	out.Err = errors.Join(cause, m.undo(ctx))
	m.started, m.migrating, m.held, m.left, m.paused, m.expected, m.committed = false, false, false, false, false, false, false
	return out
}

// undo is rollBack without its error.
func (m *move) undo(ctx context.Context) error {
	var errs []error
	if m.migrating {
		errs = append(errs, m.cancel(ctx))
	}
	if m.left {
		errs = append(errs, m.source.arrive(ctx, m.To), m.destination.depart(ctx, m.From))
	}
	if m.paused {
		errs = append(errs, m.goOn(ctx))
	}
	if m.held {
		errs = append(errs, m.source.resume(ctx, m.committed))
	}
	if m.expected {
		errs = append(errs, m.destination.resume(ctx, false))
	}
	if m.started {
		errs = append(errs, m.stopDestination(ctx))
	}
	return errors.Join(errs...)
}

// cancel ends the migration and lets the guest run, if it was paused for it.
func (m *move) cancel(ctx context.Context) error {
	if err := m.from.CancelMigration(ctx); err != nil {
		return err
	}
	m.closeStream() // QEMU may be waiting for it
	_, err := m.from.AwaitMigration(ctx, func(now qemu.Migration) bool { return now.Status.Over() })
	if err != nil {
		return err
	}
	m.migrating = false
	if m.paused {
		return nil // goOn does it, when the addresses are back
	}
	return m.goOn(ctx)
}

// goOn lets the source's guest run.
func (m *move) goOn(ctx context.Context) error {
	if _, running, err := m.from.RunState(ctx); err == nil && running {
		return nil
	}
	if err := m.from.Resume(ctx); err != nil {
		return fmt.Errorf("the VM at %s is still paused; continue it by QMP's cont: %w", m.From.Name, err)
	}
	return nil
}

func (m *move) stopDestination(ctx context.Context) error {
	if m.to != nil {
		m.to.Close() // QEMU serves one client at a time
		m.to = nil
	}
	if err := m.Stop(ctx); err != nil {
		return fmt.Errorf("end the VM at %s: %w", m.To.Name, err)
	}
	return nil
}

// afterCommit deals with a VM that was told to run at the destination and does not answer. If its QEMU there is dead, the source goes on, unless the guest may have written to a disk in
// the meantime, which the source's memory would know nothing of. If it lives, the VM stays there.
func (m *move) afterCommit(ctx context.Context, cause error) error {
	out := &Error{VM: m.VM, Phase: m.phase, Runs: AtDestination, Err: cause}
	probe, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, running, err := m.to.RunState(probe)
	if err == nil && running {
		if m.committed { // nobody goes on with what the source still has
			out.Err = errors.Join(cause, m.source.resume(ctx, true))
		}
		out.Advice = fmt.Sprintf("it serves its clients by itself there, as far as it can without the host: look at the daemon of %s; the source at %s is paused, end it when all is well", m.To.Name, m.From.Name)
		return out
	}
	if len(m.disks) > 0 {
		out.Advice = fmt.Sprintf("its QEMU at %s does not answer, and the source at %s is paused, but the VM may have written to %s since: continue the source only if you know that it has not",
			m.To.Name, m.From.Name, strings.Join(m.disks, ", "))
		out.Runs = "destination, if anywhere"
		return out
	}
	if err := m.stopDestination(ctx); err != nil { // never two of it
		out.Err = errors.Join(cause, err)
		out.Advice = fmt.Sprintf("the source at %s is paused: continue it by QMP's cont when the VM at %s is certainly dead", m.From.Name, m.To.Name)
		return out
	}
	m.started = false
	out.Runs = AtSource
	out.Err = errors.Join(cause, m.undo(ctx))
	out.Advice = "it goes on from the moment of its pause; connections that had moved on since are reset"
	return out
}
