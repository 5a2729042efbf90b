package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/feature"
)

// VM is a running QEMU process. All methods may be called concurrently.
type VM struct {
	cfg     Config
	process *os.Process
	version Version
	accel   Accel
	servers []server // of virtiofs shares; complete before QEMU starts

	done    chan struct{} // closed when the process has ended
	exitErr error         // how it ended: nil for status 0, or when it was no child of ours; read only after done
}

// startTimeout bounds the time from exec to QMP's answer; a loaded machine needs a second or two.
const startTimeout = 30 * time.Second

// Start runs QEMU and returns when it answers on QMP, that is when the guest's first instruction is about to run. Use
// WaitConsole to wait for the guest. When Start fails no process is left. Unless Config.Detached is set, QEMU is killed
// when this process ends, however it ends.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	const op = "start"
	cfg = cfg.withDefaults()
	vm := &VM{cfg: cfg, done: make(chan struct{})}
	if err := cfg.validate(); err != nil {
		return nil, vm.failed(op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	if vm.version, err = ProgramVersion(ctx, cfg.Binary); err != nil {
		return nil, vm.failed(op, err)
	}
	if vm.cfg.Accel == AccelAuto {
		vm.cfg.Accel = bestAccel()
	}
	vm.removeSockets() // of a QEMU that was killed: waitQMP must not meet them
	if err := vm.exec(); err != nil {
		return nil, vm.failed(op, err)
	}
	if err := vm.identify(ctx); err != nil {
		cause := vm.fail(op, err)
		vm.Stop(ctx)
		cause.Running = !vm.exited()
		return nil, cause
	}
	return vm, nil
}

// bestAccel is what AccelAuto means on this machine. QEMU's own fallback, which takes TCG when /dev/kvm cannot be opened, would be content
// with a KVM that boots no kernel.
func bestAccel() Accel {
	if f, ok := feature.Lookup("kvm"); ok && f.Probe().Outcome == feature.Supported {
		return AccelKVM
	}
	return AccelTCG
}

// exec starts the process, and before it the servers of its shares.
func (vm *VM) exec() error {
	cmd := exec.Command(vm.cfg.Binary, vm.cfg.args(vm.version)...)
	output, err := os.Create(vm.cfg.logPath())
	if err != nil {
		return err
	}
	defer output.Close()
	// A console of an earlier VM in the same directory would be taken for this one's until QEMU truncates it.
	if err := os.Remove(vm.cfg.ConsolePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd.Stdout, cmd.Stderr = output, output
	for _, t := range vm.cfg.Taps {
		tap, err := t.open()
		if err != nil {
			return err
		}
		defer tap.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, tap)
	}
	for i := range vm.cfg.Virtiofs {
		if err := vm.startVirtiofs(i); err != nil {
			vm.endServers()
			return err
		}
	}
	err = vm.startProcess(cmd, func(err error) {
		vm.endServers()
		vm.exitErr = err
		close(vm.done)
	})
	if err != nil {
		vm.endServers()
		return err
	}
	vm.process = cmd.Process
	return nil
}

// startProcess starts a process of the VM. ended is called when it has ended.
func (vm *VM) startProcess(cmd *exec.Cmd, ended func(error)) error {
	// Out of our process group in any case: an interrupt typed at the terminal is ours to handle, not QEMU's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if vm.cfg.Detached {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	started := make(chan error)
	go func() {
		// PR_SET_PDEATHSIG fires when the thread that forked ends, not the process (prctl(2)): keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended(cmd.Wait())
		}
	}()
	return <-started
}

// identify waits for QMP and asks which accelerator is in use.
func (vm *VM) identify(ctx context.Context) error {
	qmp, err := vm.waitQMP(ctx)
	if err != nil {
		return err
	}
	defer qmp.Close()
	vm.version = qmp.Version()
	var kvm struct{ Enabled bool }
	if err := qmp.Execute(ctx, "query-kvm", nil, &kvm); err != nil {
		return err
	}
	vm.accel = AccelTCG
	if kvm.Enabled {
		vm.accel = AccelKVM
	}
	return nil
}

// waitQMP connects to QMP as soon as the process listens.
func (vm *VM) waitQMP(ctx context.Context) (*QMP, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // an exit interrupts the wait for the greeting
		select {
		case <-vm.done:
			cancel(ErrExited)
		case <-stop:
		}
	}()
	for {
		qmp, err := DialQMP(ctx, vm.cfg.QMPSocket)
		if err == nil {
			return qmp, nil
		}
		select {
		case <-vm.done:
			return nil, vm.exitError()
		case <-ctx.Done():
			if vm.exited() {
				return nil, vm.exitError()
			}
			return nil, fmt.Errorf("%w; last: %w", timeoutError(ctx), err)
		case <-time.After(pollInterval):
		}
	}
}

// Attach finds a VM again that an earlier process started with the same Config; only Name, RunDir and the sockets count.
// When nobody listens on its QMP socket the error wraps ErrNotRunning. A QEMU that listens but does not answer is returned
// beside the error, so that it can be stopped.
func Attach(ctx context.Context, cfg Config) (*VM, error) {
	const op = "attach to"
	cfg = cfg.withDefaults()
	vm := &VM{cfg: cfg, done: make(chan struct{})}
	pid, err := listenerPID(ctx, cfg.QMPSocket)
	if err != nil {
		return nil, vm.failed(op, err)
	}
	if vm.process, err = os.FindProcess(pid); err != nil {
		return nil, vm.failed(op, err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, vm.failed(op, fmt.Errorf("pidfd_open %d: %w", pid, err))
	}
	go func() {
		defer unix.Close(pidfd)
		waitPidfd(pidfd)
		close(vm.done)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := vm.identify(ctx); err != nil {
		return vm, vm.fail(op, err)
	}
	return vm, nil
}

// waitPidfd blocks until the process has ended; it needs not be a child of ours.
func waitPidfd(pidfd int) {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Accel is the accelerator that QEMU really uses.
func (vm *VM) Accel() Accel { return vm.accel }

// Version is QEMU's version.
func (vm *VM) Version() Version { return vm.version }

// PID is QEMU's process id.
func (vm *VM) PID() int { return vm.process.Pid }

// Done is closed when the QEMU process has ended.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// QMP opens a connection for more than Start and Stop do. The caller closes it soon: QEMU serves one at a time.
func (vm *VM) QMP(ctx context.Context) (*QMP, error) { return DialQMP(ctx, vm.cfg.QMPSocket) }

// Wait waits until QEMU ends by itself, for instance since the guest powered off.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.done:
	case <-ctx.Done():
		return vm.fail("wait for", timeoutError(ctx))
	}
	vm.removeSockets()
	if vm.exitErr != nil {
		return vm.fail("wait for", vm.exitError())
	}
	return nil
}

// How long each step of Stop may take.
const (
	quitTimeout = 3 * time.Second
	termTimeout = 3 * time.Second
	killTimeout = 10 * time.Second
)

// Stop ends QEMU, by QMP's quit, then SIGTERM, then SIGKILL, waits for its end and removes its sockets. The guest is not
// asked. An ended context skips to SIGKILL; an error means that the process is still there.
func (vm *VM) Stop(ctx context.Context) error {
	defer vm.removeSockets()
	for _, step := range []struct {
		act     func(context.Context)
		timeout time.Duration
	}{
		{vm.quit, quitTimeout},
		{func(context.Context) { vm.process.Signal(syscall.SIGTERM) }, termTimeout},
	} {
		stepCtx, cancel := context.WithTimeout(ctx, step.timeout)
		if !vm.exited() && stepCtx.Err() == nil {
			step.act(stepCtx)
			vm.awaitExit(stepCtx)
		}
		cancel()
	}
	if vm.exited() {
		return nil
	}
	vm.process.Kill()
	killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if !vm.awaitExit(killCtx) {
		return vm.fail("stop", ErrTimeout)
	}
	return nil
}

// quit asks QEMU to end. Errors do not matter: the next step is harder.
func (vm *VM) quit(ctx context.Context) {
	qmp, err := vm.waitQMP(ctx)
	if err != nil {
		return
	}
	defer qmp.Close()
	_ = qmp.Execute(ctx, "quit", nil, nil)
}

func (vm *VM) awaitExit(ctx context.Context) bool {
	select {
	case <-vm.done:
		return true
	case <-ctx.Done():
		return vm.exited()
	}
}

func (vm *VM) exited() bool {
	select {
	case <-vm.done:
		return true
	default:
		return false
	}
}

func (vm *VM) removeSockets() {
	for _, s := range vm.cfg.ownSockets() {
		os.Remove(s)
	}
}

// exitError says how the process ended; call it only after done.
func (vm *VM) exitError() error {
	if vm.exitErr == nil {
		return ErrExited
	}
	return fmt.Errorf("%w: %w", ErrExited, vm.exitErr)
}

// timeoutError names why a context ended: ErrTimeout wraps a deadline, not a cancellation.
func timeoutError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrTimeout, ctx.Err())
	}
	return ctx.Err()
}

// fail makes the error of an operation on a VM whose process was started.
func (vm *VM) fail(op string, cause error) *Error {
	e := vm.failed(op, cause)
	e.Running = !vm.exited()
	e.Stderr = tail(vm.cfg.logPath())
	e.Console = vm.ConsoleTail()
	return e
}

// failed makes the error of an operation that found or left no process.
func (vm *VM) failed(op string, cause error) *Error {
	return &Error{Op: op, VM: vm.cfg.Name, Err: cause}
}
