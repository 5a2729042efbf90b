package feature

import (
	"errors"
	"fmt"
)

// Outcome is what a probe found.
type Outcome int

// The outcomes of a probe. The zero value says that nothing is known.
const (
	Unknown     Outcome = iota // the probe itself failed, for want of a capability as a rule
	Supported                  // tried, works
	Unsupported                // the kernel or the machine does not have it
)

func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "could not tell"
	case Supported:
		return "supported"
	case Unsupported:
		return "not supported"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Kind says what a feature depends on.
type Kind int

// The kinds of a feature.
const (
	KindKernel     Kind = iota // the kernel: from its MinKernel on, its absence is a finding
	KindMachine                // hardware, a device or a loaded driver: absent on many good machines
	KindCapability             // a privilege of this process
)

// A Feature is one facility of the kernel or the machine.
type Feature struct {
	Name      string // kebab-case, unique, stable: JSON output and configuration use it
	Why       string // what Spillway does with it
	Kind      Kind
	MinKernel Kernel // the first kernel that has it
	Brings    string // what makes it available beside the kernel version; empty when nothing is needed

	probe func() error
}

// A Result is the outcome of one probe.
type Result struct {
	Outcome Outcome
	Err     error // nil when supported, else an *Error
}

// Error says why a feature is not there, or why that is not known.
type Error struct {
	Feature Feature
	Outcome Outcome // Unsupported or Unknown
	Err     error   // what the kernel answered
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s: %v", e.Feature.Name, e.Outcome, e.Err)
	if e.Outcome == Unsupported {
		s += "; needs " + e.Feature.Needs()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes every unsupported feature an errors.ErrUnsupported.
func (e *Error) Is(target error) bool {
	return target == errors.ErrUnsupported && e.Outcome == Unsupported
}

// Needs says in words what brings the feature: "Linux 5.6", "Linux 4.18 with CONFIG_NFT_SOCKET".
func (f Feature) Needs() string {
	var version string
	if f.MinKernel != (Kernel{}) {
		version = "Linux " + f.MinKernel.String()
	}
	switch {
	case version == "":
		return f.Brings
	case f.Brings == "":
		return version
	}
	return version + " with " + f.Brings
}

// Probe tries the feature. It is done in a few milliseconds and leaves nothing behind.
func (f Feature) Probe() Result {
	err := f.probe()
	if err == nil {
		return Result{Outcome: Supported}
	}
	outcome := Unknown
	var absent *absentError
	if errors.As(err, &absent) {
		outcome, err = Unsupported, absent.err
	}
	return Result{Outcome: outcome, Err: &Error{Feature: f, Outcome: outcome, Err: err}}
}

// Lookup returns the feature of that name.
func Lookup(name string) (Feature, bool) {
	for _, f := range All() {
		if f.Name == name {
			return f, true
		}
	}
	return Feature{}, false
}

// absentError is a probe's verdict that the feature is not there, as against an error that tells nothing.
type absentError struct{ err error }

func (e *absentError) Error() string { return e.err.Error() }

// absentIf turns err into the verdict when it is one of the errors by which the kernel says that it has no such thing.
func absentIf(err error, says ...error) error {
	for _, s := range says {
		if errors.Is(err, s) {
			return &absentError{err}
		}
	}
	return err
}

// absentf is the verdict in words.
func absentf(format string, args ...any) error { return &absentError{fmt.Errorf(format, args...)} }
