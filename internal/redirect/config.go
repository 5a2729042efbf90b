package redirect

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Protocol is the number that our policy rules and routes carry in their protocol field, by which they are told from an
// operator's. No routing daemon uses it: see RTPROT_* in include/uapi/linux/rtnetlink.h.
const Protocol = 83

// Defaults of [Config]. The mark keeps clear of the bits that kube-proxy (0x4000, 0x8000), Cilium (0xf00) and Tailscale
// (0xff0000) use; the priority lies after the local table (0) and before every VPN's rules and the main table (32766).
const (
	DefaultTable        = "spillway"
	DefaultMark         = 0x53
	DefaultRouteTable   = 5383
	DefaultRulePriority = 83
)

const (
	maxTableName    = 64    // bytes; NFT_NAME_MAXLEN is 256, but sun_path (108) must hold the lock's name
	maxRulePriority = 32765 // the main table's rule is 32766 (net/ipv4/fib_rules.c)
)

// Config says which names and numbers the redirect uses. The zero value of a field stands for its default.
type Config struct {
	Table        string // name of the nftables table, family inet
	Mark         uint32 // firewall mark of redirected packets
	RouteTable   int    // routing table that delivers them locally
	RulePriority int    // preference of the policy rules; lower goes first
}

// WithDefaults returns the configuration with every zero field set to its default.
func (c Config) WithDefaults() Config {
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.RouteTable == 0 {
		c.RouteTable = DefaultRouteTable
	}
	if c.RulePriority == 0 {
		c.RulePriority = DefaultRulePriority
	}
	return c
}

// Validate reports every value that the kernel would refuse or that would break the host's own routing.
func (c Config) Validate() error {
	c = c.WithDefaults()
	var errs []error
	if len(c.Table) > maxTableName || strings.ContainsFunc(c.Table, func(r rune) bool { return !nameRune(r) }) {
		errs = append(errs, fmt.Errorf("redirect table %q: use at most %d letters, digits, '_', '-' or '.'", c.Table, maxTableName))
	}
	switch {
	case c.RouteTable < 0, int64(c.RouteTable) > 1<<31-1:
		errs = append(errs, fmt.Errorf("redirect route table %d: use 1 to %d", c.RouteTable, 1<<31-1))
	case c.RouteTable >= unix.RT_TABLE_DEFAULT && c.RouteTable <= unix.RT_TABLE_LOCAL:
		errs = append(errs, fmt.Errorf("redirect route table %d: 253 to 255 belong to the kernel, use another number", c.RouteTable))
	}
	if c.RulePriority < 1 || c.RulePriority > maxRulePriority {
		errs = append(errs, fmt.Errorf("redirect rule priority %d: use 1 to %d, it must go before the main table", c.RulePriority, maxRulePriority))
	}
	return errors.Join(errs...)
}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.", r)
}
