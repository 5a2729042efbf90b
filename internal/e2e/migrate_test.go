package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/host"
	"spillway/internal/lab"
	"spillway/internal/migrate"
	"spillway/internal/testkit"
)

// TestVMMigration boots one VM on a lab of two hosts, and moves it: while a client streams, and with everything failing in turn. The steps share the VM and
// come one after the other. After each the VM runs in one place, and its clients are served there.
func TestVMMigration(t *testing.T) {
	testkit.CheckFDs(t)
	files := newBigMedia(t)
	opts := lab.Options{Name: labName(), Binary: program, Files: files.dir, Cache: cache}
	ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
	defer cancel()
	s, err := lab.UpSegment(ctx, opts)
	if err != nil {
		t.Fatalf("%v\nWhat the VM needs is fetched by: scripts/setup.sh build/cache", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logLab(t, s.Lab)
			t.Log(s.LogTails())
		}
		if err := s.Down(); err != nil {
			t.Errorf("lab down: %v", err)
		}
		checkGone(t, opts.Name, files.dir)
	})
	for _, step := range []struct {
		name string
		run  func(t *testing.T, s *lab.Segment, files *media)
	}{
		{"there and back while a client streams", func(t *testing.T, s *lab.Segment, files *media) { moveStreaming(t, s, files, false) }},
		{"there and back, recalled", func(t *testing.T, s *lab.Segment, files *media) { moveStreaming(t, s, files, true) }},
		{"interrupted in pre-copy", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, migrate.Precopy, migrate.AtSource, true, func(_ *lab.Segment, interrupt func()) { interrupt() })
		}},
		{"destination dies when it has everything", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, taken, migrate.AtSource, true, func(s *lab.Segment, _ func()) { killVM(t, s, 1-s.At) })
		}},
		{"interrupted when the destination has everything", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, taken, migrate.AtSource, true, func(_ *lab.Segment, interrupt func()) { interrupt() })
		}},
		{"destination dies in pre-copy", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, migrate.Precopy, migrate.AtSource, true, func(s *lab.Segment, _ func()) { killVM(t, s, 1-s.At) })
		}},
		{"destination dies at the switch-over", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, migrate.Switch, migrate.AtSource, true, func(s *lab.Segment, _ func()) { killVM(t, s, 1-s.At) })
		}},
		{"destination dies before the guest answers", func(t *testing.T, s *lab.Segment, files *media) {
			moveFails(t, s, files, migrate.Answer, migrate.AtSource, false, func(s *lab.Segment, _ func()) { killVM(t, s, 1-s.At) })
		}},
		{"no destination", moveNowhere},
		{"destination has no room for the leases", moveNoRoom},
		{"destination's share lacks a file", moveFileMissing},
		{"source daemon dies in pre-copy", moveSourceDaemonDies},
		{"there and back again", func(t *testing.T, s *lab.Segment, files *media) { moveStreaming(t, s, files, false) }},
		{"by the command", moveByCommand},
		{"the channel does not come back", moveChannelAway},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, s, files) })
	}
}

func moveContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), bootPatience)
}

// moveStreaming: the bytes of a response that the move meets are right, and the connection lives on, as does an idle one.
func moveStreaming(t *testing.T, s *lab.Segment, files *media, recall bool) {
	ctx, cancel := moveContext()
	defer cancel()
	for range 2 {
		streaming, rest := begun(t, s.Lab, files, lab.Lease)
		idle := dial(t, s.Lab, lab.Lease)
		idle.get("10m.mp4", files.files["10m.mp4"])
		lost, to := serverStats(t, s.Lab, lab.Lease).Counts.Lost, 1-s.At
		sessions, plan := serverStats(t, s.Lab, lab.Lease).Counts.Sessions, s.MovePlan()
		plan.Recall = recall
		report, err := s.Move(ctx, plan)
		must(t, err)
		carried, recalled, begun := 2, 0, uint64(0)
		if recall {
			carried, recalled, begun = 0, 2, 1
		}
		if report.Carried != carried || report.Recalled != recalled || report.Closed != 0 || s.At != to {
			t.Errorf("%+v", report)
		}
		if now := serverStats(t, s.Lab, lab.Lease).Counts.Sessions - sessions; uint64(now) != begun {
			t.Errorf("the guest has begun %d sessions, want %d", now, begun)
		}
		t.Logf("%s to %s: %.0f ms, paused for %.0f", report.From, report.To, report.TotalMs, report.PausedMs)
		streaming.take(rest)
		before := serverStats(t, s.Lab, lab.Lease).Counts.Sends
		for _, c := range []*client{streaming, idle} {
			c.get("10m.mp4", files.files["10m.mp4"])
			must(t, c.Close())
		}
		eventually(t, "the new host has sent both", func() bool { return serverStats(t, s.Lab, lab.Lease).Counts.Sends >= before+2 })
		if now := serverStats(t, s.Lab, lab.Lease).Counts.Lost; now != lost {
			t.Errorf("%d leases were lost", now-lost)
		}
	}
}

// taken is the end of phase Switch, where the destination has everything and the VM has not run there.
const taken migrate.Phase = "taken"

// moveFails: something happens when a move enters a phase. The VM is where it should be afterwards, nothing of it is elsewhere, and if whole is set its client has noticed nothing.
func moveFails(t *testing.T, s *lab.Segment, files *media, at migrate.Phase, runs migrate.Place, whole bool, happens func(s *lab.Segment, interrupt func())) {
	ctx, cancel := moveContext()
	defer cancel()
	streaming, rest := begun(t, s.Lab, files, lab.Lease)
	defer streaming.Close()
	from := s.At
	plan := s.MovePlan()
	plan.BytesPerSecond = 64 << 20 // so that pre-copy lasts for as long as it is told of
	happened := false
	plan.Progress = func(e migrate.Event) {
		phase := e.Phase
		if e.Taken {
			phase = taken
		}
		if phase == at && !happened && (at != migrate.Precopy || e.Copied.TransferredBytes > 0) {
			happened = true
			happens(s, cancel)
		}
	}
	_, err := s.Move(ctx, plan)
	if at == taken {
		at = migrate.Switch
	}
	var failed *migrate.Error
	if !errors.As(err, &failed) || failed.Phase != at || failed.Runs != runs || !happened {
		t.Fatalf("the move ends with %v", err)
	}
	t.Log(err)
	if s.Hosts[1-from].VM != nil || s.At != from {
		t.Error("a QEMU is left at the destination")
	}
	if whole {
		streaming.take(rest)
	} // else its connection may have gone on at the destination, where nobody is
	servedAgain(t, s, files)
}

// servedAgain: a new client is served, by the host.
func servedAgain(t *testing.T, s *lab.Segment, files *media) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, s.WaitArm(ctx, lab.Lease))
	before := serverStats(t, s.Lab, lab.Lease).Counts.Sends
	fetch(t, s.Lab, lab.Lease, "10m.mp4", files.files["10m.mp4"])
	eventually(t, "the host has sent it", func() bool { return serverStats(t, s.Lab, lab.Lease).Counts.Sends > before })
}

func killVM(t *testing.T, s *lab.Segment, i int) {
	t.Helper()
	vm := s.Hosts[i].VM
	must(t, syscall.Kill(vm.PID(), syscall.SIGKILL))
	select {
	case <-vm.Done():
	case <-time.After(patience):
		t.Error("QEMU does not die")
	}
}

// moveNowhere: a destination that has no room for a VM, or whose daemon is away, changes nothing.
func moveNowhere(t *testing.T, s *lab.Segment, files *media) {
	ctx, cancel := moveContext()
	defer cancel()
	noRoom := errors.New("cannot allocate memory")
	plan := s.MovePlan()
	plan.Start = func(context.Context) error { return noRoom }
	_, err := s.Move(ctx, plan)
	var failed *migrate.Error
	if !errors.As(err, &failed) || failed.Phase != migrate.Start || failed.Runs != migrate.AtSource || !errors.Is(err, noRoom) {
		t.Errorf("no room: %v", err)
	}
	servedAgain(t, s, files)

	to := 1 - s.At
	must(t, s.StopHost(to, syscall.SIGTERM))
	if _, err = s.Move(ctx, s.MovePlan()); !errors.As(err, &failed) || failed.Phase != migrate.Check || failed.Runs != migrate.AtSource {
		t.Errorf("no daemon: %v", err)
	}
	servedAgain(t, s, files)
	must(t, s.StartHost(to))
}

// restartHost restarts the daemon of a host that does not have the VM, as change has it, until the test ends.
func restartHost(t *testing.T, s *lab.Segment, i int, change func(h *lab.SegmentHost)) {
	t.Helper()
	before := *s.Hosts[i]
	again := func() {
		must(t, s.StopHost(i, syscall.SIGTERM))
		must(t, s.StartHost(i))
	}
	t.Cleanup(func() {
		s.Hosts[i].Share, s.Hosts[i].MaxLeases = before.Share, before.MaxLeases
		again()
	})
	change(s.Hosts[i])
	again()
}

// moveNoRoom: a destination that may not take so many leases is refused, and nothing was touched.
func moveNoRoom(t *testing.T, s *lab.Segment, files *media) {
	ctx, cancel := moveContext()
	defer cancel()
	restartHost(t, s, 1-s.At, func(h *lab.SegmentHost) { h.MaxLeases = 1 })
	streaming, rest := begun(t, s.Lab, files, lab.Lease)
	other, restOfOther := begun(t, s.Lab, files, lab.Lease)
	eventually(t, "both are leased", func() bool {
		var status host.Status
		must(t, s.HostStatus(ctx, s.At, &status))
		return status.VMs[0].Leases == 2
	})
	_, err := s.Move(ctx, s.MovePlan())
	var failed *migrate.Error
	if !errors.As(err, &failed) || failed.Phase != migrate.Check || failed.Runs != migrate.AtSource || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the move ends with %v", err)
	}
	streaming.take(rest)
	other.take(restOfOther)
	must(t, errors.Join(streaming.Close(), other.Close()))
	servedAgain(t, s, files)
}

// moveFileMissing: a file that is being sent is missing at the destination, from the beginning or since the move began. The VM stays, and the file is sent to its end.
func moveFileMissing(t *testing.T, s *lab.Segment, files *media) {
	ctx, cancel := moveContext()
	defer cancel()
	share := t.TempDir()
	for name := range files.files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(share, name)), 0o755))
		must(t, os.Link(filepath.Join(files.dir, name), filepath.Join(share, name))) // with its time
	}
	restartHost(t, s, 1-s.At, func(h *lab.SegmentHost) { h.Share = share })
	for _, missing := range []migrate.Phase{migrate.Hold, migrate.Check} { // the latter for good
		streaming, rest := begun(t, s.Lab, files, lab.Lease)
		from, plan := s.At, s.MovePlan()
		plan.Progress = func(e migrate.Event) {
			if e.Phase == missing && missing == migrate.Hold {
				must(t, os.Remove(filepath.Join(share, bigFile)))
			}
		}
		_, err := s.Move(ctx, plan)
		var failed *migrate.Error
		if !errors.As(err, &failed) || failed.Phase != missing || failed.Runs != migrate.AtSource || !strings.Contains(err.Error(), bigFile+", which is being sent to a client: not-found") {
			t.Errorf("the move ends with %v", err)
		}
		if s.Hosts[1-from].VM != nil || s.At != from {
			t.Error("a QEMU is left at the destination")
		}
		streaming.take(rest)
		must(t, streaming.Close())
		servedAgain(t, s, files)
	}
}

// moveSourceDaemonDies: its clients are cut off, as they always are when a daemon dies, and the VM stays.
func moveSourceDaemonDies(t *testing.T, s *lab.Segment, files *media) {
	ctx, cancel := moveContext()
	defer cancel()
	streaming, rest := begun(t, s.Lab, files, lab.Lease)
	from := s.At
	plan := s.MovePlan()
	plan.BytesPerSecond = 64 << 20
	killed := false
	plan.Progress = func(e migrate.Event) {
		if e.Phase == migrate.Precopy && !killed && e.Copied.TransferredBytes > 0 {
			killed = true
			must(t, s.StopHost(from, syscall.SIGKILL))
		}
	}
	_, err := s.Move(ctx, plan)
	var failed *migrate.Error
	if !errors.As(err, &failed) || failed.Phase != migrate.Hold || failed.Runs != migrate.AtSource || s.At != from {
		t.Fatalf("the move ends with %v", err)
	}
	streaming.takeCut(rest)
	must(t, streaming.Close())
	must(t, s.StartHost(from))
	servedAgain(t, s, files)
}

// moveChannelAway: the VM runs at the destination and is reached there, but its server does not find the daemon, which died. The source is kept, paused. When the daemon is
// back, all is well.
func moveChannelAway(t *testing.T, s *lab.Segment, files *media) {
	ctx, cancel := moveContext()
	defer cancel()
	from, to := s.At, 1-s.At
	plan := s.MovePlan()
	plan.AnswerTimeout = time.Second
	plan.Progress = func(e migrate.Event) {
		if e.Phase == migrate.Answer {
			must(t, s.StopHost(to, syscall.SIGKILL))
		}
	}
	_, err := s.Move(ctx, plan)
	var failed *migrate.Error
	if !errors.As(err, &failed) || failed.Phase != migrate.Answer || failed.Runs != migrate.AtDestination || failed.Advice == "" {
		t.Fatalf("the move ends with %v", err)
	}
	t.Log(err)
	must(t, s.StartHost(to))
	must(t, s.StopVM(from)) // as the advice has it
	s.At = to
	// Until then the guest may take what the dead daemon has left in the channel for a session.
	eventually(t, "the server finds the daemon", func() bool {
		var status host.Status
		must(t, s.HostStatus(ctx, to, &status))
		return status.VMs[0].Sessions == 1
	})
	servedAgain(t, s, files)
}

// moveByCommand is a move by `spillway migrate`, as an operator makes it. The destination's QEMU is started by the test when the configured command asks for it.
func moveByCommand(t *testing.T, s *lab.Segment, files *media) {
	streaming, rest := begun(t, s.Lab, files, lab.Lease)
	defer streaming.Close()
	from, to := s.At, 1-s.At
	asked := filepath.Join(t.TempDir(), "start")
	text := "[[vm]]\nname = \"vm0\"\n"
	for _, h := range s.Hosts {
		text += fmt.Sprintf("[[vm.host]]\nname = %q\nadmin = %q\nqmp = %q\naddresses = [\"%s\", \"%s\"]\nincoming = %q\nstart = [\"touch\", %q]\nstop = [\"false\"]\n",
			h.Name, h.Admin(), h.QMP(), h.Addresses[0], h.Addresses[1], s.MovePlan().URI, asked)
	}
	file := filepath.Join(t.TempDir(), "migrate.toml")
	must(t, os.WriteFile(file, []byte(text), 0o644))
	started := make(chan error, 1)
	go func() {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(asked); err == nil {
				started <- s.StartIncoming(context.Background(), to)
				return
			}
		}
		started <- errors.New("nobody asked for it")
	}()
	out, err := exec.Command(program, "migrate", "vm0", "--to", s.Hosts[to].Name, "--config", file, "--json").Output()
	must(t, <-started)
	if err != nil {
		t.Fatalf("%v\n%s", err, err.(*exec.ExitError).Stderr)
	}
	must(t, s.StopVM(from))
	s.At = to
	var report migrate.Report
	must(t, json.Unmarshal(out, &report))
	if report.VM != "vm0" || report.To != s.Hosts[to].Name || report.Carried != 1 || report.Recalled != 0 || report.Closed != 0 {
		t.Errorf("%s", out)
	}
	streaming.take(rest)
	servedAgain(t, s, files)
}
