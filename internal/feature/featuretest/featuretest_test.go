package featuretest

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/feature"
)

func TestJudge(t *testing.T) {
	kernel := feature.Feature{Name: "k", MinKernel: feature.Kernel{Major: 5, Minor: 6}}
	machine := feature.Feature{Name: "m", Kind: feature.KindMachine, MinKernel: kernel.MinKernel}
	capability := feature.Feature{Name: "c", Kind: feature.KindCapability}
	absent := func(f feature.Feature) feature.Result {
		return feature.Result{Outcome: feature.Unsupported, Err: &feature.Error{Feature: f, Outcome: feature.Unsupported, Err: unix.ENOSYS}}
	}
	unknown := func(err error) feature.Result {
		return feature.Result{Outcome: feature.Unknown, Err: &feature.Error{Feature: kernel, Outcome: feature.Unknown, Err: err}}
	}
	for name, tt := range map[string]struct {
		running feature.Kernel
		root    bool
		feature feature.Feature
		result  feature.Result
		want    verdict
	}{
		"supported":                     {feature.Kernel{Major: 4}, true, kernel, feature.Result{Outcome: feature.Supported}, run},
		"old kernel":                    {feature.Kernel{Major: 5, Minor: 5, Patch: 19}, true, kernel, absent(kernel), skip},
		"kernel that should have it":    {feature.Kernel{Major: 5, Minor: 6}, true, kernel, absent(kernel), fail},
		"should have it, even unrooted": {feature.Kernel{Major: 6}, false, kernel, absent(kernel), fail},
		"no such device":                {feature.Kernel{Major: 6}, true, machine, absent(machine), skip},
		"capability, not root":          {feature.Kernel{Major: 6}, false, capability, absent(capability), skip},
		"capability, root":              {feature.Kernel{Major: 6}, true, capability, absent(capability), fail},
		"could not tell, not root":      {feature.Kernel{Major: 6}, false, kernel, unknown(unix.EPERM), skip},
		"could not tell, root":          {feature.Kernel{Major: 6}, true, kernel, unknown(unix.EPERM), fail},
		"could not tell, other error":   {feature.Kernel{Major: 6}, false, kernel, unknown(errors.New("odd")), fail},
		"nothing known":                 {feature.Kernel{Major: 6}, true, kernel, unknown(errors.New("odd")), fail},
	} {
		got, why := judge(tt.running, tt.root, tt.feature, tt.result)
		if got != tt.want {
			t.Errorf("%s: verdict %d (%s), want %d", name, got, why, tt.want)
		}
		if got != run && why == "" {
			t.Errorf("%s: no reason", name)
		}
	}
}

// recorder keeps what SkipUnless does to a test.
type recorder struct {
	testing.TB
	skipped, failed string
}

type stop struct{}

func (r *recorder) Helper()                   {}
func (r *recorder) Skip(args ...any)          { r.skipped = args[0].(string); panic(stop{}) }
func (r *recorder) Fatal(args ...any)         { r.failed = args[0].(string); panic(stop{}) }
func (r *recorder) Fatalf(f string, _ ...any) { r.failed = f; panic(stop{}) }

func record(names ...string) (r *recorder) {
	r = &recorder{}
	defer func() {
		if v := recover(); v != nil && v != (stop{}) {
			panic(v)
		}
	}()
	SkipUnless(r, names...)
	return r
}

func TestSkipUnless(t *testing.T) {
	if r := record("sendfile", "openat2"); r.skipped != "" || r.failed != "" {
		t.Errorf("features that every kernel of ours has: skipped %q, failed %q", r.skipped, r.failed)
	}
	if r := record("no-such-feature"); !strings.Contains(r.failed, "not in the table") {
		t.Errorf("an unknown name does not fail the test: %+v", r)
	}
}
