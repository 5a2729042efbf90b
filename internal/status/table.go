package status

import (
	"fmt"
	"strings"
	"time"

	"spillway/internal/host"
)

// statusTable writes a status for a person. before is an older one, for the rates; nil shows none.
func statusTable(now, before *host.Status, at time.Time) string {
	t := &table{seconds: secondsBetween(now, before)}
	t.title(now, at)
	for i := range now.VMs {
		t.vm(&now.VMs[i], vmOf(before, now.VMs[i].Name))
	}
	if len(now.Shares) > 0 {
		t.line("")
	}
	for i := range now.Shares {
		s := &now.Shares[i]
		t.line("share %s: %s open, %s of them idle; opened %s times, found open %s times", s.Name,
			plural(s.OpenFiles, "file"), count(uint64(s.IdleFiles)), count(s.Opens), count(s.Reuses))
		if s.Cache != nil {
			t.cache(s.Cache, cacheOf(before, s.Name))
		}
	}
	return t.text.String()
}

// secondsBetween is the time between two answers by the daemon's own clock, or 0 if rates make no sense: it was restarted.
func secondsBetween(now, before *host.Status) float64 {
	if before == nil {
		return 0
	}
	return max(now.UptimeSeconds-before.UptimeSeconds, 0)
}

func vmOf(s *host.Status, name string) *host.VMStatus {
	if s != nil {
		for i := range s.VMs {
			if s.VMs[i].Name == name {
				return &s.VMs[i]
			}
		}
	}
	return nil
}

// table is a text under construction.
type table struct {
	text    strings.Builder
	seconds float64 // between the two answers that rates come from; 0: there are no rates
}

// line writes one line, without blanks at its end.
func (t *table) line(format string, args ...any) {
	t.text.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

func (t *table) title(s *host.Status, at time.Time) {
	state := ""
	if s.Draining {
		state = ", DRAINING: it takes no more leases"
	}
	t.line("spillway host, up %s%s  [%s]", age(s.UptimeSeconds), state, clock(at))
}

// vm writes the block of one VM.
func (t *table) vm(now, before *host.VMStatus) {
	t.line("\n%s: %s", now.Name, vmState(now))
	if now.SessionsTotal == 0 {
		return // there can be nothing
	}
	row := func(label string, value func(*host.VMStatus) uint64, write func(uint64) string, rate func(float64) string, note string) {
		writeRow(t, label, now, before, value, write, rate, note)
	}
	row("file bytes", func(s *host.VMStatus) uint64 { return s.SentBytes }, byteCount, bytesPerSecond, "")
	row("sends", func(s *host.VMStatus) uint64 { return s.Sends }, count, perSecond, "")
	row("relayed bytes", func(s *host.VMStatus) uint64 { return s.RelayedBytes }, byteCount, bytesPerSecond, "")
	row("handovers", func(s *host.VMStatus) uint64 { return s.Handovers }, count, perSecond, "")
	row("handbacks", func(s *host.VMStatus) uint64 { return s.Handbacks }, count, perSecond, unless0(now.Keeps, "called off, the host kept the connection"))
	row("refused", func(s *host.VMStatus) uint64 { return sum(s.Refused) }, count, perSecond, reasons(now.Refused))
	row("failed", func(s *host.VMStatus) uint64 { return sum(s.Failed) }, count, perSecond, reasons(now.Failed))
	row("leases closed", func(s *host.VMStatus) uint64 { return sum(s.Closed) }, count, perSecond, reasons(now.Closed))
	row("sessions", func(s *host.VMStatus) uint64 { return s.SessionsTotal }, count, perSecond, unless0(now.Breaches, "broke the protocol"))
	row("frames", func(s *host.VMStatus) uint64 { return s.Frames }, count, perSecond, unless0(now.Dropped, "came after the end of their lease"))
}

// writeRow writes a count that grows, with its rate, out of a status and, if there is one, an older one.
func writeRow[S any](t *table, label string, now, before *S, value func(*S) uint64, write func(uint64) string, rate func(float64) string, note string) {
	column := ""
	if t.seconds > 0 {
		if before != nil && value(now) >= value(before) {
			column = rate(float64(value(now)-value(before)) / t.seconds)
		}
		column = fmt.Sprintf(" %11s", column)
	}
	t.line("  %-13s %15s%s  %s", label, write(value(now)), column, note)
}

// vmState is what a VM has at the moment. Without a session nothing goes through the host, which must catch the eye.
func vmState(s *host.VMStatus) string {
	state := plural(s.Sessions, "session")
	switch {
	case s.SessionsTotal == 0:
		state = "NO SESSION YET (is the VM up, with the channel, and its server?)"
	case s.Sessions == 0:
		state = "NO SESSION (is the VM up, and its server?)"
	}
	if s.MaxLeases == 0 { // an older daemon does not say
		return fmt.Sprintf("%s, %s", state, plural(s.Leases, "lease"))
	}
	return fmt.Sprintf("%s, %s of %s leases", state, count(uint64(s.Leases)), count(uint64(s.MaxLeases)))
}

func unless0(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return count(n) + " " + what
}
