package e2e

import (
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/wire"
)

// step is one frame of a conversation on the channel: the nth of its type in its direction.
type step struct {
	fromHost bool
	kind     wire.Type
	nth      int // from 1
}

func (s step) String() string {
	from := "guest's"
	if s.fromHost {
		from = "host's"
	}
	return fmt.Sprintf("%s %v %d", from, s.kind, s.nth)
}

// proxy is in the channel between a guest's server and the daemon. It passes frame after frame, and does something when a certain one comes.
type proxy struct {
	socket string // where the guest connects
	daemon string // where the daemon listens

	pausing sync.Mutex // held while nothing may pass

	mu     sync.Mutex
	seen   map[step]bool // frames that have come since watch; only the highest nth matters to count
	count  map[step]int  // by direction and type, nth 0
	now    step          // what something is done about
	late   bool          // behind the frame and not before it
	do     func()        // nil: nothing
	undone bool          // it is still to be done, or is being done
	hold   step          // this frame waits until …
	until  step          // … this one has come
	pairs  map[*pair]bool
	shut   bool
}

// pair is one connection of the guest's and ours to the daemon.
type pair struct{ guest, host net.Conn }

func (p *pair) close() { p.guest.Close(); p.host.Close() }

// newProxy listens for an arm's server.
func newProxy(t *testing.T, l *lab.Lab, arm lab.Arm) *proxy {
	t.Helper()
	p := &proxy{socket: filepath.Join(l.Dir, "proxy-"+string(arm)), daemon: channelSocket(l, arm), pairs: map[*pair]bool{}}
	p.watch()
	listener, err := net.Listen("unix", p.socket)
	must(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			guest, err := listener.Accept()
			if err != nil {
				return
			}
			host, err := net.Dial("unix", p.daemon)
			if err != nil { // as if nobody listened here
				guest.Close()
				continue
			}
			running.Go(func() { p.join(&pair{guest, host}) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		p.shut = true
		p.mu.Unlock()
		p.cut()
		running.Wait()
	})
	return p
}

// join passes frames between two connections until one of them ends.
func (p *proxy) join(c *pair) {
	p.mu.Lock()
	p.pairs[c] = true
	shut := p.shut
	p.mu.Unlock()
	if shut {
		c.close()
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(c, wire.NewHostReader(c.guest), c.host, false) })
	both.Go(func() { p.pass(c, wire.NewGuestReader(c.host), c.guest, true) })
	both.Wait()
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// pass passes one direction. Its end is the end of both.
func (p *proxy) pass(c *pair, from *wire.Reader, to io.Writer, fromHost bool) {
	defer c.close()
	for {
		head, payload, err := from.Next()
		if err != nil {
			return
		}
		m, err := wire.Parse(head.Type, payload)
		if err != nil {
			return
		}
		before, after := p.meet(fromHost, head.Type)
		before()
		p.pausing.Lock() // unless the channel is stalled
		p.pausing.Unlock()
		_, err = to.Write(wire.Append(nil, head.Session, head.ID, head.Flags, m))
		after()
		if err != nil {
			return
		}
	}
}

// meet counts a frame and returns what is to be done before and after it passes.
func (p *proxy) meet(fromHost bool, kind wire.Type) (before, after func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, after = func() {}, func() {}
	all := step{fromHost, kind, 0}
	p.count[all]++
	s := step{fromHost, kind, p.count[all]}
	p.seen[s] = true
	if s == p.hold {
		before = func() { p.await(p.until) }
	}
	if s != p.now || p.do == nil {
		return before, after
	}
	do := p.do
	p.do = nil
	once := func() {
		do()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.undone = false
	}
	if p.late {
		return before, once
	}
	held := before
	return func() { held(); once() }, after
}

// await waits until a frame has come, for a while.
func (p *proxy) await(s step) {
	for deadline := time.Now().Add(hangLimit / 2); !p.has(s) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
}

// has tells whether a frame has come.
func (p *proxy) has(s step) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[s]
}

// waits tells whether something is still to be done.
func (p *proxy) waits() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.undone
}

// watch counts from now on.
func (p *proxy) watch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen, p.count, p.do, p.undone, p.hold = map[step]bool{}, map[step]int{}, nil, false, step{}
}

// counted returns the numbers of frames since watch.
func (p *proxy) counted() map[step]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.count)
}

// at lets something be done, once, before or behind a frame.
func (p *proxy) at(s step, late bool, do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now, p.late, p.do, p.undone = s, late, do, true
}

// cross holds one frame back until another one has come.
func (p *proxy) cross(hold, until step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold, p.until = hold, until
}

// cut ends the connections that there are. The guest may come again.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.close()
	}
}

// stall lets nothing pass for d.
func (p *proxy) stall(d time.Duration) {
	p.pausing.Lock()
	time.Sleep(d)
	p.pausing.Unlock()
}
