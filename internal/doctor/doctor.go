package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spillway/internal/feature"
	"spillway/internal/redirect"
)

// Role selects the checks: each end of Spillway needs other things.
type Role string

// The roles.
const (
	Host  Role = "host"
	Guest Role = "guest"
)

// Status is the outcome of a check.
type Status string

// The outcomes. Only Fail makes a report not OK.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, but slower or with less than it could
	Fail Status = "fail" // does not work until it is put right
	Skip Status = "skip" // not looked at, the detail says why
)

// Result is what a check found.
type Result struct {
	Status Status `json:"status"`
	Detail string `json:"detail"`         // what was found, one line
	Hint   string `json:"hint,omitempty"` // what to do, imperative, with the command; empty when there is nothing to do
}

// A Check looks at one thing. Run must not change anything, and returns when ctx is done.
type Check struct {
	Name string // kebab-case, stable: it is in the JSON output
	Run  func(ctx context.Context, env Env) Result
}

// Env says where to look. The zero value is this machine with the default configuration and without the things that have
// no default: their checks are skipped.
type Env struct {
	ProcRoot string // where procfs is; empty: /proc
	SysRoot  string // where sysfs is; empty: /sys
	DevRoot  string // where device nodes are; empty: /dev

	Redirect redirect.Config // host: names and numbers of the redirect
	QEMU     string          // host: program name or path; empty: qemu-system-x86_64

	ChannelSocket string // host: path of the unix socket on which a VM's channel is served
	ChannelPort   string // guest: name of the virtio-serial port
	Share         string // directory of a share: the tree on the host, the mount in the guest
	CacheDir      string // host: directory of the cache

	CacheMinFreeBytes uint64 // host: warn below this; 0: 1 GiB

	probe         func(feature.Feature) feature.Result
	try           func(program) error
	redirectCheck func(redirect.Config) (redirect.Status, error)
	patience      time.Duration // how long a check may wait for a file system or a program
}

const (
	defaultQEMU         = "qemu-system-x86_64"
	defaultMinFreeBytes = 1 << 30
	defaultPatience     = 10 * time.Second
)

func (e Env) withDefaults() Env {
	for field, value := range map[*string]string{
		&e.ProcRoot: "/proc", &e.SysRoot: "/sys", &e.DevRoot: "/dev", &e.QEMU: defaultQEMU,
	} {
		if *field == "" {
			*field = value
		}
	}
	if e.CacheMinFreeBytes == 0 {
		e.CacheMinFreeBytes = defaultMinFreeBytes
	}
	if e.probe == nil {
		e.probe = feature.Feature.Probe
	}
	if e.try == nil {
		e.try = func(p program) error { return p.try() }
	}
	if e.redirectCheck == nil {
		e.redirectCheck = redirect.Check
	}
	if e.patience == 0 {
		e.patience = defaultPatience
	}
	return e
}

// proc reads a file of procfs without the white space around it.
func (e Env) proc(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(e.ProcRoot, path))
	return strings.TrimSpace(string(text)), err
}

// Checks returns the checks of a role in the order in which they run: what others depend on comes first.
func Checks(role Role) []Check {
	checks := []Check{
		{"root", checkRoot},
		{"kernel-version", func(_ context.Context, env Env) Result { return checkKernelVersion(env, role) }},
		{"window-retraction", checkWindowRetraction},
	}
	checks = append(checks, featureChecks(role)...)
	checks = append(checks, programChecks(role)...)
	checks = append(checks, Check{"tcp-timestamps", checkTimestamps}, Check{"mptcp", checkMPTCP})
	if role == Host {
		checks = append(checks,
			Check{"redirect", checkRedirect},
			Check{"src-valid-mark", checkSrcValidMark},
			Check{"ip-forward", checkForward4},
			Check{"ipv6-forward", checkForward6},
			Check{"fwmark-reflect", checkFwmarkReflect},
			Check{"conntrack", checkConntrack},
			Check{"bridged-guests", checkBridgedGuests},
			Check{"qemu", checkQEMU},
			Check{"channel", checkChannelSocket},
			Check{"cache-disk", checkCacheDisk},
		)
	} else {
		checks = append(checks, Check{"channel", checkChannelPort})
	}
	return append(checks, Check{"share", func(ctx context.Context, env Env) Result { return checkShare(ctx, env, role) }})
}

// Run runs every check of the role and reports what they found. It stops early only when ctx is done; the checks that are
// left are then reported as skipped.
func Run(ctx context.Context, env Env, role Role) Report {
	env = env.withDefaults()
	report := Report{Schema: Schema, Role: role}
	report.Kernel, _ = env.proc("sys/kernel/osrelease") // kernel-version reports the error
	for _, c := range Checks(role) {
		result := Result{Status: Skip, Detail: "not reached: the doctor was stopped"}
		if ctx.Err() == nil {
			result = c.Run(ctx, env)
		}
		report.Checks = append(report.Checks, Finding{Name: c.Name, Result: result})
	}
	report.Healthy = report.OK()
	return report
}

// within gives up on f after the environment's patience: a dead 9p mount or a stuck program must not hide what the other
// checks find. The goroutine that is left behind ends with the system call that it is in.
func within(ctx context.Context, env Env, what string, f func(context.Context) Result) Result {
	ctx, cancel := context.WithTimeout(ctx, env.patience)
	defer cancel()
	done := make(chan Result, 1)
	go func() { done <- f(ctx) }()
	select {
	case r := <-done:
		if ctx.Err() == nil {
			return r
		} // else r only tells that f was interrupted
	case <-ctx.Done():
	}
	return Result{
		Status: Fail, Detail: fmt.Sprintf("%s did not answer: %v", what, context.Cause(ctx)),
		Hint: "look for a hung file system or device in `dmesg`, then remount or restart it",
	}
}
