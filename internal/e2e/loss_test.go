package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"spillway/internal/lab"
	"spillway/internal/netns"
)

// lossPatience is for one read of a client whose packets get lost: a tenth of both directions seldom makes a retransmission time-out double more than
// five times (0.2 s, RFC 6298, section 5.5).
const lossPatience = 90 * time.Second

// Offsets of the ports in a TCP header (RFC 9293, section 3.1).
const (
	sourcePort      = 0
	destinationPort = 2
)

// lose drops so many of a hundred packets between the clients and the arm's server, in both directions, until stop is called or the test ends. Packets are
// dropped where they arrive: a sender would notice that its own do not leave.
func lose(t *testing.T, l *lab.Lab, arm lab.Arm, percent uint32) (stop func()) {
	t.Helper()
	name := fmt.Sprintf("spw-loss-%s-%d", l.Name, percent)
	port := uint16(portOf(t, l.Addr(arm)))
	directions := []struct {
		ns     *netns.Namespace
		hook   *nftables.ChainHook
		offset uint32
	}{
		{l.Client, nftables.ChainHookInput, sourcePort},
		{l.Host, nftables.ChainHookPrerouting, destinationPort},
	}
	stop = sync.OnceFunc(func() {
		for _, d := range directions {
			err := d.ns.Do(func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
				return c.Flush()
			})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				t.Errorf("remove the loss: %v", err)
			}
		}
	})
	t.Cleanup(stop)
	for _, d := range directions {
		must(t, d.ns.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
			chain := c.AddChain(&nftables.Chain{
				Name: "loss", Table: table, Type: nftables.ChainTypeFilter, Hooknum: d.hook, Priority: nftables.ChainPriorityRaw,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: lossExprs(d.offset, port, percent)})
			return c.Flush()
		}))
	}
	return stop
}

// lossExprs is `meta l4proto tcp tcp sport|dport PORT numgen random mod 100 < PERCENT counter drop`.
func lossExprs(offset uint32, port uint16, percent uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2, DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Numgen{Type: unix.NFT_NG_RANDOM, Modulus: 100, Register: 1},
		// A number in the machine's order is compared as bytes: in network order, as nft does.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, percent)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// lost is how many packets the rules have dropped.
func lost(t *testing.T, l *lab.Lab) (packets [2]uint64) {
	t.Helper()
	for i, ns := range []*netns.Namespace{l.Client, l.Host} {
		must(t, ns.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			chains, err := c.ListChains()
			if err != nil {
				return err
			}
			for _, chain := range chains {
				if chain.Name != "loss" {
					continue
				}
				rules, err := c.GetRules(chain.Table, chain)
				if err != nil {
					return err
				}
				for _, r := range rules {
					for _, e := range r.Exprs {
						if counter, ok := e.(*expr.Counter); ok {
							packets[i] += counter.Packets
						}
					}
				}
			}
			return nil
		}))
	}
	return packets
}

// TestLoss: packets get lost in both directions while connections change hands. Everything comes, and comes right.
func TestLoss(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, percent := range []uint32{2, 10} {
		for _, arm := range offloading {
			t.Run(fmt.Sprintf("%d percent %s", percent, arm), func(t *testing.T) {
				before := hostStatus(t, l).Handbacks
				stop := lose(t, l, arm, percent)
				const enough, rounds = 20, 20
				n := [2]uint64{}
				for i := 0; i < rounds && min(n[0], n[1]) < enough; i++ {
					lossyVisits(t, l, files, arm)
					n = lost(t, l)
				}
				if min(n[0], n[1]) < enough {
					t.Errorf("%v packets were lost in the two directions: the test has lost its meaning", n)
				}
				stop()
				if hostStatus(t, l).Handbacks == before {
					t.Error("no connection has come back")
				}
				noLeases(t, l)
				fetch(t, l, arm, "10m.mp4", files.files["10m.mp4"])
			})
		}
	}
	noLeases(t, l)
	eventually(t, "no connection is left on the host", func() bool { return len(hostConnections(t, l)) == 0 })
	if s := hostStatus(t, l); s.Breaches != 0 || s.Closed["kernel"] != 0 {
		t.Errorf("%d breaches, leases closed for %v", s.Breaches, s.Closed)
	}
}

// lossyVisits lets clients of each kind do what they do, side by side, while some connections are recalled in the middle of files.
func lossyVisits(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	t.Helper()
	var clients, recaller sync.WaitGroup
	done := make(chan struct{})
	for _, visit := range []func(c *client) bool{
		func(c *client) bool { return c.get(fileOf288KB, files.files[fileOf288KB]) },
		func(c *client) bool { return c.getTimes(20, "4k.m4s", files.files["4k.m4s"]) },
		func(c *client) bool { return c.upload(100_000) && c.upload(50_000) },
		func(c *client) bool { return c.getTimes(2, "smarttv/seg-1.m4s", files.files["smarttv/seg-1.m4s"]) },
	} {
		for range 3 {
			clients.Go(func() {
				c := dial(t, l, arm)
				c.patience = lossPatience
				if c.get("64k.m4s", files.files["64k.m4s"]) && visit(c) {
					c.get("64k.m4s", files.files["64k.m4s"])
				}
				if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
			})
		}
	}
	recaller.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				recall(t, l)
			}
		}
	})
	clients.Wait()
	close(done)
	recaller.Wait()
}

func (c *client) getTimes(times int, name string, want []byte) bool {
	for range times {
		if !c.get(name, want) {
			return false
		}
	}
	return true
}

// upload sends a body that the server reads and refuses.
func (c *client) upload(size int) bool {
	c.t.Helper()
	if !c.send(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target("4k.m4s"), c.addr, size, make([]byte, size))) {
		return false
	}
	resp, err := c.header(http.MethodPost)
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed || resp.Close {
		c.t.Errorf("%v, %v; want 405 and the connection kept", resp, err)
		return false
	}
	return c.take([]byte(refusedText))
}
