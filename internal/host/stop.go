package host

import (
	"errors"
	"time"

	"spillway/internal/wire"
)

// drainPoll is how often a stopping daemon looks whether all leases have ended.
const drainPoll = 5 * time.Millisecond

// drain tells the guests that the daemon stops, calls all connections back, and waits until there is no lease any more or the limit is
// reached.
func (d *Daemon) drain() {
	d.draining.Store(true)
	leases := 0
	for _, v := range d.vms {
		v.eachHandler(func(h *handler) { h.desk.drain(0) })
		leases += v.eachLease((*leaseConn).callBack)
	}
	limit := time.Now().Add(d.cfg.Limits.DrainTimeout.Value())
	d.log.Info("host daemon drains", "leases", leases)
	for d.active.Load() > 0 && time.Now().Before(limit) {
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
