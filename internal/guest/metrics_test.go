package guest

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"spillway/internal/wire"
)

// scrape returns the values of GET /metrics by name and label: those of counters and gauges, and the number of observations of histograms.
func (r *rig) scrape() map[string]float64 {
	r.tb.Helper()
	w := httptest.NewRecorder()
	r.agent.AdminHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		r.tb.Fatalf("%d %s", w.Code, w.Body)
	}
	text := w.Body.Bytes()
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "spillway_") {
			r.tb.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		r.tb.Fatal(err)
	}
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.Metric {
			key := strings.TrimPrefix(name, "spillway_guest_")
			for _, l := range m.Label {
				key += " " + l.GetValue()
			}
			values[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// check compares some of the values.
func check(tb testing.TB, got map[string]float64, want map[string]float64) {
	tb.Helper()
	for key, w := range want {
		if g, there := got[key]; !there || g != w {
			tb.Errorf("%s is %v (there: %v), want %v", key, g, there, w)
		}
	}
}

// TestMetrics: what becomes of a connection is in the metrics.
func TestMetrics(t *testing.T) {
	r := newRig(t, Policy{Mode: Offload})
	away := map[string]float64{"info offload": 1, "host_up": 0, "host_draining": 0, "leases": 0, "sessions_started_total": 0}
	for _, reason := range wire.Reasons() { // before the first one: else nobody sees it
		away["fallbacks_total "+reason.String()] = 0
	}
	for _, step := range steps() {
		if step != StepHandover && step != StepHandback {
			away["step_duration_seconds "+string(step)] = 0
		}
	}
	check(t, r.scrape(), away)

	s := r.script()
	h := r.leased(s)
	check(t, r.scrape(), map[string]float64{
		"step_duration_seconds answer": 0, "step_duration_seconds order": 0, // the handover's own SEND is none of a leased connection
		"host_up": 1, "leases": 1, "accepted_connections_total": 1, "sessions_started_total": 1, "handovers_total": 1, "handbacks_total": 0,
		"sends_total": 1, "sent_bytes_total": bodySize, "handover_duration_seconds": 1, "handback_duration_seconds": 0,
	})
	s.say(h.id, 0, wire.Handback{Sent: -1, State: h.state.State})
	hear[wire.Taken](s)
	s.say(h.id, 0, wire.Released{Window: h.state.State.Window.Peer()})
	r.eventually("the connection is back", func() bool { return r.agent.Snapshot().Leases == 0 })
	s.say(0, 0, wire.Drain{})
	r.eventually("the host drains", func() bool { return r.agent.Snapshot().Host == "draining" })
	r.agent.stats.fallback(wire.ReasonSmall)
	check(t, r.scrape(), map[string]float64{
		"host_up": 1, "host_draining": 1, "leases": 0, "handbacks_total": 1, "handbacks_kept_total": 0, "leases_lost_total": 0,
		"fallbacks_total small": 1, "fallbacks_total draining": 0, "handback_duration_seconds": 1,
		"step_duration_seconds freeze_extract": 1, "step_duration_seconds park_restore": 1, "step_duration_seconds release": 1,
		"step_duration_seconds round_trip": 1, "step_duration_seconds leased": 1,
	})

	r.agent.Stats().Reset()
	check(t, r.scrape(), map[string]float64{
		"host_up": 1, "handovers_total": 0, "fallbacks_total small": 0, "handover_duration_seconds": 0, "step_duration_seconds release": 0,
	})
	s.lives()
}

// TestMetricsOfEveryCount: no counter is forgotten, or taken for another one.
func TestMetricsOfEveryCount(t *testing.T) {
	r := newRig(t, Policy{})
	r.agent.stats.count(func(c *Counts) {
		*c = Counts{Accepted: 1, Handovers: 2, Handbacks: 3, Kept: 4, Sends: 5, SentBytes: 6, LocalBytes: 7, Relayed: 8, Sessions: 9, Lost: 10}
	})
	r.agent.stats.step(StepHandover, time.Second)
	got := r.scrape()
	check(t, got, map[string]float64{
		"accepted_connections_total": 1, "handovers_total": 2, "handbacks_total": 3, "handbacks_kept_total": 4, "sends_total": 5,
		"sent_bytes_total": 6, "local_bytes_total": 7, "relayed_bytes_total": 8, "sessions_started_total": 9, "leases_lost_total": 10,
		"info off": 1, "handover_duration_seconds": 1,
	})
	if fields := len(strings.Fields(fmt.Sprintf("%v", r.agent.Snapshot().Counts))); fields != len(counters) {
		t.Errorf("%d counts and %d metrics of them", fields, len(counters))
	}
}
