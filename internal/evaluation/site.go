package evaluation

import (
	"context"
	"net"
	"net/url"
	"slices"
	"time"

	"spillway/internal/bench"
	"spillway/internal/guest"
	"spillway/internal/lab"
)

// site is where a plan is measured: a [lab.Lab], or [Machines] of the user's.
type site interface {
	URL(arm lab.Arm, file string) string // of a file of the cases
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	RTT() time.Duration // that the link to the client adds
	ServerStats(ctx context.Context, arm lab.Arm) (guest.Snapshot, error)
	ResetServerStats(ctx context.Context, arm lab.Arm) error
	TCPTimeouts(ctx context.Context) (map[string]int64, error)
	DropCaches(ctx context.Context, files ...string) error
	PIDs() map[string]int // of processes on this machine, by name: host, qemu, and the arms' servers
}

// newClient is a client of an arm. The silence of a round trip is no stall.
func newClient(s site, arm lab.Arm) *bench.Client {
	u, err := url.Parse(s.URL(arm, ""))
	if err != nil {
		u = &url.URL{Host: s.URL(arm, "")} // which cannot be dialled, and the error says so
	}
	return bench.NewClient(u.Host, bench.ClientOptions{Dial: s.DialContext, StallAfter: bench.DefaultStallAfter + s.RTT()})
}

// there are the targets with the paths that they have at an arm's server.
func there(s site, arm lab.Arm, targets []bench.Target) []bench.Target {
	moved := slices.Clone(targets)
	for i := range moved {
		if u, err := url.Parse(s.URL(arm, lab.SharedFile(moved[i].Path))); err == nil {
			moved[i].Path = u.EscapedPath()
		}
	}
	return moved
}
