package lease

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// containsError tells whether target itself is in err's tree.
func containsError(err error, target *injected) bool {
	var walk func(error) bool
	walk = func(err error) bool {
		if err == error(target) {
			return true
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			return e.Unwrap() != nil && walk(e.Unwrap())
		case interface{ Unwrap() []error }:
			for _, e := range e.Unwrap() {
				if walk(e) {
					return true
				}
			}
		}
		return false
	}
	return err != nil && walk(err)
}

// newGuest returns a guest's end in a phase, and its socket in the condition that belongs to the phase.
func newGuest(t testing.TB, phase Phase, plan []bool) (*Guest, *fake) {
	t.Helper()
	f := &fake{t: t, model: model{condition: live}, skip: true}
	g := &Guest{Socket: guestFake{f}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if phase == Gone {
		must(g.Handover(&tcpstate.State{}, f.drain, f.send))
		must(g.Granted())
		must(g.Closed())
	}
	if phase >= Handing && phase <= Returning {
		must(g.Handover(&tcpstate.State{}, f.drain, f.send))
	}
	if phase >= Leased && phase <= Returning {
		must(g.Granted())
	}
	if phase == Returning {
		must(g.Handback(&tcpstate.State{}, true, f.reply))
	}
	if g.Phase() != phase {
		t.Fatalf("phase %v, want %v", g.Phase(), phase)
	}
	f.plan, f.skip = plan, false
	return g, f
}

// rightGuestSocket holds what must be true of the guest's socket in each phase, whatever has failed before.
func rightGuestSocket(t testing.TB, g *Guest, f *fake) {
	t.Helper()
	ok := false
	switch g.Phase() {
	case Local, Returning: // the server may use it, now or after RELEASED
		ok = f.model == model{condition: live}
	case Handing:
		ok = f.model == model{condition: held}
	case Leased: // silent, whatever happens to the process
		ok = f.model == model{condition: held} || f.model == model{condition: parked}
	case Gone:
		// An Abort or a Release that failed has nothing that could follow it.
		ok = f.model.ending != byState || f.lastFailed("abort") || f.lastFailed("release")
	}
	if !ok {
		t.Errorf("%v: the phase is %v and the socket %v", f.calls, g.Phase(), f.model)
	}
}

// TestGuestFailures runs every event of the guest's end with every combination of failures. A line of testdata/guest.txt is one run: the calls in their
// order, those marked with ! having failed, the phase and the socket at the end, and which failures the returned error tells of.
func TestGuestFailures(t *testing.T) {
	var record strings.Builder
	for _, tt := range []struct {
		name  string
		phase Phase
		act   func(*Guest, *fake) error
	}{
		{"handover", Local, func(g *Guest, f *fake) error {
			var st tcpstate.State
			err := g.Handover(&st, f.drain, f.send)
			if err == nil && st.SendSeq != 7 {
				f.t.Error("the caller's state was not filled")
			}
			return err
		}},
		{"granted", Handing, func(g *Guest, _ *fake) error { return g.Granted() }},
		{"refused", Handing, func(g *Guest, _ *fake) error { return g.Refused() }},
		{"handback", Leased, func(g *Guest, f *fake) error {
			return g.Handback(&tcpstate.State{}, true, f.reply)
		}},
		{"handback unsettled", Leased, func(g *Guest, f *fake) error {
			return g.Handback(&tcpstate.State{}, false, f.reply)
		}},
		{"handback after one that failed", Leased, func(g *Guest, f *fake) error {
			return errors.Join(g.Handback(&tcpstate.State{}, true, f.reply), g.Handback(&tcpstate.State{}, true, f.reply))
		}},
		{"handback, then handed over again", Leased, func(g *Guest, f *fake) error {
			if err := g.Handback(&tcpstate.State{}, true, f.reply); err != nil || g.Phase() != Returning {
				return err
			}
			return errors.Join(g.Released(tcpstate.PeerWindow{}), g.Handover(&tcpstate.State{}, f.drain, f.send))
		}},
		{"handback, then closed", Leased, func(g *Guest, f *fake) error {
			return errors.Join(g.Handback(&tcpstate.State{}, true, f.reply), g.Closed())
		}},
		{"handback, then lost", Leased, func(g *Guest, f *fake) error {
			err := g.Handback(&tcpstate.State{}, true, f.reply)
			g.Lost()
			return err
		}},
		{"late", Returning, func(g *Guest, _ *fake) error { return g.Late([]byte("late")) }},
		{"released", Returning, func(g *Guest, _ *fake) error { return g.Released(tcpstate.PeerWindow{}) }},
		{"closed", Leased, func(g *Guest, _ *fake) error { return g.Closed() }},
		{"closed while returning", Returning, func(g *Guest, _ *fake) error { return g.Closed() }},
		{"lost while local", Local, func(g *Guest, _ *fake) error { g.Lost(); return nil }},
		{"lost while handing", Handing, func(g *Guest, _ *fake) error { g.Lost(); return nil }},
		{"lost while leased", Leased, func(g *Guest, _ *fake) error { g.Lost(); return nil }},
		{"lost while returning", Returning, func(g *Guest, _ *fake) error { g.Lost(); return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				got := explore(func(plan []bool) (int, string) {
					g, f := newGuest(t, tt.phase, plan)
					f.late = late
					err := tt.act(g, f)
					rightGuestSocket(t, g, f)
					rightError(t, f, err)
					return len(f.calls), f.summary(g.Phase(), err)
				})
				if !late { // where Extract failed makes no difference but to the socket that an Abort failed on
					fmt.Fprintf(&record, "# %s\n%s\n\n", tt.name, got)
				}
			}
		})
	}
	golden(t, "guest.txt", record.String())
}

// rightError holds that an error tells the protocol's reason of the first thing that went wrong.
func rightError(t testing.TB, f *fake, err error) {
	t.Helper()
	if err == nil || len(f.errs) == 0 {
		return
	}
	if !errors.Is(err, f.errs[0].reason) {
		t.Errorf("%v: error %q does not have the reason %v", f.calls, err, f.errs[0].reason)
	}
	var first wire.Reason
	if !errors.As(err, &first) || first != f.errs[0].reason {
		t.Errorf("%v: the reason is %v, want %v", f.calls, first, f.errs[0].reason)
	}
}

// TestGuestOutOfTurn: an event that the phase does not allow is refused and changes nothing.
func TestGuestOutOfTurn(t *testing.T) {
	events := []struct {
		name    string
		allowed []Phase
		act     func(*Guest, *fake) error
	}{
		{"Handover", []Phase{Local}, func(g *Guest, f *fake) error { return g.Handover(&tcpstate.State{}, f.drain, f.send) }},
		{"Granted", []Phase{Handing}, func(g *Guest, _ *fake) error { return g.Granted() }},
		{"Refused", []Phase{Handing}, func(g *Guest, _ *fake) error { return g.Refused() }},
		{"Handback", []Phase{Leased}, func(g *Guest, f *fake) error { return g.Handback(&tcpstate.State{}, true, f.reply) }},
		{"Handback unsettled", []Phase{Leased}, func(g *Guest, f *fake) error { return g.Handback(&tcpstate.State{}, false, f.reply) }},
		{"Late", []Phase{Returning}, func(g *Guest, _ *fake) error { return g.Late([]byte("late")) }},
		{"Released", []Phase{Returning}, func(g *Guest, _ *fake) error { return g.Released(tcpstate.PeerWindow{}) }},
		{"Closed", []Phase{Leased, Returning}, func(g *Guest, _ *fake) error { return g.Closed() }},
	}
	for _, e := range events {
		for phase := Local; phase <= Gone; phase++ {
			g, f := newGuest(t, phase, nil)
			before := f.model
			err := e.act(g, f)
			if contains(e.allowed, phase) {
				if err != nil {
					t.Errorf("%s while %v: %v", e.name, phase, err)
				}
				continue
			}
			if !errors.Is(err, ErrPhase) || len(f.calls) > 0 || g.Phase() != phase || f.model != before {
				t.Errorf("%s while %v: %v, calls %v, phase %v, socket %v", e.name, phase, err, f.calls, g.Phase(), f.model)
			}
		}
	}
	for _, phase := range []Phase{Local, Gone} {
		g, f := newGuest(t, phase, nil)
		if g.Lost(); g.Phase() != phase || len(f.calls) > 0 {
			t.Errorf("Lost while %v: phase %v, calls %v", phase, g.Phase(), f.calls)
		}
	}
}

func contains(phases []Phase, p Phase) bool {
	for _, q := range phases {
		if p == q {
			return true
		}
	}
	return false
}
