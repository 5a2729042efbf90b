// Package migrate moves a running VM from one host to another while its clients stream: it is the order of the steps, and the way back from each.
// docs/migration.md has the sequence and the reasons.
//
// The steps themselves belong to others: QEMU copies memory (package qemu, over QMP), the two host daemons recall leases and move addresses (their admin
// sockets, package host), the guest's server finds its new host by itself. So it needs four unix sockets, and nothing of the machine.
package migrate

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"spillway/internal/qemu"
)

// Side is one of the two hosts, as far as the VM is concerned.
type Side struct {
	Name      string       // for people
	Admin     string       // the daemon's admin socket
	QMP       string       // the VM's QMP socket
	Addresses []netip.Addr // the host's own, on the segment that the VM's addresses move on: one of each family
}

// Plan of a move.
type Plan struct {
	VM       string // its name in both daemons' configurations
	From, To Side
	URI      string // where the destination's QEMU listens, as QEMU writes it: tcp:10.0.0.2:4444, unix:/run/m.sock
	Options  qemu.MigrationOptions
	// BytesPerSecond bounds what pre-copy sends, so that it leaves clients their part of the machine; 0: as fast as it goes. While the VM is paused nothing bounds it.
	BytesPerSecond int64

	// Start starts the destination's QEMU: the same devices, -incoming defer and -S. Stop ends it for sure, whatever state it is in.
	Start, Stop func(context.Context) error

	PrecopyTimeout time.Duration // until the memory is across; default 5 minutes
	// Recall makes all leases go back to the guest for the move, although they could go along.
	Recall bool

	HoldTimeout   time.Duration // for clients to acknowledge what they have been sent; default 2 s
	AnswerTimeout time.Duration // for the VM's server to find its new host; default 10 s

	Progress func(Event) // told of each step and, during pre-copy, how far it is; may be nil
}

// Phase of a move, in order.
type Phase string

// The phases.
const (
	Check   Phase = "check"   // can the destination take it?
	Start   Phase = "start"   // the destination's QEMU
	Precopy Phase = "precopy" // memory crosses, leases go on
	Hold    Phase = "hold"    // all leases are halted, or recalled: then the guest serves by itself
	Switch  Phase = "switch"  // addresses move, the VM is paused here and goes on there
	Answer  Phase = "answer"  // its server finds the new host, or goes on with it
	Done    Phase = "done"
)

// Event is progress.
type Event struct {
	Phase  Phase
	Time   time.Time
	Copied qemu.Migration // in phase Precopy
	Taken  bool           // in phase Switch: all of the VM is at the destination, its leases too, and it has not run there
}

// Report of a move that has succeeded. Its JSON form is an interface: fields are added, never renamed.
type Report struct {
	VM         string              `json:"vm"`
	From       string              `json:"from"`
	To         string              `json:"to"`
	TotalMs    float64             `json:"total_ms"`    // from the first step to the guest's answer
	PhasesMs   map[Phase]float64   `json:"phases_ms"`   // how long each took
	Carried    int                 `json:"carried"`     // leases that went from host to host
	Recalled   int                 `json:"recalled"`    // leases that went back to the guest
	Closed     int                 `json:"closed"`      // clients that were reset, since they acknowledged nothing
	HoldMs     float64             `json:"hold_ms"`     // until the last lease was halted, or had come back
	Returns    []Returned          `json:"returns"`     // the leases, in the order in which they came back
	PausedMs   float64             `json:"paused_ms"`   // from the order to pause to the order to go on, answered
	DowntimeMs float64             `json:"downtime_ms"` // as QEMU counts it: of PausedMs, the last part
	Bytes      int64               `json:"bytes"`       // of memory sent
	Passes     int64               `json:"passes"`      // over it
	Began      map[Phase]time.Time `json:"began"`
}

// Returned is a lease that has come back, as the source's daemon tells it.
type Returned struct {
	Client  netip.AddrPort `json:"client"`
	Asked   time.Time      `json:"asked"`    // when it was called back
	TookMs  float64        `json:"took_ms"`  // until the guest had it
	GuestMs float64        `json:"guest_ms"` // of that, the guest's
}

// Place where a VM is.
type Place string

// Places.
const (
	AtSource      Place = "source"
	AtDestination Place = "destination"
)

// Error is a move that has failed.
type Error struct {
	VM     string
	Phase  Phase
	Runs   Place  // where the VM runs now, for all that is known
	Advice string // what is left to do for a person; may be empty
	Err    error  // the cause, and what else went wrong on the way back
}

func (e *Error) Error() string {
	text := fmt.Sprintf("move of VM %s failed in phase %s: %v; it runs at the %s", e.VM, e.Phase, e.Err, e.Runs)
	if e.Advice != "" {
		text += "; " + e.Advice
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }
