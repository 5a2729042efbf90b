package feature

import (
	"errors"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTable holds what other packages and the JSON output rely on.
func TestTable(t *testing.T) {
	kebab := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	var names []string
	for _, f := range All() {
		if !kebab.MatchString(f.Name) || slices.Contains(names, f.Name) {
			t.Errorf("%q is no unique kebab-case name", f.Name)
		}
		names = append(names, f.Name)
		if f.Why == "" || f.Needs() == "" || f.probe == nil {
			t.Errorf("%s: why %q, needs %q, probe %t", f.Name, f.Why, f.Needs(), f.probe != nil)
		}
		if got, ok := Lookup(f.Name); !ok || got.Name != f.Name {
			t.Errorf("Lookup(%q) = %q, %t", f.Name, got.Name, ok)
		}
	}
	if _, ok := Lookup("no-such-feature"); ok {
		t.Error("Lookup finds what is not there")
	}
}

// TestProbes runs every probe for real. A kernel that should have the feature must have it when we are root, and a probe
// must never change the namespace that we are in.
func TestProbes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("most probes need root")
	}
	kernel, release, err := RunningKernel()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := namespace(t)
	for _, f := range All() {
		r := f.Probe()
		t.Logf("%-22s %v %v", f.Name, r.Outcome, r.Err)
		switch {
		case (r.Err == nil) != (r.Outcome == Supported):
			t.Errorf("%s: outcome %v with error %v", f.Name, r.Outcome, r.Err)
		case r.Outcome == Unknown:
			t.Errorf("%s: root could not tell: %v", f.Name, r.Err)
		case r.Outcome == Unsupported && f.Kind == KindKernel && kernel.AtLeast(f.MinKernel):
			t.Errorf("%s should have %s: %v", release, f.Name, r.Err)
		case r.Outcome == Unsupported && f.Kind == KindCapability:
			t.Errorf("root lacks %s: %v", f.Name, r.Err)
		case r.Outcome == Unsupported && !errors.Is(r.Err, errors.ErrUnsupported):
			t.Errorf("%s: %v is no errors.ErrUnsupported", f.Name, r.Err)
		}
	}
	if after := namespace(t); after != before {
		t.Errorf("the probes moved this thread from %s to %s", before, after)
	}
}

func namespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestProbesLeaveNoDescriptor also runs as the check that an absent device closes what it opened.
func TestProbesLeaveNoDescriptor(t *testing.T) {
	probeAll := func() {
		for _, f := range All() {
			f.Probe()
		}
	}
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	probeAll() // whatever the runtime and the libraries open once
	before := count()
	probeAll()
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestWithoutCapabilities: an unprivileged process could not tell, or knows; it never takes the want of a privilege for
// the want of a feature.
func TestWithoutCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("dropping capabilities needs root")
	}
	type answer struct {
		feature Feature
		result  Result
	}
	answers := make(chan answer, len(All()))
	errs := make(chan error, 1)
	go func() {
		defer close(answers)
		runtime.LockOSThread() // and never unlock: the thread without capabilities ends with this goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			errs <- err
			return
		}
		for _, name := range []string{
			"cap-net-admin", "tcp-repair", "tcp-repair-window", "tcp-repair-silent-off", "ip-transparent", "ipv6-transparent", "openat2", "sendfile",
		} {
			f, ok := Lookup(name)
			if !ok {
				errs <- errors.New(name + " is not in the table")
				return
			}
			answers <- answer{f, f.Probe()}
		}
	}()
	for a := range answers {
		want := Supported
		switch {
		case a.feature.Kind == KindCapability:
			want = Unsupported
		case strings.HasPrefix(a.feature.Name, "tcp-repair"), strings.HasSuffix(a.feature.Name, "transparent"):
			want = Unknown
			if !errors.Is(a.result.Err, os.ErrPermission) {
				t.Errorf("%s: %v is no permission error", a.feature.Name, a.result.Err)
			}
		}
		if a.result.Outcome != want {
			t.Errorf("%s without capabilities: %v (%v), want %v", a.feature.Name, a.result.Outcome, a.result.Err, want)
		}
	}
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
}

func TestProbeVerdicts(t *testing.T) {
	f := Feature{Name: "x", MinKernel: Kernel{5, 6, 0}, Brings: "CONFIG_X"}
	for name, tt := range map[string]struct {
		err  error
		want Outcome
		says string
	}{
		"works":       {nil, Supported, ""},
		"absent":      {absentIf(unix.ENOSYS, unix.ENOSYS), Unsupported, "x: not supported: function not implemented; needs Linux 5.6 with CONFIG_X"},
		"other error": {absentIf(unix.EIO, unix.ENOSYS), Unknown, "x: could not tell: input/output error"},
		"in words":    {absentf("half of it"), Unsupported, "x: not supported: half of it; needs Linux 5.6 with CONFIG_X"},
	} {
		f.probe = func() error { return tt.err }
		r := f.Probe()
		if r.Outcome != tt.want || (r.Err == nil) != (tt.says == "") || r.Err != nil && r.Err.Error() != tt.says {
			t.Errorf("%s: %v, %v", name, r.Outcome, r.Err)
		}
	}
}

func TestAbsentDevice(t *testing.T) {
	err := withDevice("/dev/no-such-device", func(int) error { return nil })
	var absent *absentError
	if !errors.As(err, &absent) {
		t.Errorf("a missing device node is %v, want the verdict that it is absent", err)
	}
	if err := withDevice("/dev/null", func(int) error { return unix.EIO }); !errors.Is(err, unix.EIO) || errors.As(err, &absent) {
		t.Errorf("an error of the device is %v", err)
	}
}

func TestParseKernel(t *testing.T) {
	for release, want := range map[string]Kernel{
		"6.1.0-18-amd64":   {6, 1, 0},
		"6.12.3+deb13":     {6, 12, 3},
		"6.19-rc1":         {6, 19, 0},
		"5.15.167.4-micro": {5, 15, 167},
		"4.4":              {4, 4, 0},
		"6.18.44-fc-v769":  {6, 18, 44},
		"10.0.0":           {10, 0, 0},
	} {
		if got, err := ParseKernel(release); err != nil || got != want {
			t.Errorf("ParseKernel(%q) = %v, %v, want %v", release, got, err, want)
		}
	}
	for _, bad := range []string{"", "linux", "6", "x.y", "-6.1", "6.-1"} {
		if got, err := ParseKernel(bad); err == nil {
			t.Errorf("ParseKernel(%q) = %v, want an error", bad, got)
		}
	}
}

func TestAtLeast(t *testing.T) {
	order := []Kernel{{4, 19, 300}, {5, 0, 0}, {5, 6, 0}, {5, 6, 1}, {5, 10, 0}, {6, 1, 0}}
	for i, a := range order {
		for j, b := range order {
			if got := a.AtLeast(b); got != (i >= j) {
				t.Errorf("%v.AtLeast(%v) = %t", a, b, got)
			}
		}
	}
}

// TestHasVirtualization: a /dev/kvm is worth something only where the CPU has the hardware for it.
func TestHasVirtualization(t *testing.T) {
	for text, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vme vmx smx\nvmx flags\t: vnmi\n": true,
		"processor\t: 0\nflags\t\t: fpu svm\n":                            true,
		"processor\t: 0\nflags\t\t: fpu vmmcall hypervisor\n":             false,
		"processor\t: 0\nvmx flags\t: vnmi\n":                             false,
		"":                                                                false,
	} {
		if got := hasVirtualization(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
