package redirect

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestCollisions: what the operator uses is never touched, and the error says which option to change.
func TestCollisions(t *testing.T) {
	table := nftTable("spillway")
	v4, v6 := families()[0], families()[1]
	foreignRule := func(f family, mark, mask uint32, lookup int) func(*testing.T) {
		return func(t *testing.T) {
			r := netlink.NewRule()
			r.Family, r.Mark, r.Mask, r.Table, r.Priority = f.af, mark, &mask, lookup, 500
			check(t, netlink.RuleAdd(r))
		}
	}
	for name, tt := range map[string]struct {
		occupy func(t *testing.T)
		option string // empty: no collision
	}{
		"rule with our mark":              {foreignRule(v4, DefaultMark, ^uint32(0), 9), "mark"},
		"IPv6 rule with our mark":         {foreignRule(v6, DefaultMark, ^uint32(0), 9), "mark"},
		"rule whose mask covers our mark": {foreignRule(v4, 0x50, 0xf0, 9), "mark"},
		"rule with another mark":          {foreignRule(v4, 0x60, 0xf0, 9), ""},
		"rule that looks up our table":    {foreignRule(v4, 1, ^uint32(0), DefaultRouteTable), "route_table"},
		"rule of all traffic (wg-quick)":  {func(t *testing.T) { addInverted(t, 51820) }, ""},
		"route in our table":              {func(t *testing.T) { addBlackhole(t, "198.51.100.0/24") }, "route_table"},
		"IPv6 route in our table":         {func(t *testing.T) { addBlackhole(t, "2001:db8::/32") }, "route_table"},
		"chain in our table":              {func(t *testing.T) { addChain(t, table, "operator", false) }, "table"},
		"rule in our chain":               {func(t *testing.T) { addChain(t, table, chainName, true) }, "table"},
		"table of our name, other family": {func(t *testing.T) {
			addChain(t, &nftables.Table{Name: table.Name, Family: nftables.TableFamilyIPv4}, "x", true)
		}, ""},
		"empty table of our name: is ours": {func(t *testing.T) { addChain(t, table, "", false) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			newNS(t).do(t, func() {
				tt.occupy(t)
				before := snapshot(t)
				r, err := Install(Config{})
				if tt.option == "" {
					check(t, err)
					check(t, r.Remove())
					return
				}
				var clash *CollisionError
				if !errors.As(err, &clash) || clash.Option != tt.option {
					t.Fatalf("Install says %v, want a collision of %s", err, tt.option)
				}
				if !strings.Contains(err.Error(), "set another "+tt.option+" in [redirect]") {
					t.Errorf("%q does not say what to do", err)
				}
				st, err := Check(Config{})
				check(t, err)
				if len(st.Collisions) == 0 || st.Collisions[0].Option != tt.option {
					t.Errorf("Check sees %v, want a collision of %s", st.Collisions, tt.option)
				}
				if tt.option == "table" {
					if err := RemoveStale(Config{}); !errors.As(err, &clash) {
						t.Errorf("RemoveStale says %v, want a collision", err)
					}
				} else {
					check(t, RemoveStale(Config{})) // nothing of ours there
				}
				if diff := cmp.Diff(before, snapshot(t)); diff != "" {
					t.Errorf("a collision changed the host (-before +after):\n%s", diff)
				}
			})
		})
	}
}

func addInverted(t *testing.T, mark uint32) {
	r := netlink.NewRule()
	mask := ^uint32(0)
	r.Family, r.Invert, r.Mark, r.Mask, r.Table, r.Priority = unix.AF_INET, true, mark, &mask, 51820, 32764
	check(t, netlink.RuleAdd(r))
}

func addBlackhole(t *testing.T, cidr string) {
	_, dst, err := net.ParseCIDR(cidr)
	check(t, err)
	check(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Table: DefaultRouteTable, Type: unix.RTN_BLACKHOLE}))
}

func addChain(t *testing.T, table *nftables.Table, chain string, rule bool) {
	c, err := nftables.New()
	check(t, err)
	c.AddTable(table)
	if chain != "" {
		ch := c.AddChain(&nftables.Chain{Name: chain, Table: table})
		if rule {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: []expr.Any{&expr.Counter{}}})
		}
	}
	check(t, c.Flush())
}
