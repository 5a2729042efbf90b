package doctor

import (
	"context"
	"fmt"
	"strings"

	"spillway/internal/feature"
)

func checkRoot(_ context.Context, env Env) Result {
	status, err := env.proc("self/status")
	if err != nil {
		return unreadable(err)
	}
	for line := range strings.Lines(status) {
		ids, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		if f := strings.Fields(ids); len(f) > 1 && f[1] == "0" { // real, effective, saved, file system
			return Result{Status: OK, Detail: "runs as root"}
		}
		return Result{
			Status: Warn, Detail: "does not run as root: checks that need a privilege could not tell",
			Hint: "run `sudo spillway doctor`",
		}
	}
	return unreadable(fmt.Errorf("%s/self/status has no Uid line", env.ProcRoot))
}

// checkKernelVersion compares with what the role's features need by their version. It never fails: distributions backport,
// and the features themselves are tried.
func checkKernelVersion(env Env, role Role) Result {
	kernel, err := runningKernel(env)
	if err != nil {
		return unreadable(err)
	}
	var newest feature.Feature
	wanted := needs(role)
	for _, f := range feature.All() {
		if wanted[f.Name].status == Fail && f.MinKernel.AtLeast(newest.MinKernel) {
			newest = f
		}
	}
	if !kernel.AtLeast(newest.MinKernel) {
		return Result{
			Status: Warn, Detail: fmt.Sprintf("Linux %v is older than %v, which brought %s", kernel, newest.MinKernel, newest.Name),
			Hint: fmt.Sprintf("boot Linux %v or newer, unless every feature below is there", newest.MinKernel),
		}
	}
	return Result{Status: OK, Detail: fmt.Sprintf("Linux %v, needed is %v (%s)", kernel, newest.MinKernel, newest.Name)}
}

// checkWindowRetraction warns of kernels that drop data after a restore when the receive window had been retracted before
// (from 6.17 until commit 0e24d17bd966, criu pull request 3042). Which stable releases have the fix cannot be told from
// outside, so it points at the counter of the drops.
func checkWindowRetraction(_ context.Context, env Env) Result {
	kernel, err := runningKernel(env)
	if err != nil {
		return unreadable(err)
	}
	if !kernel.AtLeast(feature.Kernel{Major: 6, Minor: 17}) {
		return Result{Status: OK, Detail: fmt.Sprintf("Linux %v does not have the bug of 6.17", kernel)}
	}
	counter := "unknown"
	if netstat, err := env.proc("thread-self/net/netstat"); err == nil {
		if value, ok := netstatValue(netstat, "TcpExt", "BeyondWindow"); ok {
			counter = value
		}
	}
	return Result{
		Status: Warn,
		Detail: fmt.Sprintf("Linux %v may drop data of a restored connection whose window had shrunk; TcpExtBeyondWindow is %s", kernel, counter),
		Hint:   "boot a kernel with commit 0e24d17bd966 or one before 6.17; until then watch `nstat -az TcpExtBeyondWindow`: it must not grow with handovers",
	}
}

// netstatValue finds a value in the pairs of lines, names and numbers, of /proc/net/netstat.
func netstatValue(netstat, group, name string) (string, bool) {
	var names []string
	for line := range strings.Lines(netstat) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != group+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == name && i < len(f) {
				return f[i], true
			}
		}
	}
	return "", false
}

func runningKernel(env Env) (feature.Kernel, error) {
	release, err := env.proc("sys/kernel/osrelease")
	if err != nil {
		return feature.Kernel{}, err
	}
	return feature.ParseKernel(release)
}

// unreadable is the result of a check that could not look.
func unreadable(err error) Result {
	return Result{Status: Warn, Detail: fmt.Sprintf("could not look: %v", err), Hint: "mount /proc and /sys, and run the doctor as root"}
}
