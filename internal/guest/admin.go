package guest

import (
	"encoding/json"
	"net/http"

	"spillway/internal/metrics"
)

// AdminHandler serves the agent's counters:
//
//	GET  /stats        a Snapshot as JSON
//	GET  /metrics      the same counters for Prometheus, and how long things take
//	POST /stats/reset  sets the counters to zero
func (a *Agent) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.Snapshot()) // a client that went away has no use for the error
	})
	mux.Handle("GET /metrics", metrics.Handler(collector{a}))
	mux.HandleFunc("POST /stats/reset", func(w http.ResponseWriter, _ *http.Request) {
		a.stats.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
