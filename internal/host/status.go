package host

import (
	"time"

	"spillway/internal/cache"
)

// Status is what the daemon knows of itself. Its JSON form is an interface for scripts: fields are added, never renamed.
type Status struct {
	UptimeSeconds float64       `json:"uptime_s"`
	Draining      bool          `json:"draining"`
	VMs           []VMStatus    `json:"vms"`
	Shares        []ShareStatus `json:"shares"`
}

// VMStatus is the state of one VM and its counts since the daemon's start. Maps are by the name of a wire.Reason.
type VMStatus struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"` // live now
	Leases   int    `json:"leases"`   // live now

	MaxLeases int `json:"max_leases"` // that it may have

	SessionsTotal uint64            `json:"sessions_total"`
	Breaches      uint64            `json:"breaches_total"`
	Frames        uint64            `json:"frames_total"`
	Dropped       uint64            `json:"dropped_frames_total"`
	Handovers     uint64            `json:"handovers_total"`
	Handbacks     uint64            `json:"handbacks_total"`
	Keeps         uint64            `json:"keeps_total"` // handbacks called off: the host has kept the connection
	Sends         uint64            `json:"sends_total"`
	SentBytes     uint64            `json:"sent_bytes_total"`    // of files
	RelayedBytes  uint64            `json:"relayed_bytes_total"` // through the channel, both directions
	Refused       map[string]uint64 `json:"refused_total"`       // HANDOVER
	Failed        map[string]uint64 `json:"failed_total"`        // SEND, STAT and READ
	Closed        map[string]uint64 `json:"closed_total"`        // leases that ended otherwise than by handback
}

// ShareStatus is the state of one share.
type ShareStatus struct {
	Name      string `json:"name"`
	OpenFiles int    `json:"open_files"`
	IdleFiles int    `json:"idle_files"`
	Opens     uint64 `json:"opens_total"`
	Reuses    uint64 `json:"reuses_total"`

	Cache *cache.Stats `json:"cache,omitempty"` // of a share of kind cache
}

// Status returns the present state.
func (d *Daemon) Status() Status {
	s := Status{UptimeSeconds: time.Since(d.started).Seconds(), Draining: d.draining.Load()}
	for _, v := range d.vms {
		s.VMs = append(s.VMs, v.status())
	}
	for _, c := range d.cfg.Shares {
		st := d.shares[c.Name].stats()
		status := ShareStatus{Name: c.Name, OpenFiles: st.Open, IdleFiles: st.Idle, Opens: st.Opens, Reuses: st.Reuses}
		if f, ok := d.shares[c.Name].(cacheFiles); ok {
			kept := f.Stats()
			status.Cache = &kept
		}
		s.Shares = append(s.Shares, status)
	}
	return s
}

func (v *vm) status() VMStatus {
	c := &v.counters
	s := VMStatus{
		Name:          v.name,
		MaxLeases:     v.maxLeases,
		SessionsTotal: c.sessions.Load(),
		Breaches:      c.breaches.Load(),
		Frames:        c.frames.Load(),
		Dropped:       c.dropped.Load(),
		Handovers:     c.handovers.Load(),
		Handbacks:     c.handbacks.Load(),
		Keeps:         c.keeps.Load(),
		Sends:         c.sends.Load(),
		SentBytes:     c.bytes.Load(),
		RelayedBytes:  c.relayed.Load(),
		Refused:       byReason(&c.refused),
		Failed:        byReason(&c.failed),
		Closed:        byReason(&c.closed),
	}
	v.mu.Lock()
	s.Sessions, s.Leases = len(v.handlers), len(v.leases)
	v.mu.Unlock()
	return s
}
