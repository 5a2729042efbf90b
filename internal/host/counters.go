package host

import (
	"sync/atomic"
	"time"

	"spillway/internal/metrics"
	"spillway/internal/wire"
)

// maxReasons is above every wire.Reason.
const maxReasons = 32

// counters of one VM, since the start of the daemon.
type counters struct {
	handovers atomic.Uint64 // connections taken over
	handbacks atomic.Uint64 // connections given back
	keeps     atomic.Uint64 // handbacks called off: the host has kept the connection
	sends     atomic.Uint64 // SENDs executed, failed ones included
	bytes     atomic.Uint64 // of files, sent to clients
	relayed   atomic.Uint64 // of DATA, from clients and to clients
	frames    atomic.Uint64 // from the guest
	dropped   atomic.Uint64 // frames of leases that are over
	sessions  atomic.Uint64
	breaches  atomic.Uint64 // sessions that ended because the guest broke the protocol

	refused [maxReasons]atomic.Uint64 // HANDOVER, by reason
	failed  [maxReasons]atomic.Uint64 // SEND, STAT and READ, by reason
	closed  [maxReasons]atomic.Uint64 // leases, by the reason of their end

	durations [len(stepNames)]metrics.Histogram // by step
}

// step is a part of a lease's life that is timed.
type step uint8

const (
	stepRestore step = iota // HANDOVER to GRANTED
	stepSend                // a SEND, until its last byte is in the socket's buffer; cut short, until the guest has the connection
	stepDrain               // until the client has acknowledged everything
	stepExtract             // the connection's state, and in the middle of a file the drain
	stepRelease             // HANDBACK to RELEASED: mostly the guest's time
)

var stepNames = [...]string{"restore", "send", "drain", "extract", "release"}

// took counts a step that is over.
func (c *counters) took(s step, began time.Time) { c.durations[s].Observe(time.Since(began)) }

func count(by *[maxReasons]atomic.Uint64, r wire.Reason) {
	if r != wire.ReasonOK && int(r) < maxReasons {
		by[r].Add(1)
	}
}

// byReason returns the reasons that were counted.
func byReason(by *[maxReasons]atomic.Uint64) map[string]uint64 {
	counted := make(map[string]uint64)
	for i := range by {
		if n := by[i].Load(); n > 0 {
			counted[wire.Reason(i).String()] = n
		}
	}
	return counted
}
