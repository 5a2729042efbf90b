// Package featuretest lets a test skip on a kernel that lacks a feature, and only there.
//
// A skip hides a test. So it is allowed where the kernel is too old, where the machine has no such device, and where the
// test does not run as root; a kernel that should have the feature and does not is a failure of the test. It is for tests
// only and stands in no data path.
package featuretest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"spillway/internal/feature"
)

// SkipUnless probes each named feature and skips the test, with the reason, when one is absent for a good one.
func SkipUnless(tb testing.TB, names ...string) {
	tb.Helper()
	kernel, _, err := feature.RunningKernel()
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range names {
		f, ok := feature.Lookup(name)
		if !ok {
			tb.Fatalf("feature %q is not in the table", name)
		}
		switch v, why := judge(kernel, os.Geteuid() == 0, f, f.Probe()); v {
		case skip:
			tb.Skip(why)
		case fail:
			tb.Fatal(why)
		}
	}
}

type verdict int

const (
	run verdict = iota
	skip
	fail
)

// judge decides what the outcome of a probe means for a test.
func judge(kernel feature.Kernel, root bool, f feature.Feature, r feature.Result) (verdict, string) {
	switch r.Outcome {
	case feature.Supported:
		return run, ""
	case feature.Unsupported:
		switch {
		case f.Kind == feature.KindMachine:
			return skip, r.Err.Error()
		case f.Kind == feature.KindCapability && !root:
			return skip, r.Err.Error()
		case f.Kind == feature.KindKernel && !kernel.AtLeast(f.MinKernel):
			return skip, r.Err.Error()
		}
		return fail, fmt.Sprintf("Linux %v should have it: %v", kernel, r.Err)
	}
	if !root && errors.Is(r.Err, fs.ErrPermission) {
		return skip, fmt.Sprintf("run as root: %v", r.Err)
	}
	return fail, r.Err.Error()
}
