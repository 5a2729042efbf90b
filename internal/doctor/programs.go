package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"golang.org/x/sys/unix"

	"spillway/internal/tcprepair"
)

// program is one of tcprepair's eBPF programs beside the one that freezes, which is the feature bpf-socket-filter.
type program struct {
	check  string // its name
	why    string
	status Status // of its absence
	lost   string
	needs  string       // of the kernel
	try    func() error // loads it, attaches it where that is how it works, and takes it away again
}

// programs returns those of a role.
func programs(role Role) []program {
	const cgroup = "Linux 5.3 with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL"
	all := []program{{
		"bpf-start-window", "a connection that changes hands keeps its congestion window",
		Warn, "connections that change hands begin slowly, with ten segments", cgroup, tryStartWindow,
	}}
	if role == Host {
		all = append(all, program{
			"bpf-halt", "a connection can be given back in the middle of a file",
			Warn, "a connection that is recalled in the middle of a file sends first what it has queued", cgroup, tryHalter,
		}, program{
			"bpf-hold", "what arrives while a connection is given back is sent on",
			Fail, "the daemon does not start", "Linux 5.8 with CONFIG_BPF_SYSCALL", tryHolder,
		})
	}
	return all
}

func tryStartWindow() error {
	w, err := tcprepair.NewStartWindow()
	if err != nil {
		return err
	}
	return w.Close()
}

// tryHalter halts a socket that has no connection: this attaches the program.
func tryHalter() error {
	h, err := tcprepair.NewHalter()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err == nil {
		if err = h.Halt(fd, 0); err == nil {
			h.Resume(fd)
		}
		err = errors.Join(err, unix.Close(fd))
	}
	return errors.Join(err, h.Close())
}

func tryHolder() error {
	h, err := tcprepair.NewHolder(func(_, _ netip.AddrPort) bool { return false })
	if err != nil {
		return err
	}
	return h.Close()
}

// programChecks returns a check for each program of the role.
func programChecks(role Role) []Check {
	var checks []Check
	for _, p := range programs(role) {
		checks = append(checks, Check{p.check, func(ctx context.Context, env Env) Result {
			return judgeProgram(p, env.try(p), checkRoot(ctx, env).Status == OK)
		}})
	}
	return checks
}

// judgeProgram says what it means that a program could not be loaded. Without root that is no wonder, whatever the error.
func judgeProgram(p program, err error, root bool) Result {
	switch {
	case err == nil:
		return Result{Status: OK, Detail: p.why}
	case errors.Is(err, fs.ErrPermission) || !root:
		return Result{
			Status: Warn, Detail: fmt.Sprintf("could not tell: %v", err),
			Hint: "run the doctor as root; where root may not either, allow bpf(2) in the sandbox, and set LimitMEMLOCK=infinity before Linux 5.11",
		}
	}
	hint := "run a kernel that has it: " + p.needs
	if errors.Is(err, tcprepair.ErrNoCgroup2) {
		hint = "run `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1"
	}
	return Result{Status: p.status, Detail: fmt.Sprintf("%s (%v)", p.lost, err), Hint: hint}
}
