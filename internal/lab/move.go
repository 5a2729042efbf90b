package lab

import (
	"context"
	"os"
	"path/filepath"

	"spillway/internal/guestinit"
	"spillway/internal/migrate"
	"spillway/internal/netns"
	"spillway/internal/qemu"
)

// MovePlan is the plan of a move of the guest to the host where it is not. The caller may change it.
func (s *Segment) MovePlan() migrate.Plan {
	from, to := s.At, 1-s.At
	return migrate.Plan{
		VM: vmName, From: s.Hosts[from].side(), To: s.Hosts[to].side(),
		URI:     "unix:" + filepath.Join(s.Hosts[to].Dir, "migration.sock"),
		Options: qemu.MigrationOptions{},
		Start:   func(ctx context.Context) error { return s.StartIncoming(ctx, to) },
		Stop:    func(context.Context) error { return s.StopVM(to) },
	}
}

func (h *SegmentHost) side() migrate.Side {
	return migrate.Side{Name: h.Name, Admin: h.Admin(), QMP: h.QMP(), Addresses: h.Addresses}
}

// Move carries out a plan, and knows then where the guest is. The QEMU of the host that it has left is collected.
func (s *Segment) Move(ctx context.Context, plan migrate.Plan) (*migrate.Report, error) {
	report, err := migrate.Run(ctx, plan)
	if err != nil {
		return nil, err
	}
	if err := s.StopVM(s.At); err != nil {
		return nil, err
	}
	s.At = 1 - s.At
	return report, nil
}

// VMAccel is what runs the guest's instructions.
func (s *Segment) VMAccel() qemu.Accel { return s.Hosts[s.At].VM.Accel() }

// VMVersion is QEMU's version.
func (s *Segment) VMVersion() string { return s.Hosts[s.At].VM.Version().String() }

// TCPTimeouts are the retransmission timeouts that the kernels have counted, as Lab.TCPTimeouts: client, both hosts, guest.
func (s *Segment) TCPTimeouts(ctx context.Context) (map[string]int64, error) {
	counts := map[string]int64{}
	for _, ns := range []struct {
		role string
		*netns.Namespace
	}{{"client", s.Client}, {s.Hosts[0].Name, s.Hosts[0].NS}, {s.Hosts[1].Name, s.Hosts[1].NS}} {
		err := ns.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/netstat")
			if err == nil {
				counts[ns.role], err = tcpExtension(string(text), "TCPTimeouts")
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	control, err := guestinit.DialControl(ctx, filepath.Join(s.Hosts[s.At].Dir, "control.sock"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	text, err := control.Cat(ctx, "/proc/net/netstat")
	if err == nil {
		counts["guest"], err = tcpExtension(string(text), "TCPTimeouts")
	}
	return counts, err
}

// HostLeases asks a host's daemon for its leases, and decodes them into out.
func (s *Segment) HostLeases(ctx context.Context, i int, out any) error {
	return askSocket(ctx, s.Hosts[i].Admin(), "GET", "/leases", out)
}

// HostStatus asks a host's daemon for its state, and decodes it into out.
func (s *Segment) HostStatus(ctx context.Context, i int, out any) error {
	return askSocket(ctx, s.Hosts[i].Admin(), "GET", "/status", out)
}
