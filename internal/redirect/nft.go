package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// afterDNAT is the priority of our chain: behind the translation of destinations, so that a port which the host publishes for a VM (DNAT) is the VM's by then.
func afterDNAT() *nftables.ChainPriority {
	return nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + 10)
}

// tproxyPort is where the rule looks for a listener when the connection's socket has just gone: nobody listens there, and the packet goes on.
const tproxyPort = 1

const (
	chainName   = "prerouting"
	ruleComment = "spillway: deliver packets of leased connections"
)

func nftTable(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

func nftChain(table *nftables.Table) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Name: chainName, Table: table, Type: nftables.ChainTypeFilter,
		// Mangle: after conntrack (-200), before destination NAT (-100) and the routing decision, which reads the mark.
		Hooknum: nftables.ChainHookPrerouting, Priority: afterDNAT(), Policy: &accept,
	}
}

// ruleExprs is `meta l4proto tcp socket transparent 1 tproxy to :1 meta mark set MARK accept`.
//
// tproxy gives the packet the socket for good; the port matters only for listeners, of which we have none. With the mark alone, a packet that was marked just before its socket was closed would be delivered
// to this machine, which knows no such connection any more and would answer with a RST.
//
// It must not match by the socket's mark (`socket mark`): a TIME_WAIT socket is a mini socket that has none
// (nft_socket_eval, net/netfilter/nft_socket.c), so packets for it would be forwarded to the guest, whose kernel does not
// know the connection and would answer with a RST. A mini socket does keep the transparent bit.
func ruleExprs(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, tproxyPort)},
		&expr.TProxy{TableFamily: unix.NFPROTO_INET, RegPort: 1},
		&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// replaceTable queues a batch that leaves our table as configured whatever it held before, and sends it: the kernel
// applies all of it or nothing, so that there is no moment without the rule.
func replaceTable(c *nftables.Conn, cfg Config) error {
	table := nftTable(cfg.Table)
	c.AddTable(table) // so that the deletion finds one
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(nftChain(table))
	c.AddRule(&nftables.Rule{
		Table: table, Chain: chain, Exprs: ruleExprs(cfg.Mark),
		UserData: userdata.AppendString(nil, userdata.TypeComment, ruleComment),
	})
	return c.Flush()
}

// deleteTable removes our table; that there is none is fine.
func deleteTable(c *nftables.Conn, name string) error {
	c.DelTable(nftTable(name))
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// foundTable is what the kernel holds under our table's name.
type foundTable struct {
	exists  bool
	current bool     // exactly as configured
	foreign string   // something in it that is not ours; empty when all is ours
	marks   []uint32 // marks that rules of ours in it set
}

func inspectTable(c *nftables.Conn, cfg Config) (foundTable, error) {
	var f foundTable
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return f, err
	}
	for _, t := range tables {
		f.exists = f.exists || t.Name == cfg.Table
	}
	if !f.exists {
		return f, nil
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return f, err
	}
	for _, ch := range chains {
		if ch.Table.Name != cfg.Table {
			continue
		}
		if ch.Name != chainName {
			f.foreign = fmt.Sprintf("nft list chain inet %s %s", cfg.Table, ch.Name)
			return f, nil
		}
		if err := f.inspectChain(c, cfg, ch); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f *foundTable) inspectChain(c *nftables.Conn, cfg Config, ch *nftables.Chain) error {
	rules, err := c.GetRules(nftTable(cfg.Table), ch)
	if err != nil {
		return err
	}
	for _, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if strings.TrimRight(comment, "\x00") != ruleComment {
			f.foreign = fmt.Sprintf("nft -a list chain inet %s %s, handle %d", cfg.Table, ch.Name, r.Handle)
			return nil
		}
		if mark, ok := markOf(r.Exprs); ok {
			f.marks = append(f.marks, mark)
		}
	}
	want := nftChain(ch.Table)
	f.current = len(rules) == 1 && reflect.DeepEqual(legible(rules[0].Exprs), legible(ruleExprs(cfg.Mark))) &&
		ch.Hooknum != nil && *ch.Hooknum == *want.Hooknum && ch.Priority != nil && *ch.Priority == *want.Priority
	return nil
}

// legible leaves out the expressions that the library does not decode, or not wholly, when it reads a rule: a change there is not
// seen. Install does not depend on it: it replaces the table always.
func legible(exprs []expr.Any) []expr.Any {
	return slices.DeleteFunc(slices.Clone(exprs), func(e expr.Any) bool {
		switch e.(type) {
		case *expr.Socket, *expr.TProxy:
			return true
		}
		return false
	})
}

// markOf returns the mark that a rule of ours sets.
func markOf(exprs []expr.Any) (uint32, bool) {
	for _, e := range exprs {
		if imm, ok := e.(*expr.Immediate); ok && len(imm.Data) == 4 { // a port has two bytes
			return binary.NativeEndian.Uint32(imm.Data), true
		}
	}
	return 0, false
}
