package guest

import (
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutCapabilities runs f on a thread that has none.
func withoutCapabilities(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread without capabilities ends with this goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// TestAgentWithoutRights: a server that was meant to offload and cannot says at its start what it lacks; one that was not needs nothing.
func TestAgentWithoutRights(t *testing.T) {
	if text, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err != nil || strings.TrimSpace(string(text)) == "0" {
		t.Skipf("this kernel lets everybody load socket filters: kernel.unprivileged_bpf_disabled is %q, %v", text, err)
	}
	log := slog.New(slog.DiscardHandler)
	err := withoutCapabilities(t, func() error {
		a, err := NewAgent(Options{Policy: Policy{Mode: Lease}, Logger: log})
		if err == nil {
			a.Close()
		}
		return err
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("the error is %v, want one of permission", err)
	}
	for _, want := range []string{"CAP_BPF", "LimitMEMLOCK", "spillway doctor guest", "mode off"} {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	err = withoutCapabilities(t, func() error {
		a, err := NewAgent(Options{Policy: Policy{Mode: Off}, Logger: log})
		if err != nil {
			return err
		}
		return a.Close()
	})
	if err != nil {
		t.Errorf("mode off: %v", err)
	}
}
