package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errCarry marks an error of the leases' way from daemon to daemon: the move is tried again, and they are recalled.
var errCarry = errors.New("the leases cannot be handed over")

// carryTimeout is how long leases may be halted: less than the source's daemon waits for a verdict, 30 s.
const carryTimeout = 15 * time.Second

// halt stops all leases. Nothing is on its way to a client afterwards, and the source sends what comes for the VM's own sockets to the destination, where it waits for
// the VM.
func (m *move) halt(ctx context.Context) error {
	m.held, m.left = true, true
	if err := m.destination.expect(ctx, &m.From); err != nil {
		return err
	}
	h, err := m.source.halt(ctx, m.To, m.HoldTimeout)
	m.report.Carried, m.report.Closed, m.report.HoldMs = h.Leases, h.Closed, h.LongestMs
	if err != nil && !errors.Is(err, errNoCarry) && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", errCarry, err)
	}
	return err
}

// carryOver is switchOver of a VM whose leases go along. Until the VM runs at the destination, nothing is said to a client there.
func (m *move) carryOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, carryTimeout)
	defer cancel()
	time.Sleep(settle)
	began := time.Now()
	m.paused = true
	if err := m.from.Pause(ctx); err != nil {
		return err
	}
	carried, err := m.source.export(ctx)
	if err != nil {
		return carryError(ctx, err)
	}
	taken := make(chan error, 1)
	go func() { taken <- m.destination.take(ctx, carried) }()
	err = m.sendRest(ctx)
	if err := errors.Join(err, carryError(ctx, <-taken)); err != nil {
		return err
	}
	if err := m.source.silent(ctx); err != nil {
		return carryError(ctx, err)
	}
	m.tell(Event{Phase: Switch, Taken: true})
	if err := m.goOnThere(ctx, began); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	m.committed = true
	if err := m.destination.commit(ctx, m.From); err != nil {
		return fmt.Errorf("%w: %w", errMayRun, err)
	}
	m.report.PausedMs = ms(time.Since(began))
	_ = m.source.leave(ctx, m.To) // a daemon that does not answer has no connection any more, or ends them all before long
	m.held = false
	return nil
}

// carryError marks an error that is not the end of ctx.
func carryError(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errCarry, err)
}
