package evaluation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"spillway/internal/host"
	"spillway/internal/lab"
	"spillway/internal/redirect"
)

// soakEvents are what happens to a lab, and how often in proportion.
var soakEvents = []struct {
	name   string
	weight int
	cuts   bool // a response under way may be cut; after the others every client goes on
	run    func(s *soak, ctx context.Context, random *rand.Rand) error
}{
	{"recalls", 8, false, (*soak).recall},
	{"channel cuts", 3, true, (*soak).cutChannel},
	{"daemon restarts by SIGTERM", 2, false, func(s *soak, ctx context.Context, random *rand.Rand) error {
		return s.restartHost(ctx, random, syscall.SIGTERM)
	}},
	{"daemon restarts by SIGKILL", 2, true, func(s *soak, ctx context.Context, random *rand.Rand) error {
		return s.restartHost(ctx, random, syscall.SIGKILL)
	}},
	{"server restarts by SIGKILL", 1, true, (*soak).restartServer},
}

// event lets one thing happen; in calm, none that may cut a connection.
func (s *soak) event(ctx context.Context, random *rand.Rand, calm bool) error {
	all := 0
	for _, e := range soakEvents {
		if !calm || !e.cuts {
			all += e.weight
		}
	}
	n := random.IntN(all)
	for _, e := range soakEvents {
		if calm && e.cuts {
			continue
		}
		if n -= e.weight; n >= 0 {
			continue
		}
		s.count(e.name)
		if e.cuts {
			s.breakBegins()
			defer s.breakEnds()
		}
		if err := e.run(s, ctx, random); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		return nil
	}
	return nil
}

func (s *soak) breakBegins() {
	s.mu.Lock()
	s.breaking++
	s.mu.Unlock()
}

func (s *soak) breakEnds() {
	s.mu.Lock()
	s.breaking--
	s.broke = time.Now()
	s.mu.Unlock()
}

// mayBeCut tells whether anything has happened since a moment that may cut a connection. For a while after it too: an end finds out at its
// next turn that its lease is over (docs/wire.md: a session that says nothing ends after 6 s).
func (s *soak) mayBeCut(since time.Time) bool {
	const findsOut = 8 * time.Second
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.breaking > 0 || !s.broke.IsZero() && s.broke.Add(findsOut).After(since)
}

// recall calls all connections back, a few times in a row now and then.
func (s *soak) recall(ctx context.Context, random *rand.Rand) error {
	for range 1 + random.IntN(3) {
		var answer struct{ Leases int }
		if err := s.lab.HostAdmin(ctx, http.MethodPost, "/recall", &answer); err != nil {
			return err
		}
		s.mu.Lock()
		s.counts["leases recalled"] += int64(answer.Leases)
		s.mu.Unlock()
	}
	return nil
}

func (s *soak) cutChannel(ctx context.Context, random *rand.Rand) error {
	arm := soakArms[random.IntN(len(soakArms))]
	if _, err := s.lab.CutChannel(arm); err != nil {
		return err
	}
	return s.waitArm(ctx, arm)
}

// restartHost ends the daemon and starts it again after a while, in which the guests serve by themselves.
func (s *soak) restartHost(ctx context.Context, random *rand.Rand, sig syscall.Signal) error {
	if err := s.lab.StopHost(sig); err != nil {
		return err
	}
	away := time.Duration(random.Int64N(int64(time.Second)))
	err := pause(ctx, away)
	if startErr := s.lab.StartHost(); startErr != nil {
		return startErr
	}
	if err != nil {
		return err
	}
	return errors.Join(s.waitArm(ctx, lab.Lease), s.waitArm(ctx, lab.Offload))
}

func (s *soak) restartServer(ctx context.Context, random *rand.Rand) error {
	arm := soakArms[random.IntN(len(soakArms))]
	if err := s.lab.KillServer(arm); err != nil {
		return err
	}
	if s.lab.VM == lab.NetNS { // a VM's init does it by itself
		if err := s.lab.StartServer(arm); err != nil {
			return err
		}
	}
	return s.waitArm(ctx, arm)
}

// armTimeout bounds the wait for an arm that was disturbed.
const armTimeout = 30 * time.Second

func (s *soak) waitArm(ctx context.Context, arm lab.Arm) error {
	ctx, cancel := context.WithTimeout(ctx, armTimeout)
	defer cancel()
	return s.lab.WaitArm(ctx, arm)
}

// noLeases waits until no connection of an arm is with the host. An error says what the leases do that are left.
func (s *soak) noLeases(ctx context.Context, arm lab.Arm) error {
	_, err := settled(ctx, s.lab, arm)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var leases host.Leases
	if hostErr := s.lab.HostAdmin(ctx, http.MethodGet, "/leases", &leases); hostErr != nil {
		return errors.Join(err, hostErr)
	}
	return fmt.Errorf("%w: %+v", err, leases.VMs)
}

// noHostLeases waits until the daemon has no lease.
func (s *soak) noHostLeases(ctx context.Context) error {
	return eventually(ctx, settleTimeout, func() error {
		var status host.Status
		if err := s.lab.HostAdmin(ctx, http.MethodGet, "/status", &status); err != nil {
			return err
		}
		for _, vm := range status.VMs {
			if vm.Leases > 0 {
				return fmt.Errorf("the daemon still has %d leases of %s", vm.Leases, vm.Name)
			}
		}
		return nil
	})
}

// noRedirect stops the daemon and looks for what it has made in the host's namespace.
func (s *soak) noRedirect() error {
	if err := s.lab.StopHost(syscall.SIGTERM); err != nil {
		return err
	}
	var status redirect.Status
	err := s.lab.Host.Do(func() (err error) {
		status, err = redirect.Check(redirect.Config{})
		return err
	})
	if err == nil && !status.Empty() {
		err = fmt.Errorf("the stopped daemon has left its redirect behind: %+v", status)
	}
	return err
}

// goneLab looks for what a lab that is down has left.
func goneLab(name string) error {
	for _, pattern := range []string{filepath.Join(lab.StateRoot, name), "/run/netns/spw-" + name + "-*"} {
		left, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("the lab has left %v: %w", left, os.ErrExist)
		}
	}
	return nil
}
