package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"spillway/internal/host"
)

// tellSystemd tells systemd, if that has started this process as Type=notify, when the daemon serves, when it begins to stop, and, with WatchdogSec=,
// as long as it is alive: when its state can be had, for which it takes the locks that a stuck daemon would not give. stop ends it.
func tellSystemd(ctx context.Context, d *host.Daemon, log *slog.Logger) (stop func()) {
	timeout, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "error", err)
	}
	over := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		select {
		case <-d.Ready():
			notify(log, daemon.SdNotifyReady)
		case <-over:
			return
		}
		var tick <-chan time.Time
		if timeout > 0 {
			ticker := time.NewTicker(timeout / 3) // sd_watchdog_enabled(3) recommends a half: one may come late
			defer ticker.Stop()
			tick = ticker.C
		}
		stopping := ctx.Done()
		for {
			select {
			case <-tick:
				d.Status()
				notify(log, daemon.SdNotifyWatchdog)
			case <-stopping:
				notify(log, daemon.SdNotifyStopping)
				stopping = nil
			case <-over:
				return
			}
		}
	})
	return func() { close(over); telling.Wait() }
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}
