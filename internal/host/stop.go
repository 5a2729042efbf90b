package host

import (
	"errors"
	"time"

	"spillway/internal/wire"
)

// drainNotice is how long a stopping daemon listens at least, if there is anybody: a HANDOVER may be on its way that crosses with DRAIN. Refused, it costs its
// client nothing; unheard, it costs the connection. Much longer than a guest takes from its decision to the frame, under TCG too.
const drainNotice = 100 * time.Millisecond

// drainPoll is how often a stopping daemon looks whether all leases have ended.
const drainPoll = 5 * time.Millisecond

// drain tells the guests that the daemon stops, calls all connections back, and waits until there is no lease any more, nor one on its way, or the
// limit is reached.
func (d *Daemon) drain() {
	d.draining.Store(true)
	leases, guests := 0, 0
	for _, v := range d.vms {
		v.endArrival(nil)
		v.giveUpCarriage()
		guests += v.eachHandler(func(h *handler) { h.desk.drain(0) })
		leases += v.eachLease((*leaseConn).callBack)
	}
	began := time.Now()
	limit := began.Add(d.cfg.Limits.DrainTimeout.Value())
	d.log.Info("host daemon drains", "leases", leases)
	for (d.active.Load() > 0 || guests > 0 && time.Since(began) < drainNotice) && time.Now().Before(limit) {
		time.Sleep(drainPoll)
	}
}

// stopLeases ends the leases that the drain has left. Their sessions are over, so that no new one comes.
func (d *Daemon) stopLeases() {
	left := 0
	for _, v := range d.vms {
		left += v.eachLease(func(l *leaseConn) { l.stop(wire.ReasonDraining) })
	}
	if left > 0 {
		d.log.Warn("closed connections that did not end in time", "leases", left)
	}
}

// Recall asks for all connections of a VM to be given back, those in the middle of a file too, or those of all VMs if the name is empty. It returns
// how many leases were asked, without waiting for them.
func (d *Daemon) Recall(vmName string) (leases int, err error) {
	known := vmName == ""
	for _, v := range d.vms {
		if vmName == "" || v.name == vmName {
			known = true
			leases += v.eachLease((*leaseConn).callBack)
		}
	}
	if !known {
		return 0, errUnknownVM
	}
	return leases, nil
}

var errUnknownVM = errors.New("there is no VM of this name in the configuration")
