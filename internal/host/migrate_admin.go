package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// maxDescription bounds what another host may say of a VM, bytes.
const maxDescription = 4 << 20

// serveMigration adds the steps of a migration, each for the VM of the query's vm:
//
//	GET  /vm                      a Description as JSON
//	POST /admit                   takes another host's Description and answers {"problems": […]}
//	POST /hold?timeout=2s         Hold; answers a Held as JSON
//	POST /expect[?peer=A]         Expect
//	POST /halt?timeout=3s&peer=A  Halt; answers a Halted as JSON. Status 501: the leases have to be recalled
//	POST /export                  Export; answers a Carried as JSON
//	POST /import                  Import of a Carried
//	POST /silent                  Silent
//	POST /commit?peer=A           Commit
//	POST /leave?peer=A            Leave
//	POST /resume[?moved=true]     undoes all this; see Resume
//	POST /arrive?peer=A[&peer=B]  this host has the VM's addresses; A and B are the other host's, one of each family
//	POST /depart?peer=A[&peer=B]  it has them no more
func (d *Daemon) serveMigration(mux *http.ServeMux) {
	handle := func(pattern string, step func(r *http.Request, vm string) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := step(r, r.URL.Query().Get("vm"))
			switch {
			case errors.Is(err, errUnknownVM):
				http.Error(w, err.Error(), http.StatusNotFound)
			case errors.Is(err, ErrNoCarry):
				http.Error(w, err.Error(), http.StatusNotImplemented)
			case errors.Is(err, errRequest):
				http.Error(w, err.Error(), http.StatusBadRequest)
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			default:
				answerJSON(w, answer)
			}
		})
	}
	done := struct{}{}
	handle("GET /vm", func(_ *http.Request, vm string) (any, error) { return d.Describe(vm) })
	handle("POST /admit", func(r *http.Request, vm string) (any, error) {
		var other Description
		if err := json.NewDecoder(io.LimitReader(r.Body, maxDescription)).Decode(&other); err != nil {
			return nil, fmt.Errorf("%w: %w", errRequest, err)
		}
		other.Name = vm
		problems, err := d.Admit(r.Context(), other)
		return map[string][]string{"problems": append([]string{}, problems...)}, err
	})
	handle("POST /hold", func(r *http.Request, vm string) (any, error) {
		timeout, err := timeoutOf(r)
		if err != nil {
			return nil, err
		}
		return d.Hold(r.Context(), vm, timeout)
	})
	handle("POST /expect", func(r *http.Request, vm string) (any, error) {
		peers, err := peersOf(r)
		if err != nil && r.URL.Query().Has("peer") {
			return nil, err
		}
		return done, d.Expect(vm, peers)
	})
	handle("POST /halt", func(r *http.Request, vm string) (any, error) {
		timeout, err := timeoutOf(r)
		if err != nil {
			return nil, err
		}
		peers, err := peersOf(r)
		if err != nil {
			return nil, err
		}
		return d.Halt(r.Context(), vm, peers, timeout)
	})
	handle("POST /export", func(_ *http.Request, vm string) (any, error) { return d.Export(vm) })
	handle("POST /import", func(r *http.Request, vm string) (any, error) {
		var in Carried
		if err := json.NewDecoder(io.LimitReader(r.Body, maxCarried)).Decode(&in); err != nil {
			return nil, fmt.Errorf("%w: %w", errRequest, err)
		}
		return done, d.Import(r.Context(), vm, &in)
	})
	handle("POST /silent", func(_ *http.Request, vm string) (any, error) { return done, d.Silent(vm) })
	for step, f := range map[string]func(string, []netip.Addr) error{"commit": d.Commit, "leave": d.Leave} {
		handle("POST /"+step, func(r *http.Request, vm string) (any, error) {
			peers, err := peersOf(r)
			if err != nil {
				return nil, err
			}
			return done, f(vm, peers)
		})
	}
	handle("POST /resume", func(r *http.Request, vm string) (any, error) {
		return done, d.Resume(vm, r.URL.Query().Get("moved") == "true")
	})
	handle("POST /arrive", func(r *http.Request, vm string) (any, error) {
		peers, err := peersOf(r)
		if err != nil {
			return nil, err
		}
		return done, d.Arrive(vm, peers)
	})
	handle("POST /depart", func(r *http.Request, vm string) (any, error) {
		peers, err := peersOf(r)
		if err != nil {
			return nil, err
		}
		return done, d.Depart(vm, peers)
	})
}

var errRequest = errors.New("this request cannot be understood")

// timeoutOf reads how long clients have.
func timeoutOf(r *http.Request) (timeout time.Duration, err error) {
	s := r.URL.Query().Get("timeout")
	if s == "" {
		return maxHoldTimeout / 2, nil
	}
	if timeout, err = time.ParseDuration(s); err != nil || timeout <= 0 || timeout > maxHoldTimeout {
		return 0, fmt.Errorf("%w: timeout=%s: write a time of at most %v, as 2s", errRequest, s, maxHoldTimeout)
	}
	return timeout, nil
}

// peersOf reads the other host's addresses.
func peersOf(r *http.Request) (peers []netip.Addr, err error) {
	for _, s := range r.URL.Query()["peer"] {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%w: peer: %w", errRequest, err)
		}
		peers = append(peers, a)
	}
	if len(peers) == 0 {
		return nil, fmt.Errorf("%w: name the other host's addresses with peer=", errRequest)
	}
	return peers, nil
}
