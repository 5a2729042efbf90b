package redirect

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopbackIndex is the index of lo in every network namespace: LOOPBACK_IFINDEX, include/net/flow.h.
const loopbackIndex = 1

// dumpAttempts bounds how often a dump is repeated that a concurrent change interrupted (NLM_F_DUMP_INTR).
const dumpAttempts = 10

// family is IPv4 or IPv6 with the words that ip(8) has for it.
type family struct {
	af    int
	ip    string // the command that shows it
	any   string // the default prefix
	bytes int    // of an address
}

// families returns both, IPv4 first: IPv6 may be off, IPv4 may not.
func families() []family {
	return []family{
		{af: unix.AF_INET, ip: "ip", any: "0.0.0.0/0", bytes: net.IPv4len},
		{af: unix.AF_INET6, ip: "ip -6", any: "::/0", bytes: net.IPv6len},
	}
}

func (f family) rule(cfg Config) *netlink.Rule {
	r := netlink.NewRule()
	mask := ^uint32(0)
	r.Family, r.Priority, r.Table, r.Mark, r.Mask, r.Protocol = f.af, cfg.RulePriority, cfg.RouteTable, cfg.Mark, &mask, Protocol
	return r
}

func (f family) route(cfg Config) *netlink.Route {
	return &netlink.Route{
		Family: f.af, LinkIndex: loopbackIndex, Table: cfg.RouteTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Protocol: Protocol, Dst: &net.IPNet{IP: make(net.IP, f.bytes), Mask: make(net.IPMask, f.bytes)},
	}
}

func (f family) ruleString(r *netlink.Rule) string {
	s := fmt.Sprintf("%s rule pref %d", f.ip, r.Priority)
	if r.Invert {
		s += " not"
	}
	if r.Mask != nil && *r.Mask != ^uint32(0) {
		s += fmt.Sprintf(" fwmark %#x/%#x", r.Mark, *r.Mask)
	} else if r.Mark != 0 {
		s += fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	return s + fmt.Sprintf(" lookup %d", r.Table)
}

func (f family) routeString(cfg Config) string {
	return fmt.Sprintf("%s route local %s dev lo table %d", f.ip, f.any, cfg.RouteTable)
}

// familyOff reports whether an error says that the address family is not there: compiled out or ipv6.disable=1
// (EAFNOSUPPORT, EOPNOTSUPP), or switched off on lo by the sysctl disable_ipv6 (EACCES, ip6_route_info_create).
func familyOff(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
}

// dump repeats a listing until no change interrupted it.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for range dumpAttempts - 1 {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return list()
}

// found is what the kernel holds of one family: our rules and routes, and what stands in their way.
type found struct {
	rules       []netlink.Rule  // ours: with this mark or routing table, or with a mark of an earlier run
	routes      []netlink.Route // ours, in the routing tables of those rules and in the configured one
	ruleCurrent bool            // exactly one rule and it is as configured
	routeOK     bool            // exactly one route and it is as configured
	collisions  []*CollisionError
}

// inspect lists one family. staleMarks are marks of an earlier run with another configuration.
func (f family) inspect(h *netlink.Handle, cfg Config, staleMarks []uint32) (found, error) {
	var out found
	rules, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(f.af) })
	if err != nil {
		return out, fmt.Errorf("list rules: %w", err)
	}
	tables := []int{cfg.RouteTable}
	for _, r := range rules {
		if c := f.collision(&r, cfg); c != nil {
			out.collisions = append(out.collisions, c)
		}
		if r.Protocol == Protocol && (r.Mark == cfg.Mark || r.Table == cfg.RouteTable || slices.Contains(staleMarks, r.Mark)) {
			out.rules = append(out.rules, r)
			if !slices.Contains(tables, r.Table) {
				tables = append(tables, r.Table)
			}
		}
	}
	for _, table := range tables {
		if err := f.inspectTable(h, cfg, table, &out); err != nil {
			return out, err
		}
	}
	out.ruleCurrent = len(out.rules) == 1 && isRule(&out.rules[0], cfg)
	out.routeOK = len(out.routes) == 1 && isRoute(&out.routes[0], cfg)
	return out, nil
}

func (f family) inspectTable(h *netlink.Handle, cfg Config, table int, out *found) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(f.af, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", table, err)
	}
	for _, r := range routes {
		switch {
		case r.Protocol == Protocol:
			out.routes = append(out.routes, r)
		case table == cfg.RouteTable:
			out.collisions = append(out.collisions, &CollisionError{
				Option: "route_table", Value: fmt.Sprint(table),
				Found: fmt.Sprintf("%s route show table %d: %v proto %d", f.ip, table, r.Dst, r.Protocol),
			})
		}
	}
	return nil
}

// collision returns what a foreign rule and our configuration would do to each other, nil when nothing. An inverted rule
// (`not fwmark`, wg-quick's) is none: it means all traffic, and ours goes before it.
func (f family) collision(r *netlink.Rule, cfg Config) *CollisionError {
	switch {
	case r.Protocol == Protocol:
		return nil
	case r.Table == cfg.RouteTable:
		return &CollisionError{Option: "route_table", Value: fmt.Sprint(cfg.RouteTable), Found: f.ruleString(r)}
	case !r.Invert && r.Mask != nil && *r.Mask != 0 && cfg.Mark&*r.Mask == r.Mark:
		return &CollisionError{Option: "mark", Value: fmt.Sprintf("%#x", cfg.Mark), Found: f.ruleString(r)}
	}
	return nil
}

func isRule(r *netlink.Rule, cfg Config) bool {
	return r.Protocol == Protocol && r.Priority == cfg.RulePriority && r.Table == cfg.RouteTable && r.Mark == cfg.Mark &&
		r.Mask != nil && *r.Mask == ^uint32(0) && !r.Invert && r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == ""
}

func isRoute(r *netlink.Route, cfg Config) bool {
	ones := 0
	if r.Dst != nil { // some kernels and library versions leave the default prefix out
		ones, _ = r.Dst.Mask.Size()
	}
	return r.Protocol == Protocol && r.Table == cfg.RouteTable && r.Type == unix.RTN_LOCAL && r.LinkIndex == loopbackIndex && ones == 0
}

// install brings one family to the configured state: what is right stays, what is stale goes, what is missing comes.
// The route comes before the rule, so that no marked packet ever finds an empty table.
func (f family) install(h *netlink.Handle, cfg Config, have found) error {
	if !have.routeOK {
		if err := f.deleteRoutes(h, have.routes); err != nil {
			return err
		}
		if err := h.RouteReplace(f.route(cfg)); err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				err = fmt.Errorf("lo is down, run `ip link set lo up`: %w", err)
			}
			return fmt.Errorf("%s: %w", f.routeString(cfg), err)
		}
	}
	if have.ruleCurrent {
		return nil
	}
	if err := f.deleteRules(h, have.rules); err != nil {
		return err
	}
	if err := h.RuleAdd(f.rule(cfg)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", f.ruleString(f.rule(cfg)), err)
	}
	return nil
}

// remove deletes rules and routes that inspect found to be ours. The rules go first: see install.
func (f family) remove(h *netlink.Handle, have found) error {
	return errors.Join(f.deleteRules(h, have.rules), f.deleteRoutes(h, have.routes))
}

func (f family) deleteRules(h *netlink.Handle, rules []netlink.Rule) error {
	var errs []error
	for _, r := range rules {
		if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("%s: %w", f.ruleString(&r), err))
		}
	}
	return errors.Join(errs...)
}

func (f family) deleteRoutes(h *netlink.Handle, routes []netlink.Route) error {
	var errs []error
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("%s route %v table %d: %w", f.ip, r.Dst, r.Table, err))
		}
	}
	return errors.Join(errs...)
}
