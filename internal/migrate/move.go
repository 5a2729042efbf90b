package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway/internal/qemu"
)

// Defaults of a Plan.
const (
	defaultPrecopyTimeout = 5 * time.Minute
	defaultHoldTimeout    = 3 * time.Second
	defaultAnswerTimeout  = 10 * time.Second
)

// settle is how long the source's QEMU has for what was on the way to the VM when the addresses moved, before the VM is paused. It only has to copy it
// into the guest's memory, which moves.
const settle = time.Millisecond

// move is a Plan being carried out.
type move struct {
	Plan
	source, destination *daemon
	from, to            *qemu.QMP
	stream              *qemu.Stream // of the memory
	report              Report
	phase               Phase

	// What the way back has to undo.
	started   bool // the destination's QEMU
	migrating bool
	held      bool
	left      bool // the source has, or may have, given the addresses away
	paused    bool
	expected  bool // by the destination's daemon, with its leases
	committed bool // the destination's daemon may have gone on with them
	carry     bool // leases go along
	// served tells that the VM's server had a session, so that it has to find the destination's daemon; disks, that the VM can write where both hosts read.
	served bool
	disks  []string
}

// Run moves a VM. When it returns, the VM runs in one place: at the destination without an error, and where *Error says otherwise. An end of ctx before the
// VM is switched over takes it back; after that it is not heard.
func Run(ctx context.Context, plan Plan) (*Report, error) {
	m := &move{Plan: plan, source: newDaemon(plan.From, plan.VM), destination: newDaemon(plan.To, plan.VM)}
	m.setDefaults()
	m.report = Report{VM: plan.VM, From: plan.From.Name, To: plan.To.Name, PhasesMs: map[Phase]float64{}, Began: map[Phase]time.Time{}}
	began := time.Now()
	defer m.closeQMP()
	for try := 1; ; try++ {
		err := m.move(ctx)
		if err == nil {
			break
		}
		err = m.rollBack(ctx, err)
		if errors.Is(err, errCarry) { // then as ever
			m.Recall = true
		} else if !errors.Is(err, errIdle) {
			return nil, err
		}
		if try == maxTries {
			return nil, err
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err := m.commit(ctx); err != nil {
		return nil, err
	}
	m.report.Began[Done] = time.Now()
	m.report.TotalMs = ms(m.report.Began[Done].Sub(began))
	m.tell(Event{Phase: Done})
	return &m.report, nil
}

// maxTries is how often a guest may be paused too early (errIdle).
const maxTries = 4

// move carries out all phases that can be undone.
func (m *move) move(ctx context.Context) error {
	for _, step := range []struct {
		phase Phase
		do    func(context.Context) error
	}{{Check, m.check}, {Start, m.start}, {Precopy, m.precopy}, {Hold, m.hold}, {Switch, m.switchOver}} {
		if err := m.in(ctx, step.phase, step.do); err != nil {
			return err
		}
	}
	return nil
}

func (m *move) setDefaults() {
	for _, d := range []struct {
		value     *time.Duration
		byDefault time.Duration
	}{{&m.PrecopyTimeout, defaultPrecopyTimeout}, {&m.HoldTimeout, defaultHoldTimeout}, {&m.AnswerTimeout, defaultAnswerTimeout}} {
		if *d.value <= 0 {
			*d.value = d.byDefault
		}
	}
}

// in carries out a phase.
func (m *move) in(ctx context.Context, p Phase, do func(context.Context) error) error {
	m.phase = p
	m.tell(Event{Phase: p})
	began := time.Now()
	m.report.Began[p] = began
	err := ctx.Err()
	if err == nil {
		err = do(ctx)
	}
	m.report.PhasesMs[p] = ms(time.Since(began))
	return err
}

func (m *move) tell(e Event) {
	if m.Progress != nil {
		e.Time = time.Now()
		m.Progress(e)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (m *move) closeQMP() {
	for _, q := range []*qemu.QMP{m.from, m.to} {
		if q != nil {
			q.Close()
		}
	}
	m.closeStream()
}

func (m *move) closeStream() {
	if m.stream != nil {
		m.stream.Close()
		m.stream = nil
	}
}

// check finds out whether the VM can move.
func (m *move) check(ctx context.Context) (err error) {
	if m.from == nil {
		if m.from, err = qemu.DialQMP(ctx, m.From.QMP); err != nil {
			return fmt.Errorf("VM at %s: %w", m.From.Name, err)
		}
	}
	now, err := m.from.QueryMigration(ctx)
	if err != nil {
		return err
	}
	if !now.Status.Over() { // of one who was killed: it ends nowhere, and may have paused the VM
		if err := m.cancel(ctx); err != nil {
			return err
		}
	}
	if state, running, err := m.from.RunState(ctx); err != nil {
		return err
	} else if !running {
		return fmt.Errorf("the VM at %s does not run, it is %s", m.From.Name, state)
	}
	if m.disks, err = m.from.WritableDisks(ctx); err != nil {
		return err
	}
	if err := m.admit(ctx); err != nil {
		return err
	}
	return m.chooseWay(ctx)
}

// admit asks the destination's daemon whether it takes the VM as it is now.
func (m *move) admit(ctx context.Context) error {
	description, here, err := m.source.describe(ctx)
	if err != nil {
		return err
	}
	m.served = here.Sessions > 0
	return m.destination.admit(ctx, description)
}

// chooseWay finds out whether leases can go along.
func (m *move) chooseWay(ctx context.Context) error {
	_, here, err := m.source.describe(ctx)
	if err != nil {
		return err
	}
	_, there, err := m.destination.describe(ctx)
	if err != nil {
		return err
	}
	m.carry = !m.Recall && here.Sessions > 0 && here.Carries > 0 && here.Carries == there.Carries
	return nil
}

// start starts the destination's QEMU and tells both how the move is to go.
func (m *move) start(ctx context.Context) (err error) {
	if m.carry { // before QEMU connects to the channel: nobody must say HELLO on it
		m.expected = true
		if err := m.destination.expect(ctx, nil); err != nil {
			return err
		}
	}
	m.started = true
	if err := m.Plan.Start(ctx); err != nil {
		return fmt.Errorf("start the VM at %s: %w", m.To.Name, err)
	}
	if m.to, err = qemu.DialQMP(ctx, m.To.QMP); err != nil {
		return fmt.Errorf("VM at %s: %w", m.To.Name, err)
	}
	for _, q := range []*qemu.QMP{m.from, m.to} {
		if err := q.PrepareMigration(ctx, m.Options); err != nil {
			return err
		}
	}
	return m.to.Listen(ctx, m.URI)
}

// Bounds of what is left of a pass over the memory, bytes. With readyBytes or less the VM may be held: so much, and what is written while it is held, is sent while it is
// paused. From nearBytes on the pass is sent in steps, so that its end is not missed: at an end at which nothing was written, QEMU would pause the guest by itself.
const (
	readyBytes = 8 << 20
	nearBytes  = 2 << 20
	stepBytes  = 32 << 10
)

// precopy copies the memory until what the guest has written during the last pass is little. Then it holds the stream: there is something left to send, so QEMU goes on
// waiting, and the guest runs.
func (m *move) precopy(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, m.PrecopyTimeout)
	defer cancel()
	m.migrating = true
	if m.stream, err = m.from.MigrateThrough(ctx, m.URI, m.BytesPerSecond); err != nil {
		return err
	}
	pass, told := int64(1), time.Now()
	state, err := m.from.AwaitMigration(ctx, func(now qemu.Migration) bool {
		if time.Since(told) > 100*time.Millisecond {
			told = time.Now()
			m.tell(Event{Phase: Precopy, Copied: now})
		}
		switch {
		case now.Status != qemu.MigrationActive:
			return now.Status == qemu.MigrationPreSwitchover || now.Status == qemu.MigrationCompleted
		case now.Passes > pass && now.RemainingBytes > 0 && now.RemainingBytes <= readyBytes:
			m.stream.Hold()
			return true
		case now.RemainingBytes > nearBytes: // most of a pass is still to come
			pass = now.Passes
			m.stream.Flow()
		default: // what remains may be in QEMU's hands already
			pass = now.Passes
			m.stream.Step(stepBytes)
		}
		return false
	})
	switch {
	case errors.Is(err, qemu.ErrTimeout):
		return fmt.Errorf("the guest writes memory faster than it can be sent; allow more bandwidth, or auto-converge: %w", err)
	case err != nil:
		return err
	case state.Status != qemu.MigrationActive:
		return errIdle
	}
	return nil
}

// errIdle ends a pre-copy that is complete before anybody has asked for it, with leases at the host: a guest that writes nothing for a while. QEMU has paused it, and a paused
// guest cannot take its leases back.
var errIdle = errors.New("the guest was paused too early, as it wrote nothing; try again")

// earlyPoll is how often hold looks whether the guest was paused too early.
const earlyPoll = 20 * time.Millisecond

// hold halts all leases, or recalls them.
func (m *move) hold(ctx context.Context) error {
	if err := m.admit(ctx); err != nil { // what is being sent now must be there, too
		return err
	}
	if m.carry {
		err := m.halt(ctx)
		if !errors.Is(err, errNoCarry) {
			return err
		}
		m.carry = false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	early := make(chan bool, 1)
	go func() { // a guest that is paused gives nothing back
		_, err := m.from.WatchMigration(ctx, earlyPoll, func(now qemu.Migration) bool { return now.Status == qemu.MigrationPreSwitchover })
		early <- err == nil
		cancel()
	}()
	m.held = true
	h, err := m.source.hold(ctx, m.HoldTimeout)
	cancel()
	m.report.Recalled, m.report.Closed, m.report.HoldMs, m.report.Returns = h.Leases, h.Closed, h.LongestMs, h.Returns
	if tooEarly := <-early; err != nil && tooEarly {
		return errIdle
	}
	return err
}

// commit waits for the guest and ends the source.
func (m *move) commit(ctx context.Context) error {
	if err := m.in(ctx, Answer, m.answer); err != nil {
		return m.afterCommit(ctx, err)
	}
	if err := m.from.Execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, qemu.ErrQMPClosed) {
		return &Error{VM: m.VM, Phase: Answer, Runs: AtDestination, Err: err,
			Advice: fmt.Sprintf("end the paused QEMU at %s by hand", m.From.Name)}
	}
	return nil
}

// answerPoll is how often the destination's daemon is asked for the guest, runPoll how often its QEMU is. Clients are served meanwhile, so there is no hurry: each question
// takes some of the CPU time that the guest needs to find its host.
const (
	answerPoll = 10 * time.Millisecond
	runPoll    = 100 * time.Millisecond
)

// answer waits until the guest's server has found the destination's daemon. A VM without a server has to run only.
func (m *move) answer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.AnswerTimeout)
	defer cancel()
	if err := m.destination.arrive(ctx, m.From); err != nil { // once more: an announcement may get lost
		return err
	}
	for looked := (time.Time{}); ; {
		var there described
		if m.served {
			var err error
			if _, there, err = m.destination.describe(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if answered := there.Sessions > 0 || !m.served; answered || time.Since(looked) > runPoll {
			looked = time.Now()
			if _, running, err := m.to.RunState(ctx); err != nil {
				return err
			} else if running && answered {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the VM's server has not found the daemon of %s within %v", m.To.Name, m.AnswerTimeout)
		case <-time.After(answerPoll):
		}
	}
}
