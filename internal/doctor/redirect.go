package doctor

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"spillway/internal/redirect"
)

// checkRedirect judges what is installed in this network namespace.
func checkRedirect(_ context.Context, env Env) Result {
	st, err := env.redirectCheck(env.Redirect)
	if err != nil {
		r := Result{Status: Fail, Detail: err.Error(), Hint: "check that nftables works: `nft list ruleset`; then the [redirect] section of the configuration"}
		if errors.Is(err, fs.ErrPermission) {
			r.Status, r.Hint = Warn, "run the doctor as root"
		}
		return r
	}
	ipv6 := ""
	if st.IPv6Off != nil {
		ipv6 = "; IPv4 only: " + st.IPv6Off.Error()
	}
	switch {
	case len(st.Collisions) > 0:
		c := st.Collisions[0]
		return Result{
			Status: Fail, Detail: c.Error(),
			Hint: "set another " + c.Option + " in the [redirect] section of the configuration, or remove what `" + c.Found + "` shows",
		}
	case st.Held && st.Complete():
		return Result{Status: OK, Detail: "installed and held by a running process" + ipv6}
	case st.Held:
		return Result{
			Status: Fail, Detail: "a running process holds the redirect, but somebody removed or changed: " + strings.Join(partNames(st, false), ", "),
			Hint: "restart `spillway host`; with systemd-networkd set ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no in networkd.conf first",
		}
	case st.Stale():
		return Result{
			Status: Warn, Detail: "left by a process that was killed: " + strings.Join(partNames(st, true), ", "),
			Hint: "start `spillway host`, which takes it over, or remove it: `" + strings.Join(removeCommands(st), "; ") + "`",
		}
	}
	return Result{Status: OK, Detail: "not installed: no `spillway host` runs here" + ipv6}
}

// partNames lists the parts that are there, or those that are not as they should be.
func partNames(st redirect.Status, present bool) (names []string) {
	for _, p := range st.Parts {
		if present && p.State != redirect.Missing || !present && p.State != redirect.Installed {
			names = append(names, p.Name)
		}
	}
	return names
}

func removeCommands(st redirect.Status) (commands []string) {
	for _, p := range st.Parts {
		if p.State != redirect.Missing {
			commands = append(commands, p.Remove)
		}
	}
	return commands
}
