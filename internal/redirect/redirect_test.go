package redirect

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// install installs and removes at the end of the test.
func install(t *testing.T, cfg Config) *Redirect {
	t.Helper()
	r, err := Install(cfg)
	check(t, err)
	t.Cleanup(func() {
		if err := r.Remove(); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
	return r
}

// kill does to a redirect what the kernel does when its process is killed: descriptors go, the rest stays.
func kill(r *Redirect) {
	r.kernel.close()
	r.lock.release()
	r.kernel = nil
}

// snapshot is everything in the namespace that a redirect could have touched.
func snapshot(t *testing.T) []string {
	t.Helper()
	var out []string
	c, err := nftables.New()
	check(t, err)
	tables, err := c.ListTables()
	check(t, err)
	for _, table := range tables {
		out = append(out, "nft table "+table.Name)
	}
	for _, f := range families() {
		rules, err := netlink.RuleList(f.af)
		check(t, err)
		for _, r := range rules {
			out = append(out, f.ruleString(&r))
		}
		routes, err := netlink.RouteListFiltered(f.af, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		check(t, err)
		for _, r := range routes {
			if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN {
				out = append(out, r.String())
			}
		}
	}
	return out
}

func wantComplete(t *testing.T, cfg Config) {
	t.Helper()
	st, err := Check(cfg)
	check(t, err)
	if !st.Complete() || len(st.Collisions) > 0 {
		t.Errorf("after the installation: %+v", st)
	}
	if got, want := len(st.Parts), 5; got != want {
		t.Errorf("Check looked at %d parts, want %d", got, want)
	}
}

func TestRuleReadBack(t *testing.T) {
	newNS(t).do(t, func() {
		install(t, Config{Mark: 0xa1b2c3d4})
		c, err := nftables.New()
		check(t, err)
		chains, err := c.ListChains()
		check(t, err)
		if len(chains) != 1 {
			t.Fatalf("%d chains, want 1", len(chains))
		}
		ch := chains[0]
		if ch.Table.Name != "spillway" || ch.Table.Family != nftables.TableFamilyINet || ch.Name != "prerouting" ||
			ch.Type != "filter" || *ch.Hooknum != 0 || *ch.Priority != -90 || *ch.Policy != nftables.ChainPolicyAccept {
			t.Errorf("chain is %+v in table %+v", ch, ch.Table)
		}
		rules, err := c.GetRules(ch.Table, ch)
		check(t, err)
		if len(rules) != 1 {
			t.Fatalf("%d rules, want 1", len(rules))
		}
		// Numbers and bytes of the kernel, not ruleExprs: a wrong register, length or byte order there must show here. The
		// expressions socket and tproxy are missing, since the library does not decode them: the raw dump below has it.
		want := []expr.Any{
			&expr.Meta{Key: unix.NFT_META_L4PROTO, Register: 1},
			&expr.Cmp{Op: unix.NFT_CMP_EQ, Register: 1, Data: []byte{6}},
			&expr.Cmp{Op: unix.NFT_CMP_EQ, Register: 1, Data: []byte{1}},
			&expr.Immediate{Register: 1, Data: []byte{0, 1}},
			&expr.Immediate{Register: 1, Data: []byte{0xd4, 0xc3, 0xb2, 0xa1}}, // amd64, arm64: little-endian
			&expr.Meta{Key: unix.NFT_META_MARK, SourceRegister: true, Register: 1},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
		if diff := cmp.Diff(want, rules[0].Exprs); diff != "" {
			t.Errorf("expressions read back (-want +got):\n%s", diff)
		}
		names, socket := rawExprs(t)
		if diff := cmp.Diff([]string{"meta", "cmp", "socket", "cmp", "immediate", "tproxy", "immediate", "meta", "immediate"}, names); diff != "" {
			t.Errorf("expressions in the kernel (-want +got):\n%s", diff)
		}
		wantSocket := []byte{
			8, 0, 1, 0, 0, 0, 0, 0, // NFTA_SOCKET_KEY = NFT_SOCKET_TRANSPARENT
			8, 0, 2, 0, 0, 0, 0, 1, // NFTA_SOCKET_DREG = register 1
		}
		if diff := cmp.Diff(wantSocket, socket); diff != "" {
			t.Errorf("socket expression in the kernel (-want +got):\n%s", diff)
		}
	})
}

// rawExprs dumps the only rule of the namespace and returns its expressions' names and the bytes of the socket one.
func rawExprs(t *testing.T) (names []string, socket []byte) {
	t.Helper()
	c, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	check(t, err)
	defer c.Close()
	msgs, err := c.Execute(mdnetlink.Message{
		Header: mdnetlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: mdnetlink.Request | mdnetlink.Dump},
		Data:   []byte{unix.NFPROTO_INET, 0, 0, 0}, // struct nfgenmsg
	})
	check(t, err)
	if len(msgs) != 1 {
		t.Fatalf("%d rules, want 1", len(msgs))
	}
	ad, err := mdnetlink.NewAttributeDecoder(msgs[0].Data[4:])
	check(t, err)
	for ad.Next() {
		if ad.Type() != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		ad.Nested(func(list *mdnetlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(e *mdnetlink.AttributeDecoder) error {
					for e.Next() {
						switch e.Type() {
						case unix.NFTA_EXPR_NAME:
							names = append(names, e.String())
						case unix.NFTA_EXPR_DATA:
							if names[len(names)-1] == "socket" {
								socket = e.Bytes()
							}
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	check(t, ad.Err())
	return names, socket
}

// TestRuleInNftWords compares with what an operator sees; nft is a test tool here, the product never runs it.
func TestRuleInNftWords(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed")
	}
	newNS(t).do(t, func() {
		install(t, Config{})
		out, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
		check(t, err)
		const want = `table inet spillway {
	chain prerouting {
		type filter hook prerouting priority dstnat + 10; policy accept;
		meta l4proto tcp socket transparent 1 tproxy to :1 meta mark set 0x00000053 accept comment "spillway: deliver packets of leased connections"
	}
}
`
		if diff := cmp.Diff(want, string(out)); diff != "" {
			t.Errorf("nft list ruleset (-want +got):\n%s", diff)
		}
	})
}

func TestInstallRemoveLeavesNothing(t *testing.T) {
	newNS(t).do(t, func() {
		before := snapshot(t)
		r := install(t, Config{})
		if r.IPv6Off != nil {
			t.Errorf("IPv6 left out: %v", r.IPv6Off)
		}
		wantComplete(t, Config{})
		if len(snapshot(t)) != len(before)+5 {
			t.Errorf("want one table, two rules and two routes more than %q, have %q", before, snapshot(t))
		}
		for range 2 { // the second finds nothing to do
			check(t, r.Remove())
		}
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("Remove left or took something (-before +after):\n%s", diff)
		}
		check(t, install(t, Config{}).Remove()) // and the lock is free again
	})
}

func TestRemoveFromAnotherNamespace(t *testing.T) {
	a, b := newNS(t), newNS(t)
	var r *Redirect
	a.do(t, func() { r = install(t, Config{}) })
	b.do(t, func() {
		install(t, Config{}) // namespaces do not know of each other
		check(t, r.Remove())
		wantComplete(t, Config{})
	})
	a.do(t, func() {
		st, err := Check(Config{})
		check(t, err)
		if !st.Empty() || st.Held {
			t.Errorf("Remove from elsewhere left %+v", st)
		}
	})
}

func TestStaleAfterKill(t *testing.T) {
	old := Config{Mark: 0x77, RouteTable: 777, RulePriority: 70}
	for name, cfg := range map[string]Config{
		"same configuration":  old,
		"other priority":      {Mark: 0x77, RouteTable: 777, RulePriority: 71},
		"other routing table": {Mark: 0x77, RouteTable: 778, RulePriority: 70},
		"other mark":          {Mark: 0x78, RouteTable: 777, RulePriority: 70},
		"everything else":     {Mark: 0x78, RouteTable: 100, RulePriority: 71},
	} {
		t.Run(name, func(t *testing.T) {
			newNS(t).do(t, func() {
				before := snapshot(t)
				kill(install(t, old))
				st, err := Check(old)
				check(t, err)
				if !st.Stale() {
					t.Errorf("Check does not see what the killed daemon left: %+v", st)
				}
				r := install(t, cfg)
				wantComplete(t, cfg)
				if got, want := len(snapshot(t)), len(before)+5; got != want {
					t.Errorf("%d objects, want %d: %q", got, want, snapshot(t))
				}
				kill(r)
				check(t, RemoveStale(cfg))
				check(t, RemoveStale(cfg)) // nothing there: fine
				if diff := cmp.Diff(before, snapshot(t)); diff != "" {
					t.Errorf("after RemoveStale (-before +after):\n%s", diff)
				}
			})
		})
	}
}

// TestPartlyGone: an operator, or systemd-networkd, removed a part while a daemon was dead.
func TestPartlyGone(t *testing.T) {
	f4 := families()[0]
	cfg := Config{}.WithDefaults()
	for name, damage := range map[string]func(t *testing.T, c *nftables.Conn){
		"rule":  func(t *testing.T, _ *nftables.Conn) { check(t, netlink.RuleDel(f4.rule(cfg))) },
		"route": func(t *testing.T, _ *nftables.Conn) { check(t, netlink.RouteDel(f4.route(cfg))) },
		"table": func(t *testing.T, c *nftables.Conn) { check(t, deleteTable(c, cfg.Table)) },
		"nft rule": func(t *testing.T, c *nftables.Conn) {
			c.FlushTable(nftTable(cfg.Table))
			check(t, c.Flush())
		},
	} {
		t.Run(name, func(t *testing.T) {
			newNS(t).do(t, func() {
				c, err := nftables.New()
				check(t, err)
				kill(install(t, cfg))
				damage(t, c)
				st, err := Check(cfg)
				check(t, err)
				if st.Complete() || st.Empty() {
					t.Errorf("Check does not see the damage: %+v", st)
				}
				install(t, cfg)
				wantComplete(t, cfg)
			})
		})
	}
}

func TestLock(t *testing.T) {
	newNS(t).do(t, func() {
		install(t, Config{})
		for name, cfg := range map[string]Config{
			"same":                {},
			"same table":          {Mark: 1, RouteTable: 1},
			"same mark":           {Table: "other", RouteTable: 1},
			"same routing table":  {Table: "other", Mark: 1},
			"only other priority": {RulePriority: 9},
		} {
			if _, err := Install(cfg); !errors.Is(err, ErrInUse) {
				t.Errorf("%s: Install says %v, want ErrInUse", name, err)
			}
			if err := RemoveStale(cfg); !errors.Is(err, ErrInUse) {
				t.Errorf("%s: RemoveStale says %v, want ErrInUse", name, err)
			}
		}
		wantComplete(t, Config{})
		if st, err := Check(Config{}); err != nil || !st.Held || st.Stale() {
			t.Errorf("Check does not see the holder: %+v, %v", st, err)
		}
		// Two that share nothing get on, and the removal of one leaves the other.
		other := install(t, Config{Table: "other", Mark: 1, RouteTable: 1})
		check(t, other.Remove())
		wantComplete(t, Config{})
	})
}

func TestIPv6Off(t *testing.T) {
	newNS(t).do(t, func() {
		before := snapshot(t)
		kill(install(t, Config{})) // so that a stale IPv6 rule is there when IPv6 is gone
		sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
		r := install(t, Config{})
		if r.IPv6Off == nil {
			t.Error("IPv6Off is nil with disable_ipv6=1")
		}
		st, err := Check(Config{})
		check(t, err)
		if st.IPv6Off == nil || len(st.Parts) != 3 || !st.Complete() {
			t.Errorf("Check without IPv6: %+v", st)
		}
		if got, want := len(snapshot(t)), len(before)+3; got != want {
			t.Errorf("%d objects, want %d: %q", got, want, snapshot(t))
		}
		check(t, r.Remove())
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("Remove left or took something (-before +after):\n%s", diff)
		}
	})
}

// TestFailedInstallUndoes: with lo down the route is refused; nothing may stay, and the lock must be free.
func TestFailedInstallUndoes(t *testing.T) {
	newNS(t).do(t, func() {
		lo, err := netlink.LinkByName("lo")
		check(t, err)
		check(t, netlink.LinkSetDown(lo))
		before := snapshot(t)
		_, err = Install(Config{})
		var typed *Error
		if !errors.As(err, &typed) || !errors.Is(err, unix.ENETDOWN) || typed.Left != "" || !strings.Contains(err.Error(), "ip link set lo up") {
			t.Errorf("Install with lo down says %v", err)
		}
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("a failed install left something (-before +after):\n%s", diff)
		}
		check(t, netlink.LinkSetUp(lo))
		install(t, Config{})
		wantComplete(t, Config{})
	})
}

func TestValidate(t *testing.T) {
	for name, cfg := range map[string]Config{
		"table name":       {Table: "spill way"},
		"long table name":  {Table: strings.Repeat("x", maxTableName+1)},
		"main table":       {RouteTable: unix.RT_TABLE_MAIN},
		"local table":      {RouteTable: unix.RT_TABLE_LOCAL},
		"negative table":   {RouteTable: -1},
		"priority":         {RulePriority: 32766},
		"negative priorit": {RulePriority: -1},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s: %+v is accepted", name, cfg)
		}
		if _, err := Install(cfg); err == nil {
			t.Errorf("%s: Install accepts %+v", name, cfg)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	long := Config{Table: strings.Repeat("x", maxTableName)}
	for _, name := range lockNames(long.WithDefaults()) {
		if len(name) > len(unix.RawSockaddrUnix{}.Path) {
			t.Errorf("lock name %d bytes long does not fit into sun_path", len(name))
		}
	}
}
