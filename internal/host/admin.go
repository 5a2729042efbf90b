package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"spillway/internal/channel"
	"spillway/internal/metrics"
)

// adminMode lets only the daemon's own user speak to the admin socket: a recall is not for everybody.
const adminMode = 0o600

// adminTimeout bounds a client of the admin socket, or of the metrics.
const adminTimeout = 10 * time.Second

// AdminHandler serves the daemon's state and orders:
//
//	GET  /status           a Status as JSON
//	GET  /leases           Leases as JSON
//	GET  /metrics          the same numbers as /status for Prometheus, and how long things take
//	POST /recall?vm=NAME   calls a VM's connections back, those of all VMs without a name
//
// and the steps of a migration (serveMigration).
func (d *Daemon) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, d.Status()) })
	mux.HandleFunc("GET /leases", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, d.Leases()) })
	mux.Handle("GET /metrics", metrics.Handler(collector{d}))
	mux.HandleFunc("POST /recall", func(w http.ResponseWriter, r *http.Request) {
		leases, err := d.Recall(r.URL.Query().Get("vm"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		answerJSON(w, map[string]int{"leases": leases})
	})
	d.serveMigration(mux)
	d.serveCaches(mux)
	return mux
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone, and there is nobody to tell
}

// metricsHandler serves what everybody may know who reaches the metrics' address, and nothing else.
func (d *Daemon) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler(collector{d}))
	return mux
}

// operators are the servers for those who look after the daemon.
type operators struct {
	log     *slog.Logger
	running []*http.Server
	done    sync.WaitGroup
}

// serveOperators serves AdminHandler at the configured socket and the metrics at the configured address, where there are such.
func (d *Daemon) serveOperators() (*operators, error) {
	o := &operators{log: d.log}
	if d.cfg.Metrics != "" {
		var l net.Listener
		err := d.env.do(func() (err error) {
			l, err = net.Listen("tcp", d.cfg.Metrics)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		o.serve(l, d.metricsHandler())
	}
	if d.cfg.Admin != "" {
		l, err := channel.ListenSocketFile(d.cfg.Admin, adminMode, channel.NoGroup)
		if err != nil {
			o.close()
			return nil, fmt.Errorf("admin socket %s: %w; another daemon needs another one, see admin in the configuration", d.cfg.Admin, err)
		}
		o.serve(l, d.AdminHandler())
	}
	return o, nil
}

func (o *operators) serve(l net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, ReadTimeout: adminTimeout, WriteTimeout: adminTimeout}
	o.running = append(o.running, s)
	o.done.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.log.Error("status and metrics are not served any more", "address", l.Addr().String(), "error", err)
		}
	})
}

func (o *operators) close() {
	for _, s := range o.running {
		_ = s.Close() // and removes the admin socket's file
	}
	o.done.Wait()
}
