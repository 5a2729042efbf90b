package host

import (
	"github.com/prometheus/client_golang/prometheus"

	"spillway/internal/metrics"
	"spillway/internal/wire"
)

// collector reads the daemon's counters for Prometheus (prometheus.Collector). docs/operate.md lists the metrics.
type collector struct{ daemon *Daemon }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_host_"+name, help, labels, nil)
}

var drainingDesc = describe("draining", "Whether the daemon is stopping and takes no more leases.")

// vmGauges are what a VM has now.
var vmGauges = []struct {
	desc  *prometheus.Desc
	value func(*VMStatus) int
}{
	{describe("sessions", "Live sessions with the VM's server.", "vm"), func(s *VMStatus) int { return s.Sessions }},
	{describe("leases", "Live leases.", "vm"), func(s *VMStatus) int { return s.Leases }},
	{describe("max_leases", "Leases that the VM may have.", "vm"), func(s *VMStatus) int { return s.MaxLeases }},
}

// vmCounters are what became of a VM's frames and connections.
var vmCounters = []struct {
	desc  *prometheus.Desc
	value func(*VMStatus) uint64
}{
	{describe("sessions_started_total", "Sessions that have begun.", "vm"), func(s *VMStatus) uint64 { return s.SessionsTotal }},
	{describe("protocol_breaches_total", "Sessions that ended because the guest broke the protocol.", "vm"),
		func(s *VMStatus) uint64 { return s.Breaches }},
	{describe("received_frames_total", "Frames from the guest.", "vm"), func(s *VMStatus) uint64 { return s.Frames }},
	{describe("dropped_frames_total", "Frames of leases that were over.", "vm"), func(s *VMStatus) uint64 { return s.Dropped }},
	{describe("handovers_total", "Connections taken over.", "vm"), func(s *VMStatus) uint64 { return s.Handovers }},
	{describe("handbacks_total", "Connections given back.", "vm"), func(s *VMStatus) uint64 { return s.Handbacks }},
	{describe("handbacks_kept_total", "Handbacks called off, and the connection kept: it was in use after all, its client did not acknowledge in time, or the guest declined.", "vm"),
		func(s *VMStatus) uint64 { return s.Keeps }},
	{describe("sends_total", "Ranges of files that the guest told the host to send.", "vm"), func(s *VMStatus) uint64 { return s.Sends }},
	{describe("sent_bytes_total", "Bytes of files sent to clients.", "vm"), func(s *VMStatus) uint64 { return s.SentBytes }},
	{describe("relayed_bytes_total", "Other bytes passed on through the channel, in both directions.", "vm"),
		func(s *VMStatus) uint64 { return s.RelayedBytes }},
}

// vmReasons are what went otherwise than it was meant to, by reason. Every reason is there from the start, so that the first one shows
// as an increase.
var vmReasons = []struct {
	desc  *prometheus.Desc
	value func(*VMStatus) map[string]uint64
}{
	{describe("handovers_refused_total", "Handovers refused; the guest serves these responses by itself.", "vm", "reason"),
		func(s *VMStatus) map[string]uint64 { return s.Refused }},
	{describe("requests_failed_total", "SEND, STAT and READ that failed.", "vm", "reason"),
		func(s *VMStatus) map[string]uint64 { return s.Failed }},
	{describe("leases_closed_total", "Leases that ended otherwise than by a handback, by the reason of their end.", "vm", "reason"),
		func(s *VMStatus) map[string]uint64 { return s.Closed }},
}

var stepDesc = describe("step_duration_seconds", "How long a step of a lease took: restore (HANDOVER to GRANTED), send (a SEND, until its last byte "+
	"is in the socket's buffer), drain (until the client has acknowledged everything), extract (the state), release (HANDBACK to RELEASED).",
	"vm", "step")

// shareValues are the state of a share.
var shareValues = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*ShareStatus) uint64
}{
	{describe("share_open_files", "Open files.", "share"), prometheus.GaugeValue, func(s *ShareStatus) uint64 { return uint64(s.OpenFiles) }},
	{describe("share_idle_files", "Open files that nobody uses at the moment.", "share"), prometheus.GaugeValue,
		func(s *ShareStatus) uint64 { return uint64(s.IdleFiles) }},
	{describe("share_opens_total", "Times that a file was opened.", "share"), prometheus.CounterValue, func(s *ShareStatus) uint64 { return s.Opens }},
	{describe("share_reuses_total", "Uses of a file that was open already.", "share"), prometheus.CounterValue,
		func(s *ShareStatus) uint64 { return s.Reuses }},
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- drainingDesc
	for _, m := range vmGauges {
		out <- m.desc
	}
	for _, m := range vmCounters {
		out <- m.desc
	}
	for _, m := range vmReasons {
		out <- m.desc
	}
	out <- stepDesc
	for _, m := range shareValues {
		out <- m.desc
	}
	for _, m := range cacheValues {
		out <- m.desc
	}
	out <- originDesc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	status := c.daemon.Status()
	out <- metrics.Gauge(drainingDesc, metrics.Flag(status.Draining))
	for i := range status.VMs {
		s := &status.VMs[i]
		for _, m := range vmGauges {
			out <- metrics.Gauge(m.desc, float64(m.value(s)), s.Name)
		}
		for _, m := range vmCounters {
			out <- metrics.Counter(m.desc, m.value(s), s.Name)
		}
		for _, m := range vmReasons {
			counted := m.value(s)
			for _, r := range wire.Reasons() {
				out <- metrics.Counter(m.desc, counted[r.String()], s.Name, r.String())
			}
		}
		durations := &c.daemon.vms[i].counters.durations
		for i, name := range stepNames {
			out <- durations[i].Metric(stepDesc, s.Name, name)
		}
	}
	c.collectCaches(out)
	for i := range status.Shares {
		s := &status.Shares[i]
		for _, m := range shareValues {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(s)), s.Name)
		}
	}
}
