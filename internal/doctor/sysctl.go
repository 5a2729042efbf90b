package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysctl reads an integer of /proc/sys. That it does not exist is fs.ErrNotExist.
func (e Env) sysctl(path string) (int, error) {
	text, err := e.proc("sys/" + path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", path, err)
	}
	return n, nil
}

// checkSrcValidMark: with src_valid_mark the reverse path filter looks the source up with the packet's mark, finds it in
// the redirect's table, where every address is local, and drops the packet. wg-quick sets it.
func checkSrcValidMark(_ context.Context, env Env) Result {
	entries, err := os.ReadDir(filepath.Join(env.ProcRoot, "sys/net/ipv4/conf"))
	if err != nil {
		return unreadable(err)
	}
	allMark, allFilter, err := env.sourceValidation("all")
	if err != nil {
		return unreadable(err)
	}
	var broken []string
	future := false
	for _, entry := range entries {
		iface := entry.Name()
		if iface == "all" || iface == "lo" { // lo is not filtered (fib_validate_source)
			continue
		}
		mark, filter, err := env.sourceValidation(iface)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the interface went away
		}
		if err != nil {
			return unreadable(err)
		}
		// The kernel takes "or" of the marks and the greater filter of all and the interface (include/linux/inetdevice.h).
		if allMark|mark == 0 || max(allFilter, filter) == 0 {
			continue
		}
		if iface == "default" {
			future = true
			continue
		}
		broken = append(broken, iface)
	}
	const hint = "run `for c in all default %s; do sysctl -w net.ipv4.conf.$c.src_valid_mark=0; done`; wg-quick sets it again: give its interface `Table = off`"
	switch {
	case len(broken) > 0:
		return Result{
			Status: Fail, Hint: fmt.Sprintf(hint, strings.Join(broken, " ")),
			Detail: fmt.Sprintf("src_valid_mark=1 with rp_filter on drops leased connections' packets on %s", strings.Join(broken, ", ")),
		}
	case future:
		return Result{
			Status: Warn, Hint: "run `sysctl -w net.ipv4.conf.default.src_valid_mark=0`",
			Detail: "src_valid_mark=1 with rp_filter on is the default of interfaces made from now on",
		}
	}
	return Result{Status: OK, Detail: "no interface has src_valid_mark=1 together with rp_filter"}
}

// sourceValidation returns src_valid_mark and rp_filter of one directory of net.ipv4.conf.
func (e Env) sourceValidation(iface string) (mark, filter int, err error) {
	mark, err = e.sysctl("net/ipv4/conf/" + iface + "/src_valid_mark")
	if err != nil {
		return 0, 0, err
	}
	filter, err = e.sysctl("net/ipv4/conf/" + iface + "/rp_filter")
	return mark, filter, err
}

func checkForward4(_ context.Context, env Env) Result {
	on, err := env.sysctl("net/ipv4/ip_forward")
	switch {
	case err != nil:
		return unreadable(err)
	case on == 0:
		return Result{
			Status: Fail, Detail: "net.ipv4.ip_forward is 0: no client reaches a VM",
			Hint: "run `sysctl -w net.ipv4.ip_forward=1`, and put it into /etc/sysctl.d/ to keep it",
		}
	}
	return Result{Status: OK, Detail: "net.ipv4.ip_forward is on"}
}

func checkForward6(_ context.Context, env Env) Result {
	on, err := env.sysctl("net/ipv6/conf/all/forwarding")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Status: Skip, Detail: "this kernel has no IPv6"}
	case err != nil:
		return unreadable(err)
	case on == 0:
		return Result{
			Status: Warn, Detail: "net.ipv6.conf.all.forwarding is 0: no IPv6 client reaches a VM",
			Hint: "run `sysctl -w net.ipv6.conf.all.forwarding=1` if VMs have IPv6 addresses (it stops the host from taking router advertisements unless accept_ra is 2)",
		}
	}
	return Result{Status: OK, Detail: "net.ipv6.conf.all.forwarding is on"}
}

func checkTimestamps(_ context.Context, env Env) Result {
	mode, err := env.sysctl("net/ipv4/tcp_timestamps")
	switch {
	case err != nil:
		return unreadable(err)
	case mode == 0:
		return Result{
			Status: Warn, Detail: "net.ipv4.tcp_timestamps is 0: old duplicates are not told from new data, and round trips are measured worse",
			Hint: "run `sysctl -w net.ipv4.tcp_timestamps=1`",
		}
	}
	return Result{Status: OK, Detail: fmt.Sprintf("net.ipv4.tcp_timestamps is %d", mode)}
}

// checkFwmarkReflect: the kernel's own answers (the last ACK of a TIME_WAIT connection, a reset) would carry the redirect's
// mark, be routed by it to lo, and never leave.
func checkFwmarkReflect(_ context.Context, env Env) Result {
	for _, family := range []string{"ipv4", "ipv6"} {
		path := "net/" + family + "/fwmark_reflect"
		on, err := env.sysctl(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return unreadable(err)
		case on != 0:
			name := strings.ReplaceAll(path, "/", ".")
			return Result{
				Status: Warn, Detail: name + " is 1: the kernel's last ACKs of leased connections are routed to lo",
				Hint: "run `sysctl -w " + name + "=0`",
			}
		}
	}
	return Result{Status: OK, Detail: "fwmark_reflect is off"}
}

// checkConntrack: bytes of a lease bypass the guest's view of the flow, and conntrack's window tracking with them. With
// tcp_loose it picks the flow up again.
func checkConntrack(_ context.Context, env Env) Result {
	loose, err := env.sysctl("net/netfilter/nf_conntrack_tcp_loose")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Status: OK, Detail: "conntrack is not loaded"}
	case err != nil:
		return unreadable(err)
	case loose == 0:
		return Result{
			Status: Warn, Detail: "nf_conntrack_tcp_loose is 0: a firewall with `ct state invalid drop` may drop a connection that is handed back",
			Hint: "run `sysctl -w net.netfilter.nf_conntrack_tcp_loose=1`, or let VMs' flows pass without tracking (`notrack`)",
		}
	}
	return Result{Status: OK, Detail: "nf_conntrack_tcp_loose is on"}
}

func checkMPTCP(_ context.Context, env Env) Result {
	on, err := env.sysctl("net/mptcp/enabled")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Status: OK, Detail: "this kernel has no MPTCP: every connection may be handed over"}
	case err != nil:
		return unreadable(err)
	case on != 0:
		return Result{Status: OK, Detail: "net.mptcp.enabled is 1: spillway's own listeners do not offer it; MPTCP connections of others are served without a handover"}
	}
	return Result{Status: OK, Detail: "net.mptcp.enabled is 0"}
}
