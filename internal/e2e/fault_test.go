package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/wire"
)

// faultRigs play side by side: most of the time is spent waiting for processes that start and channels that come back.
const faultRigs = 4

// faultPause is how long a channel stalls or a client does not read: longer than what waits for an answer without sleeping, shorter than what gives up.
const faultPause = 300 * time.Millisecond

// fault is what happens to a visitor.
type fault struct {
	name string
	do   func(r *faultRig, v *visitor)
	end  outcome
	// renews tells that the same server has another session afterwards.
	renews bool
}

// outcome is what a visitor may meet.
type outcome uint8

const (
	unharmed  outcome = iota // everything comes
	served                   // every request that was written is answered
	cutOff                   // the connection may end anywhere
	withdrawn                // unharmed, if the guest has its files without the host
)

var faults = []fault{
	{"daemon killed", func(r *faultRig, _ *visitor) { r.stopHost(syscall.SIGKILL) }, cutOff, true},
	{"daemon told to stop", func(r *faultRig, _ *visitor) { r.stopHost(syscall.SIGTERM) }, withdrawn, true},
	{"server killed", func(r *faultRig, v *visitor) { r.killServer(v.arm) }, cutOff, false},
	{"channel cut", func(r *faultRig, v *visitor) { r.proxies[v.arm].cut() }, cutOff, true},
	{"channel stalled", func(r *faultRig, v *visitor) { r.proxies[v.arm].stall(faultPause) }, unharmed, false},
	{"client resets", func(_ *faultRig, v *visitor) { _ = errors.Join(v.SetLinger(0), v.Close()) }, cutOff, false},
	{"client closes its direction", func(_ *faultRig, v *visitor) { _ = v.CloseWrite() }, served, false}, // it may have done so before
	{"client reads nothing", func(_ *faultRig, v *visitor) {
		v.reading.Lock()
		time.AfterFunc(faultPause, v.reading.Unlock)
	}, unharmed, false},
}

// scenario is what a client does, and the frames that must be seen when nothing goes wrong: at each of them every fault happens once before it and once
// behind it.
type scenario struct {
	name  string
	arm   lab.Arm
	acts  []func(*visitor) error
	shows string // guest's TYPE, host's TYPE; those at which faults happen
	more  []step // those after the first of their type
}

const fileOf288KB = "tablet/1 (1).m4s"

var faultScenarios = []scenario{
	{
		"lease", lab.Lease,
		[]func(*visitor) error{
			file(fileOf288KB), file("4k.m4s"), recalled("10m.mp4"), handedOver(fileOf288KB, 2), post405(100_000, 100_000), file(linkFile), farewell,
		},
		"guest: HANDOVER SEND DATA CREDIT TAKEN CLOSE; host: GRANTED SENT DATA CREDIT HANDBACK RELEASED END CLOSED",
		[]step{{false, wire.TypeHandover, 2}, {true, wire.TypeGranted, 2}, {false, wire.TypeSend, 3}, {true, wire.TypeData, 3}, {false, wire.TypeData, 2}},
	},
	{
		"each response, without a mount", lab.Offload,
		[]func(*visitor) error{handedOver(fileOf288KB, 1), file("4k.m4s"), recalled("10m.mp4"), handedOver(fileOf288KB, 3), farewell},
		"guest: STAT READ HANDOVER SEND TAKEN; host: ATTR BYTES GRANTED SENT HANDBACK RELEASED",
		[]step{{false, wire.TypeHandover, 2}, {true, wire.TypeHandback, 2}, {false, wire.TypeTaken, 2}},
	},
	{
		"upload that is refused", lab.Lease,
		[]func(*visitor) error{file(fileOf288KB), post405(400_000, 300_000)},
		"guest: END; host:", nil,
	},
	{
		"recall that crosses with a request", lab.Lease,
		[]func(*visitor) error{file(fileOf288KB), crossed("4k.m4s"), farewell},
		"guest: KEEP; host: HANDBACK", nil,
	},
}

// expected are the steps that a scenario must show.
func (s scenario) expected() (steps []step) {
	guest, host, _ := strings.Cut(s.shows, ";")
	for kind := wire.TypeStat; kind <= wire.TypeReleased; kind++ {
		if slices.Contains(strings.Fields(guest), kind.String()) {
			steps = append(steps, step{false, kind, 1})
		}
		if slices.Contains(strings.Fields(host), kind.String()) {
			steps = append(steps, step{true, kind, 1})
		}
	}
	return append(steps, s.more...)
}

// steps plays a scenario without a fault and returns what it shows. A type that it shows and that is not expected is a step too, unless another
// scenario is there for it.
func (s scenario) steps(t *testing.T, r *faultRig) []step {
	t.Helper()
	p := r.proxies[s.arm]
	p.watch()
	p.at(step{}, false, func() {}) // which never comes: everything is waited for
	v := newVisitor(t, r, s.arm)
	if err := v.play(s.acts); err != nil {
		t.Fatalf("%s, without a fault: %v", s.name, err)
	}
	must(t, v.Close())
	all := s.expected()
	for _, step := range all { // the last ones come behind the client's end
		within(t, hangLimit, fmt.Sprintf("%s, without a fault: %v", s.name, step), func() bool { return p.has(step) })
	}
	for known := range p.counted() {
		elsewhere := slices.ContainsFunc(faultScenarios, func(o scenario) bool { return slices.Contains(o.expected(), step{known.fromHost, known.kind, 1}) })
		if known.kind >= wire.TypeStat && !elsewhere {
			t.Errorf("%s shows a frame that no scenario is for: %v", s.name, known)
		}
	}
	return all
}

// faultJob is one visitor and the fault that it meets.
type faultJob struct {
	scenario scenario
	fault    fault
	step     step
	late     bool
}

func (j faultJob) String() string {
	when := "before"
	if j.late {
		when = "behind"
	}
	return fmt.Sprintf("%s/%s/%s %v", j.scenario.name, j.fault.name, when, j.step)
}

// TestFaults: whatever dies, is cut, stalls or goes away at any step of the protocol, its client gets right bytes and an end, the next one is served, and
// nothing is left.
func TestFaults(t *testing.T) {
	rigs := make(chan *faultRig, faultRigs)
	for range faultRigs {
		rigs <- newFaultRig(t)
	}
	first := <-rigs
	var jobs []faultJob
	for _, s := range faultScenarios {
		for _, step := range s.steps(t, first) {
			for _, f := range faults {
				jobs = append(jobs, faultJob{s, f, step, false}, faultJob{s, f, step, true})
			}
		}
	}
	rigs <- first
	t.Logf("%d faults", len(jobs))
	var running sync.WaitGroup // not t.Parallel, which allows two at a time on a small machine: most of them wait
	for _, j := range jobs {
		r := <-rigs
		running.Go(func() {
			defer func() { rigs <- r }()
			t.Run(j.String(), func(t *testing.T) { j.run(t, r) })
		})
	}
	running.Wait()
}

func (j faultJob) run(t *testing.T, r *faultRig) {
	arm := j.scenario.arm
	r.repair(t, arm) // what a failed test may have left
	sessions := serverStats(t, r.lab, arm).Counts.Sessions
	p := r.proxies[arm]
	watch := watchEndings(t, r.lab)
	v := newVisitor(t, r, arm)
	self := v.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	p.watch()
	p.at(j.step, j.late, func() { j.fault.do(r, v) })
	began := time.Now()
	err := v.play(j.scenario.acts)
	if took := time.Since(began); took > hangLimit {
		t.Errorf("%v: %v", took, err)
	}
	within(t, hangLimit, fmt.Sprintf("the frame has come; else the channel has shown %v", p.counted()), func() bool { return !p.waits() })
	j.judge(t, v, err)
	_ = v.Close() // it may be closed
	j.checkResets(t, watch, self)
	r.repair(t, arm)
	if j.fault.renews { // else what follows may still meet the old session
		eventually(t, "the server has noticed the fault", func() bool { return serverStats(t, r.lab, arm).Counts.Sessions > sessions })
	}
	r.works(t, arm)
}

// judge compares what became of the visitor with what the fault may do to it.
func (j faultJob) judge(t *testing.T, v *visitor, err error) {
	t.Helper()
	end := j.fault.end
	if end == withdrawn {
		end = unharmed
		if v.arm == lab.Offload { // its server reads its files through the channel
			end = cutOff
		}
	}
	switch {
	case err == nil:
	case !ended(err):
		t.Errorf("%v; want right bytes, or the end of the connection within %v", err, hangLimit)
	case end == unharmed:
		t.Errorf("%v; want every byte", err)
	case end == served && v.asked:
		t.Errorf("%v; want an answer to every request", err)
	case end == served && !v.asking:
		if err := v.awaitEnd(); err != nil {
			t.Errorf("after all answers: %v; want the server to close too", err)
		}
	case errors.Is(err, errStatus):
		if err := v.CloseWrite(); err != nil && !ended(err) {
			t.Error(err)
		}
	}
}

// checkResets looks for a RST to the visitor where there must be none.
func (j faultJob) checkResets(t *testing.T, watch endings, self netip.AddrPort) {
	t.Helper()
	closed := map[netip.AddrPort]bool{} // the sender's direction
	gone := false                       // the visitor has reset the connection
	for from, to, flags, ok := watch.next(t); ok; from, to, flags, ok = watch.next(t) {
		if from != self && to != self {
			continue
		}
		gone = gone || from == self && flags&flagRST != 0
		if flags&flagFIN != 0 {
			closed[from] = true
		}
		if to == self && flags&flagRST != 0 && !gone && !(closed[from] && closed[to]) && !j.mayReset() {
			t.Errorf("a RST to a client that lives (FIN from it: %v, to it: %v)", closed[to], closed[from])
		}
	}
}

// mayReset tells whether docs/handover.md has a RST for the client of a connection that the fault hits: where an end cannot know whether it has the
// connection, which in mode offload is soon after any frame, and where a kernel closes the socket of a process that was killed.
func (j faultJob) mayReset() bool {
	switch j.fault.name {
	case "daemon killed", "server killed", "client resets":
		return true
	case "channel cut":
		return j.scenario.arm == lab.Offload || slices.Contains([]wire.Type{wire.TypeHandover, wire.TypeGranted, wire.TypeSend, wire.TypeHandback, wire.TypeTaken, wire.TypeReleased, wire.TypeKeep}, j.step.kind)
	}
	return false
}
