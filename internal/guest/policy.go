package guest

import (
	"fmt"

	"spillway/internal/wire"
)

// Mode says how connections are offloaded.
type Mode uint8

// Modes.
const (
	Off     Mode = iota // every byte is served by the guest: the arm "vm", or "baremetal" on a host
	Offload             // the seed's way: the connection comes back after each response
	Lease               // the connection stays on the host until it ends or is recalled
)

var modeNames = [...]string{"off", "offload", "lease"}

func (m Mode) String() string { return modeNames[m] }

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, error) {
	for i, name := range modeNames {
		if s == name {
			return Mode(i), nil
		}
	}
	return Off, fmt.Errorf("offload mode %q: write lease, offload or off", s)
}

// DefaultThreshold is the seed's: below 64 KiB its handover cost more than it gained (section IV.B, figure 3).
const DefaultThreshold = 64 << 10

// ThresholdAuto lets the guest learn from which size on a handover pays: see costs.
const ThresholdAuto = -1

// Policy decides which responses are worth a handover. On a leased connection nothing is left to decide: every file range goes through
// the host, whatever its size.
type Policy struct {
	Mode      Mode
	Threshold int64 // bytes; smaller ranges do not cause a handover; or ThresholdAuto
}

// refusal is why a range of count bytes does not cause a handover, or ReasonOK. It is the first of the gates; the kernel
// (tcprepair.Extract) and the host (REFUSED) have theirs.
func (a *Agent) refusal(count int64) wire.Reason {
	switch {
	case a.policy.Mode == Off:
		return wire.ReasonOff
	case count < a.policy.Threshold:
		return wire.ReasonSmall
	case a.costs != nil && a.costs.choose(count) == locally:
		return wire.ReasonCostly
	}
	return wire.ReasonOK
}
