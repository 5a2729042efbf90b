package guest

import (
	"github.com/prometheus/client_golang/prometheus"

	"spillway/internal/metrics"
	"spillway/internal/wire"
)

// collector reads the agent's counters for Prometheus (prometheus.Collector). docs/operate.md lists the metrics.
type collector struct{ agent *Agent }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_guest_"+name, help, labels, nil)
}

var (
	infoDesc      = describe("info", "1; the label tells the mode: lease, offload or off.", "mode")
	upDesc        = describe("host_up", "Whether there is a session with the host daemon.")
	drainingDesc  = describe("host_draining", "Whether the host daemon is stopping and takes no more leases.")
	channelsDesc  = describe("channels", "Channels over which the host daemon is in touch.")
	leasesDesc    = describe("leases", "Connections that the host has, or that are on their way.")
	fallbacksDesc = describe("fallbacks_total", "Ranges of files that could have gone through the host and did not.", "reason")
	handoverDesc  = describe("handover_duration_seconds", "How long a handover took, from freezing the socket to the host's GRANTED.")
	handbackDesc  = describe("handback_duration_seconds", "How long a handback took, from HANDBACK to RELEASED.")
	stepDesc      = describe("step_duration_seconds", "How long a part of these took: freeze_extract (of a handover), park_restore and release (of a "+
		"handback); in mode offload leased (what the host had the connection for) and round_trip (all but that); of a response on a leased "+
		"connection answer (the server, from the request to its order) and order (channel, host, channel).", "step")
)

// counters are numbers since the start, or since the last POST /stats/reset.
var counters = []struct {
	desc  *prometheus.Desc
	value func(*Counts) uint64
}{
	{describe("accepted_connections_total", "Connections accepted."), func(c *Counts) uint64 { return c.Accepted }},
	{describe("sessions_started_total", "Sessions with the host daemon."), func(c *Counts) uint64 { return c.Sessions }},
	{describe("handovers_total", "Connections that the host has taken over."), func(c *Counts) uint64 { return c.Handovers }},
	{describe("handbacks_total", "Connections taken back from the host."), func(c *Counts) uint64 { return c.Handbacks }},
	{describe("handbacks_kept_total", "Handbacks declined; the host has kept the connection."), func(c *Counts) uint64 { return c.Kept }},
	{describe("leases_lost_total", "Leases that ended with their session: the clients were cut off."), func(c *Counts) uint64 { return c.Lost }},
	{describe("sends_total", "Ranges of files sent by the host."), func(c *Counts) uint64 { return c.Sends }},
	{describe("sent_bytes_total", "Bytes of these ranges, without headers."), func(c *Counts) uint64 { return c.SentBytes }},
	{describe("local_bytes_total", "Bytes that this server wrote to its own sockets."), func(c *Counts) uint64 { return c.LocalBytes }},
	{describe("relayed_bytes_total", "Bytes that were no range of a file and went through the host."), func(c *Counts) uint64 { return c.Relayed }},
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, upDesc, drainingDesc, channelsDesc, leasesDesc, fallbacksDesc, handoverDesc, handbackDesc, stepDesc,
	} {
		out <- d
	}
	for _, m := range counters {
		out <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	host, channels, leases := c.agent.state()
	out <- metrics.Gauge(infoDesc, 1, c.agent.policy.Mode.String())
	out <- metrics.Gauge(upDesc, metrics.Flag(host != hostAway))
	out <- metrics.Gauge(drainingDesc, metrics.Flag(host == hostDraining))
	out <- metrics.Gauge(channelsDesc, float64(channels))
	out <- metrics.Gauge(leasesDesc, float64(leases))

	counts, fallbacks := c.agent.stats.counted()
	for _, m := range counters {
		out <- metrics.Counter(m.desc, m.value(&counts))
	}
	for _, r := range wire.Reasons() { // all of them, so that the first one shows as an increase
		out <- metrics.Counter(fallbacksDesc, fallbacks[r], r.String())
	}
	for step, h := range c.agent.stats.durations {
		switch step {
		case StepHandover:
			out <- h.Metric(handoverDesc)
		case StepHandback:
			out <- h.Metric(handbackDesc)
		default:
			out <- h.Metric(stepDesc, string(step))
		}
	}
}
