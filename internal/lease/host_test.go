package lease

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"spillway/internal/tcpstate"
)

// newHost returns a host's end in a phase, and its socket in the condition that belongs to the phase.
func newHost(t testing.TB, phase Phase, plan []bool) (*Host, *fake) {
	t.Helper()
	f := &fake{t: t, skip: true}
	h := &Host{Socket: f}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if phase != Local {
		must(h.Accept(&tcpstate.State{}, f.reply))
	}
	switch phase {
	case Returning:
		must(h.Return(&tcpstate.State{}, nil, f.send))
	case Gone:
		must(h.Finish(true))
	}
	if h.Phase() != phase {
		t.Fatalf("phase %v, want %v", h.Phase(), phase)
	}
	f.plan, f.skip = plan, false
	return h, f
}

// rightHostSocket holds what must be true of the host's socket in each phase, whatever has failed before. quiet tells that the connection
// must not be ended by us: it lives at the guest, or never lived here.
func rightHostSocket(t testing.TB, h *Host, f *fake, quiet bool) {
	t.Helper()
	ok := false
	switch h.Phase() {
	case Local:
		ok = f.model == model{condition: fresh}
	case Leased:
		ok = f.model == model{condition: live}
	case Returning:
		ok = f.model == model{condition: open} || f.model == model{condition: held} // before and after Seal
	case Gone:
		// An Abort that failed has nothing that could follow it. A socket that cannot be released is held, so it is silent as well.
		ok = quiet == (f.model.closeSends() == "nothing") || f.lastFailed("abort") || f.lastFailed("release")
	}
	if !ok {
		t.Errorf("%v: the phase is %v and the socket %v, whose close sends %s", f.calls, h.Phase(), f.model, f.model.closeSends())
	}
}

// TestHostFailures runs every event of the host's end with every combination of failures; see TestGuestFailures for the lines of
// testdata/host.txt.
func TestHostFailures(t *testing.T) {
	var record strings.Builder
	giveBack := func(h *Host, f *fake) error { return h.Return(&tcpstate.State{}, nil, f.send) }
	for _, tt := range []struct {
		name  string
		phase Phase
		act   func(*Host, *fake) error
	}{
		{"accept", Local, func(h *Host, f *fake) error { return h.Accept(&tcpstate.State{}, f.reply) }},
		{"return", Leased, func(h *Host, f *fake) error {
			var st tcpstate.State
			err := h.Return(&st, nil, f.send)
			if err == nil && st.SendSeq != 7 {
				f.t.Error("the caller's state was not filled")
			}
			return err
		}},
		{"return in the middle", Leased, func(h *Host, f *fake) error { return h.Return(&tcpstate.State{}, f.settle, f.send) }},
		{"taken", Returning, func(h *Host, f *fake) error {
			late, end, err := h.Taken()
			if err == nil && (string(late) != "late" || !end) {
				f.t.Error("what the client said meanwhile was not passed on")
			}
			return err
		}},
		{"sealed and left", Returning, func(h *Host, _ *fake) error {
			if _, _, err := h.Seal(); err != nil {
				return err
			}
			return h.Left()
		}},
		{"sealed and kept", Returning, func(h *Host, _ *fake) error {
			_, _, err := h.Seal()
			return errors.Join(err, h.Kept())
		}},
		{"kept", Returning, func(h *Host, _ *fake) error { return h.Kept() }},
		{"kept, then returned again", Returning, func(h *Host, f *fake) error {
			if err := h.Kept(); err != nil {
				return err
			}
			return giveBack(h, f)
		}},
		{"finish", Leased, func(h *Host, _ *fake) error { return h.Finish(false) }},
		{"finish with abort", Leased, func(h *Host, _ *fake) error { return h.Finish(true) }},
		{"finish while returning", Returning, func(h *Host, _ *fake) error { return h.Finish(false) }},
		{"finish with abort while returning", Returning, func(h *Host, _ *fake) error { return h.Finish(true) }},
		{"lost before HANDOVER", Local, func(h *Host, _ *fake) error { return h.Lost() }},
		{"lost while leased", Leased, func(h *Host, _ *fake) error { return h.Lost() }},
		{"lost while returning", Returning, func(h *Host, _ *fake) error { return h.Lost() }},
		{"lost while returning, then finish", Returning, func(h *Host, _ *fake) error {
			if err := h.Lost(); err != nil {
				return err
			}
			return h.Finish(false)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				got := explore(func(plan []bool) (int, string) {
					h, f := newHost(t, tt.phase, plan)
					f.late = late
					err := tt.act(h, f)
					quiet := tt.name == "accept" || tt.name == "taken" && err == nil || tt.name == "sealed and left"
					rightHostSocket(t, h, f, quiet)
					rightError(t, f, err)
					return len(f.calls), f.summary(h.Phase(), err)
				})
				if !late { // where Extract failed makes no difference but to the socket that an Abort failed on
					fmt.Fprintf(&record, "# %s\n%s\n\n", tt.name, got)
				}
			}
		})
	}
	golden(t, "host.txt", record.String())
}

// TestHostOutOfTurn: an event that the phase does not allow is refused and changes nothing.
func TestHostOutOfTurn(t *testing.T) {
	for _, e := range []struct {
		name    string
		allowed []Phase
		act     func(*Host, *fake) error
	}{
		{"Accept", []Phase{Local}, func(h *Host, f *fake) error { return h.Accept(&tcpstate.State{}, f.reply) }},
		{"Return", []Phase{Leased}, func(h *Host, f *fake) error { return h.Return(&tcpstate.State{}, nil, f.send) }},
		{"Taken", []Phase{Returning}, func(h *Host, f *fake) error { _, _, err := h.Taken(); return err }},
		{"Seal", []Phase{Returning}, func(h *Host, _ *fake) error { _, _, err := h.Seal(); return err }},
		{"Left", []Phase{Returning}, func(h *Host, _ *fake) error { _, _, _ = h.Seal(); return h.Left() }},
		{"Kept", []Phase{Returning}, func(h *Host, _ *fake) error { return h.Kept() }},
		{"Finish", []Phase{Leased, Returning}, func(h *Host, _ *fake) error { return h.Finish(false) }},
		{"Finish with abort", []Phase{Leased, Returning}, func(h *Host, _ *fake) error { return h.Finish(true) }},
	} {
		for _, phase := range []Phase{Local, Leased, Returning, Gone} { // a host is never handing
			h, f := newHost(t, phase, nil)
			before := f.model
			err := e.act(h, f)
			if contains(e.allowed, phase) {
				if err != nil {
					t.Errorf("%s while %v: %v", e.name, phase, err)
				}
				continue
			}
			if !errors.Is(err, ErrPhase) || len(f.calls) > 0 || h.Phase() != phase || f.model != before {
				t.Errorf("%s while %v: %v, calls %v, phase %v, socket %v", e.name, phase, err, f.calls, h.Phase(), f.model)
			}
		}
	}
	for _, phase := range []Phase{Local, Leased, Gone} {
		h, f := newHost(t, phase, nil)
		if err := h.Lost(); err != nil || h.Phase() != phase || len(f.calls) > 0 {
			t.Errorf("Lost while %v: %v, phase %v, calls %v", phase, err, h.Phase(), f.calls)
		}
	}
}
