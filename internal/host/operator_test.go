package host

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"spillway/internal/config"
	"spillway/internal/wire"
)

// ask requests a page of the admin socket.
func (r *rig) ask(path string) []byte {
	r.tb.Helper()
	status, body := r.request(path, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.cfg.Admin)
	})
	if status != http.StatusOK {
		r.tb.Fatalf("GET %s: %d %s", path, status, body)
	}
	return body
}

func (r *rig) request(path string, dial func(context.Context) (net.Conn, error)) (status int, body []byte) {
	r.tb.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	resp, err := client.Get("http://admin" + path)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		r.tb.Fatal(err)
	}
	return resp.StatusCode, body
}

// leases of VM "one", as the admin socket tells them.
func (r *rig) leases() VMLeases {
	r.tb.Helper()
	var all Leases
	if err := json.Unmarshal(r.ask("/leases"), &all); err != nil {
		r.tb.Fatal(err)
	}
	if len(all.VMs) != 2 || all.VMs[0].Name != "one" || len(all.VMs[1].Leases) != 0 {
		r.tb.Fatalf("leases %+v", all)
	}
	return all.VMs[0]
}

// waitDoing waits until the only lease is at something.
func (r *rig) waitDoing(want string) (l LeaseStatus) {
	r.tb.Helper()
	r.eventually("the lease is "+want, func() bool {
		v := r.leases()
		if len(v.Leases) != 1 {
			r.tb.Fatalf("%d leases", len(v.Leases))
		}
		l = v.Leases[0]
		return l.Doing == want
	})
	return l
}

// TestLeases: a lease is told of with what it does, from its grant to its end.
func TestLeases(t *testing.T) {
	r, content := newRigWithMore(t, drainTimeout(2*patience), func(r *rig) {
		r.cfg.Limits.SessionTimeout = config.Duration(2 * patience) // what is being looked at shall last
	})
	g := r.guest(0)
	if got := string(r.ask("/leases")); !strings.Contains(got, `"leases": []`) {
		t.Errorf("without a lease: %s", got) // no null: scripts loop over it
	}
	c := r.lease(g, 17)
	l := r.waitDoing("idle")
	if l.ID != 17 || l.Client.String() != c.client.LocalAddr().String() || l.SentBytes != 0 || l.UnackedBytes != 0 || l.AgeSeconds < 0 {
		t.Errorf("idle: %+v", l)
	}

	g.send(17, 0, r.whole("more", "head\n"))
	c.eventuallyFull()
	l = r.waitDoing("sending")
	if l.SentBytes == 0 || l.SentBytes >= more || l.UnackedBytes == 0 || int64(l.UnackedBytes) > l.SentBytes {
		t.Errorf("sending: %+v", l)
	}
	c.clientReads([]byte("head\n"))
	c.clientReads(content)
	expect[wire.Sent](g, 17)
	l = r.waitDoing("idle")
	if l.SentBytes != more+5 || l.AgeSeconds <= 0 {
		t.Errorf("idle again: %+v", l)
	}

	// What the kernel has and the client does not take is still being sent.
	g.send(17, 0, r.whole("big", ""))
	expect[wire.Sent](g, 17)
	if l = r.waitDoing("sending"); l.SentBytes != more+5+int64(len(r.big)) {
		t.Errorf("sent, and not taken: %+v", l)
	}
	r.recall()
	if l = r.waitDoing("draining"); l.UnackedBytes == 0 {
		t.Errorf("draining: %+v", l)
	}
	c.clientReads(r.big)
	m, _ := expect[wire.Handback](g, 17)
	r.waitDoing("returning")
	c.takeBack(m)
	g.send(17, 0, wire.Taken{})
	expect[wire.Released](g, 17)
	if v := r.leases(); len(v.Leases) != 0 || v.LeftOut != 0 {
		t.Errorf("given back: %+v", v)
	}
}

// TestLeaseCloses: a lease whose connection is being closed says so, as long as the client leaves it waiting.
func TestLeaseCloses(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	c := r.connect()
	if err := c.client.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	g.send(1, 0, c.freeze())
	expect[wire.Granted](g, 1)
	r.write("part", r.big[:48<<10]) // the kernel takes it at once, and the client does not
	g.send(1, 0, r.whole("part", ""), wire.Close{})
	expect[wire.Sent](g, 1)
	if l := r.waitDoing("closing"); l.UnackedBytes == 0 {
		t.Errorf("closing: %+v", l)
	}
	c.clientReads(r.big[:48<<10])
	c.clientEnds()
	expect[wire.Closed](g, 1)
	c.release()
}

// TestLeasesBounded: of many leases those are told of that have sent most.
func TestLeasesBounded(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	const n = maxListed + 3
	var all []*connection
	for id := uint32(1); id <= n; id++ {
		all = append(all, r.lease(g, id))
	}
	for id := uint32(n - 4); id <= n; id++ { // the last ones send most, each more than the one before
		ref := r.ref("big")
		size := int64(id) * 100
		g.send(id, 0, wire.Send{File: ref, Count: size})
		all[id-1].clientReads(r.big[:size])
		expect[wire.Sent](g, id)
	}
	v := r.leases()
	var ids []uint32
	for _, l := range v.Leases {
		ids = append(ids, l.ID)
	}
	want := []uint32{n, n - 1, n - 2, n - 3, n - 4}
	for id := uint32(1); len(want) < maxListed; id++ {
		want = append(want, id)
	}
	if diff := cmp.Diff(want, ids); diff != "" || v.LeftOut != 3 {
		t.Errorf("%d left out; %s", v.LeftOut, diff)
	}
}

// exposition is what GET /metrics answers.
type exposition map[string]*dto.MetricFamily

// parse reads the metrics and checks that their names are as Prometheus wants them.
func parse(tb testing.TB, text []byte) exposition {
	tb.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		tb.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "spillway_") {
			tb.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	return families
}

// value is that of a counter or gauge, or the number of observations. labels are names and values by turns.
func (e exposition) value(tb testing.TB, name string, labels ...string) float64 {
	tb.Helper()
	family := e["spillway_host_"+name]
	if family == nil {
		tb.Fatalf("there is no %s", name)
	}
	for _, m := range family.Metric {
		var got []string
		for _, l := range m.Label {
			got = append(got, l.GetName(), l.GetValue())
		}
		if slices.Equal(got, labels) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	tb.Fatalf("there is no %s with %v", name, labels)
	return 0
}

// TestMetrics: what a lease does is in the metrics, and they agree with the status.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	g := r.guest(0)
	before := parse(t, r.ask("/metrics"))
	for _, reason := range wire.Reasons() { // before anything was refused: else nobody sees the first one
		if n := before.value(t, "handovers_refused_total", "reason", reason.String(), "vm", "one"); n != 0 {
			t.Errorf("%v handovers refused for %v", n, reason)
		}
	}

	c := r.lease(g, 1)
	wait := c.clientReading(r.big[:4096])
	g.send(1, wire.FlagReturn, r.whole("small", ""))
	wait()
	expect[wire.Sent](g, 1)
	m, _ := expect[wire.Handback](g, 1)
	c.takeBack(m)
	g.send(1, 0, wire.Taken{})
	expect[wire.Released](g, 1)
	held := r.lease(g, 2)
	g.send(2, 0, wire.Send{File: wire.FileRef{Share: "media", Path: "none", Size: 1}, Count: 1})
	if sent, _ := expect[wire.Sent](g, 2); sent.Reason != wire.ReasonNotFound {
		t.Errorf("SENT %+v", sent)
	}
	foreign := r.connect()
	lie := foreign.freeze()
	lie.State.Local = netip.AddrPortFrom(r.cfg.VMs[1].Addresses[0], 80)
	g.send(3, 0, lie)
	expect[wire.Refused](g, 3)
	foreign.thaw()
	r.eventually("the release is timed", func() bool { return r.daemon.vms[0].counters.durations[stepRelease].Count() == 1 })

	got, s := parse(t, r.ask("/metrics")), r.status()
	for _, want := range []struct {
		name   string
		labels []string
		value  float64
	}{
		{"draining", nil, 0},
		{"sessions", []string{"vm", "one"}, 1},
		{"sessions", []string{"vm", "two"}, 0},
		{"leases", []string{"vm", "one"}, 1},
		{"max_leases", []string{"vm", "one"}, float64(r.cfg.VMs[0].MaxLeases)},
		{"sessions_started_total", []string{"vm", "one"}, 1},
		{"protocol_breaches_total", []string{"vm", "one"}, 0},
		{"received_frames_total", []string{"vm", "one"}, float64(s.Frames)},
		{"dropped_frames_total", []string{"vm", "one"}, 0},
		{"handovers_total", []string{"vm", "one"}, 2},
		{"handovers_total", []string{"vm", "two"}, 0},
		{"handbacks_total", []string{"vm", "one"}, 1},
		{"handbacks_kept_total", []string{"vm", "one"}, 0},
		{"sends_total", []string{"vm", "one"}, 2},
		{"sent_bytes_total", []string{"vm", "one"}, 4096},
		{"relayed_bytes_total", []string{"vm", "one"}, float64(s.RelayedBytes)},
		{"handovers_refused_total", []string{"reason", "address", "vm", "one"}, 1},
		{"requests_failed_total", []string{"reason", "not-found", "vm", "one"}, 1},
		{"leases_closed_total", []string{"reason", "client-gone", "vm", "one"}, 0},
		{"share_open_files", []string{"share", "media"}, 1},
		{"share_idle_files", []string{"share", "media"}, 1},
		{"share_opens_total", []string{"share", "media"}, 1},
		{"share_reuses_total", []string{"share", "media"}, 0},
		{"step_duration_seconds", []string{"step", "restore", "vm", "one"}, 2},
		{"step_duration_seconds", []string{"step", "send", "vm", "one"}, 1},
		{"step_duration_seconds", []string{"step", "drain", "vm", "one"}, 1},
		{"step_duration_seconds", []string{"step", "extract", "vm", "one"}, 1},
		{"step_duration_seconds", []string{"step", "release", "vm", "one"}, 1},
		{"step_duration_seconds", []string{"step", "restore", "vm", "two"}, 0},
	} {
		if v := got.value(t, want.name, want.labels...); v != want.value {
			t.Errorf("%s%v is %v, want %v", want.name, want.labels, v, want.value)
		}
	}
	if s.MaxLeases != r.cfg.VMs[0].MaxLeases {
		t.Errorf("status: at most %d leases", s.MaxLeases)
	}
	g.send(2, 0, wire.Close{})
	expect[wire.Closed](g, 2)
	held.release()
}

// TestMetricsAddress: whoever reaches the metrics' address reads metrics, and nothing else.
func TestMetricsAddress(t *testing.T) {
	const address = "127.0.0.1:9053"
	r := newRig(t, func(r *rig) { r.cfg.Metrics = address })
	ask := func(path string) (int, []byte) {
		return r.request(path, func(context.Context) (net.Conn, error) {
			return r.net.Host.Namespace.Dial(&net.Dialer{Timeout: patience}, "tcp4", address)
		})
	}
	status, body := ask("/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	if n := parse(t, body).value(t, "sessions", "vm", "two"); n != 0 {
		t.Errorf("%v sessions", n)
	}
	for _, path := range []string{"/", "/status", "/leases", "/recall"} {
		if status, _ := ask(path); status != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, status)
		}
	}

	// A second daemon cannot have the address, says so, and leaves nothing: the rig looks for its redirect and sockets.
	r.stop()
	<-r.done
	taken := r.net.Host.Listen(t, "tcp4", address)
	second, err := newDaemon(r.cfg, r.logger(), r.environment())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); err == nil || !strings.HasPrefix(err.Error(), "metrics: ") || !strings.Contains(err.Error(), address) {
		t.Errorf("address in use: %v", err)
	}
	taken.Close()
}
