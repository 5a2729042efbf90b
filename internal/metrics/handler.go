package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes is how many answers are made at a time: a Prometheus or two, and a person with curl. More are told to come again.
const maxScrapes = 4

// Handler answers GET /metrics with what c collects, and with what the library knows of the process and the Go runtime (process_…, go_…).
func Handler(c prometheus.Collector) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// Counter returns a counter's value.
func Counter(desc *prometheus.Desc, n uint64, labelValues ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labelValues...)
}

// Gauge returns a gauge's value.
func Gauge(desc *prometheus.Desc, n float64, labelValues ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, n, labelValues...)
}

// Flag returns 1 for true and 0 for false.
func Flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
