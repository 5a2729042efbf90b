package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"spillway/internal/lab"
	"spillway/internal/netns"
)

// lose drops percent of the packets that come into a namespace until the returned function is called, or the test ends. dropped tells how many.
func lose(t *testing.T, ns *netns.Namespace, percent uint32) (dropped func() uint64, stop func()) {
	t.Helper()
	var conn *nftables.Conn
	must(t, ns.Do(func() (err error) {
		conn, err = nftables.New(nftables.AsLasting())
		return err
	}))
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "spillway-test-loss"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "loss", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(percent)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	must(t, conn.Flush())
	stop = sync.OnceFunc(func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
		if err := conn.CloseLasting(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	dropped = func() uint64 {
		rules, err := conn.GetRules(table, chain)
		must(t, err)
		for _, e := range rules[0].Exprs {
			if c, ok := e.(*expr.Counter); ok {
				return c.Packets
			}
		}
		t.Fatal("the rule has lost its counter")
		return 0
	}
	return dropped, stop
}

// TestLoss: packets get lost in both directions while connections change hands, files are sent, uploads are relayed and leases are recalled. Nothing but time
// is lost with them.
func TestLoss(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, percent := range []uint32{2, 5} {
		t.Run(fmt.Sprintf("%d percent", percent), func(t *testing.T) {
			toClient, keep := lose(t, l.Client, percent)
			fromClient, keepToo := lose(t, l.Host, percent)
			var clients sync.WaitGroup
			for i := range 8 {
				arm := offloading[i%len(offloading)]
				random := rand.New(rand.NewPCG(uint64(percent), uint64(i)))
				clients.Go(func() { lossyVisit(t, l, files, arm, random) })
			}
			done := make(chan struct{})
			go func() { clients.Wait(); close(done) }()
			for recalling := true; recalling; {
				select {
				case <-done:
					recalling = false
				case <-time.After(50 * time.Millisecond):
					recall(t, l)
				}
			}
			lost := [2]uint64{fromClient(), toClient()}
			keep()
			keepToo()
			if lost[0] == 0 || lost[1] == 0 {
				t.Errorf("dropped %v packets from and to the client: nothing was tried", lost)
			}
			t.Logf("dropped %v packets from and to the client", lost)
		})
	}
	noLeases(t, l)
	checkRedirect(t, l)
}

// lossyVisit makes requests of all kinds over one connection, each of which must succeed.
func lossyVisit(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, random *rand.Rand) {
	c := dial(t, l, arm)
	c.patience = hangLimit
	defer c.Close()
	names := files.names()
	for range 12 {
		name := names[random.IntN(len(names))]
		if !c.get(name, files.files[name]) {
			return
		}
		body := strings.Repeat("upload ", 1+random.IntN(10_000))
		if !c.send(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", target(name), c.addr, len(body), body)) {
			return
		}
		resp, err := c.header(http.MethodPost)
		if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: POST: %+v, %v; want 405", arm, resp, err)
			return
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Errorf("%s: POST: body: %v", arm, err)
			return
		}
		if resp.Close { // the server has not read all of it
			c = dial(t, l, arm)
			c.patience = hangLimit
			defer c.Close()
		}
	}
}
