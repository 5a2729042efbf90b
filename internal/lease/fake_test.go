package lease

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// condition is what a modelled socket is; see Socket.
type condition uint8

const (
	fresh condition = iota // the host's: no connection yet
	live
	frozen
	held
	open
	halted
	parked
)

func (c condition) String() string {
	return [...]string{"fresh", "live", "frozen", "held", "open", "halted", "parked"}[c]
}

// ending is what close(2) of a modelled socket sends.
type ending uint8

const (
	byState ending = iota // nothing was prepared
	silent                // Release
	reset                 // Abort
)

// model is a socket with the transitions that Socket, GuestSocket and HostSocket allow, and no others.
type model struct {
	condition condition
	ending    ending
}

// transition tells what op makes of the socket; ok is false where op is not allowed.
func (m model) transition(op string) (next model, ok bool) {
	if m.ending != byState {
		return m, false // nothing but close(2) may follow Release and Abort
	}
	from := map[string][]condition{
		// undo thaws whatever a call that failed has left behind, a live socket too
		"freeze": {live}, "extract": {frozen}, "confirm": {held}, "thaw": {live, frozen, held, open, halted}, "park": {held},
		"restore": {fresh}, "restore in place": {parked}, "take in": {live}, "update": {live}, "halt": {live}, "snapshot": {live, halted}, "seal": {open},
		"release": {fresh, live, frozen, held, parked}, "abort": {fresh, live, frozen, held, open, halted, parked},
	}
	for _, c := range from[op] {
		ok = ok || c == m.condition
	}
	next = m
	switch op {
	case "freeze":
		next.condition = frozen
	case "extract", "seal":
		next.condition = held
	case "snapshot":
		next.condition = open
	case "halt":
		next.condition = halted
	case "park":
		next.condition = parked
	case "thaw", "restore", "restore in place":
		next.condition = live
	case "release":
		next.ending = silent
	case "abort":
		next.ending = reset
	}
	return next, ok
}

// closeSends is what the client hears when the socket is closed now.
func (m model) closeSends() string {
	connected := m.condition == live || m.condition == frozen || m.condition == held || m.condition == open || m.condition == halted
	switch {
	case m.ending == reset && connected:
		return "RST"
	case m.ending == byState && (m.condition == live || m.condition == frozen):
		return "FIN"
	}
	return "nothing"
}

func (m model) String() string {
	if m.ending == byState {
		return m.condition.String()
	}
	return "closing with " + m.closeSends()
}

// injected is the failure of one call; each call has a reason of its own, so that a test can tell them apart.
type injected struct {
	call   string
	reason wire.Reason
}

func (e *injected) Error() string { return "injected: " + e.call }
func (e *injected) Unwrap() error { return e.reason }

var reasonOfCall = map[string]wire.Reason{
	"freeze": wire.ReasonMPTCP, "drain": wire.ReasonUnreadInput, "extract": wire.ReasonWindow, "send": wire.ReasonHostAway,
	"confirm": wire.ReasonClientGone, "thaw": wire.ReasonInvalid, "park": wire.ReasonAddress, "restore": wire.ReasonLimit,
	"restore in place": wire.ReasonNotFound, "take in": wire.ReasonTruncated, "update": wire.ReasonNotRegular, "snapshot": wire.ReasonUnacked, "halt": wire.ReasonSmall, "settle": wire.ReasonDraining, "seal": wire.ReasonChanged, "reply": wire.ReasonSession, "release": wire.ReasonForbidden, "abort": wire.ReasonOff,
}

// fake records the calls that package lease makes, to the socket and to the callbacks, and lets those fail that plan says. It is both a
// GuestSocket (via guestFake) and a HostSocket.
type fake struct {
	t     testing.TB
	plan  []bool // plan[i]: call i fails; later ones succeed
	late  bool   // an Extract that fails has reached repair mode
	calls []string
	errs  []*injected
	model model
	skip  bool // calls are neither recorded nor failed
}

// call is one call of the code under test.
func (f *fake) call(op, detail string) error {
	if f.skip {
		return nil
	}
	n := len(f.calls)
	name := op
	if detail != "" {
		name += " " + detail
	}
	if n < len(f.plan) && f.plan[n] {
		f.calls = append(f.calls, name+"!")
		err := &injected{op, reasonOfCall[op]}
		f.errs = append(f.errs, err)
		return err
	}
	f.calls = append(f.calls, name)
	return nil
}

// move is one call to the socket. A call that fails leaves the socket as it was, which is what package tcprepair promises, but for an
// Extract that got as far as repair mode.
func (f *fake) move(op string) error {
	next, ok := f.model.transition(op)
	if !ok {
		f.t.Errorf("%s of a socket that is %v (calls: %v)", op, f.model, f.calls)
	}
	if err := f.call(op, ""); err != nil {
		if f.late {
			f.model.condition = halfWay(op, f.model.condition)
		}
		return err
	}
	f.model = next
	return nil
}

// halfWay is what a call that failed has made of a socket when it got as far as it could.
func halfWay(op string, c condition) condition {
	switch op {
	case "extract", "seal":
		return held
	case "snapshot", "take in", "halt":
		return open
	}
	return c
}

func (f *fake) Freeze() error { return f.move("freeze") }
func (f *fake) Extract(st *tcpstate.State) error {
	if err := f.move("extract"); err != nil {
		return err
	}
	st.SendSeq = 7 // something to see that the caller's state is the one that is filled
	return nil
}
func (f *fake) Snapshot(st *tcpstate.State) error {
	if err := f.move("snapshot"); err != nil {
		return err
	}
	st.SendSeq = 7
	return nil
}
func (f *fake) Halt() error { return f.move("halt") }
func (f *fake) Seal() ([]byte, bool, error) {
	if err := f.move("seal"); err != nil {
		return nil, false, err
	}
	return []byte("late"), true, nil
}
func (f *fake) TakeIn([]byte) error              { return f.move("take in") }
func (f *fake) Update(tcpstate.PeerWindow) error { return f.move("update") }
func (f *fake) Confirm() error                   { return f.move("confirm") }
func (f *fake) Thaw() error                      { return f.move("thaw") }
func (f *fake) Release() error                   { return f.move("release") }
func (f *fake) Abort() error                     { return f.move("abort") }
func (f *fake) Restore(*tcpstate.State) error    { return f.move("restore") }

func (f *fake) drain() error  { return f.call("drain", "") }
func (f *fake) settle() error { return f.call("settle", "") }
func (f *fake) send() error   { return f.call("send", "") }
func (f *fake) reply(m wire.Message) error {
	detail := m.Type().String()
	switch m := m.(type) {
	case wire.Refused:
		detail += " " + m.Reason.String()
	case wire.Keep:
		detail += " " + m.Reason.String()
	}
	return f.call("reply", detail)
}

// guestFake is a fake as the guest's socket.
type guestFake struct{ *fake }

func (f guestFake) Park() error                   { return f.move("park") }
func (f guestFake) Restore(*tcpstate.State) error { return f.move("restore in place") }

// explore runs a scenario with every set of calls failing that can fail: none, then each call in turn, then, after each failure, each call
// that the failure led to, and so on. run gets a fresh plan each time and returns how many calls were made and a line for the record.
func explore(run func(plan []bool) (calls int, line string)) string {
	var lines []string
	var from func(plan []bool)
	from = func(plan []bool) {
		calls, line := run(plan)
		lines = append(lines, line)
		for i := len(plan); i < calls; i++ {
			next := append(append([]bool(nil), plan...), make([]bool, i-len(plan)+1)...)
			next[i] = true
			from(next)
		}
	}
	from(nil)
	return strings.Join(lines, "\n")
}

// summary is one line of a record: the calls (! marks those that failed) → phase, socket, and the failures that the error tells of.
func (f *fake) summary(phase Phase, err error) string {
	calls := "(none)"
	if len(f.calls) > 0 {
		calls = strings.Join(f.calls, ", ")
	}
	line := fmt.Sprintf("%s → %v, %v", calls, phase, f.model)
	if err != nil {
		line += "; error:"
		for _, e := range f.errs {
			if containsError(err, e) {
				line += " " + strings.ReplaceAll(e.call, " ", "-")
			}
		}
	}
	return line
}

// lastFailed tells whether the last call was op, and failed.
func (f *fake) lastFailed(op string) bool {
	return len(f.calls) > 0 && f.calls[len(f.calls)-1] == op+"!"
}

var update = flag.Bool("update", false, "write the golden files anew; read the change before you commit it")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./internal/lease -update writes it)", err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}
