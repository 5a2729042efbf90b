package guest

import (
	"math/bits"
	"sync"
	"time"
)

// way is how a response reaches its client.
type way uint8

const (
	locally way = iota // through this machine's own socket
	byHost             // through the host's
)

// costs learns what a response of each size costs on either way, for ThresholdAuto. The cost of a response is the time from its request to the client's next
// one, the least of many: that of a client that is near and does not pause. So it counts what no server can see, the way through the virtual network
// card and through the channel. Its methods are safe for concurrent use.
type costs struct {
	mode Mode

	mu       sync.Mutex
	classes  [costClasses]class
	handover time.Duration // the mean of the last ones, about
	leases   float64       // how many connections were handed over, and
	sends    float64       // how many responses the host sent on them; both fade
}

// costClasses: sizes of less than 2 KiB, of less than 4 KiB, and so on; the last has everything from 32 MiB.
const (
	costClasses    = 16
	costClassShift = 11
)

// class is the responses of one size.
type class struct {
	ways      [2]least
	decisions int
}

const (
	costSamples  = 8   // of each way before they are compared
	costExplores = 256 // once in so many times the way is taken that seems to cost more: things change
	costFades    = 32  // leases after which what was before counts half
	costWindow   = 128 // samples of which the least counts
)

// least is the least of the last costWindow to 2*costWindow samples.
type least struct {
	now, before time.Duration // of this window and of the one before; 0: none
	n           int           // in this window
	total       int           // all, up to costSamples
}

func (l *least) add(d time.Duration) {
	l.total = min(l.total+1, costSamples)
	if l.n == costWindow {
		l.before, l.now, l.n = l.now, 0, 0
	}
	if l.n++; l.now == 0 || d < l.now {
		l.now = d
	}
}

func (l *least) known() bool { return l.total == costSamples }

func (l *least) value() time.Duration {
	if l.before == 0 {
		return l.now
	}
	return min(l.now, l.before)
}

func classOf(bytes int64) int { return min(bits.Len64(uint64(bytes)>>costClassShift), costClasses-1) }

// sample takes what a response has cost.
func (k *costs) sample(bytes int64, w way, cost time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.classes[classOf(bytes)].ways[w].add(max(cost, 1))
}

// leased takes what a handover has cost.
func (k *costs) leased(cost time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leases++; k.leases == 1 {
		k.handover = cost
	}
	k.handover += (cost - k.handover) / costFades
	if k.leases > costFades {
		k.leases, k.sends = k.leases/2, k.sends/2
	}
}

// sent counts a response that the host sent.
func (k *costs) sent() {
	k.mu.Lock()
	k.sends++
	k.mu.Unlock()
}

// choose returns how to send a response on a local connection. Until decided the answer stays the same, but for what is learned meanwhile.
func (k *costs) choose(bytes int64) way {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &k.classes[classOf(bytes)]
	w := k.better(c)
	if c.decisions == costExplores-1 {
		return 1 - w
	}
	return w
}

// decided counts a response on a connection that was local before.
func (k *costs) decided(bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &k.classes[classOf(bytes)]
	c.decisions = (c.decisions + 1) % costExplores
}

// better is the way that costs less. The client is not kept waiting for a difference that is not measurable: then the guest is spared the work. k.mu is held.
func (k *costs) better(c *class) way {
	local, host := &c.ways[locally], &c.ways[byHost]
	switch {
	case !local.known():
		return locally
	case !host.known():
		return byHost
	}
	cost := host.value()
	if k.mode == Lease { // in mode Offload it is part of each response
		cost += time.Duration(float64(k.handover) / max(k.sends/max(k.leases, 1), 1))
	}
	if cost > local.value()+local.value()/50 {
		return locally
	}
	return byHost
}

// stays tells whether a leased connection is in good hands, after a response of so many bytes.
func (k *costs) stays(bytes int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := &k.classes[classOf(bytes)]
	return !c.ways[byHost].known() || k.better(c) == byHost
}

// LearnedCost is what the agent has learned of the responses of one size.
type LearnedCost struct {
	From    int64   `json:"from_bytes"`         // the smallest size
	Local   float64 `json:"local_us,omitempty"` // request to request, the least of the last ones; absent: not known
	Host    float64 `json:"host_us,omitempty"`
	Through string  `json:"through"` // "guest" or "host": where such a response goes
}

// learned tells what is known, for the operator.
func (k *costs) learned() []LearnedCost {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []LearnedCost
	for i := range k.classes {
		c := &k.classes[i]
		if c.ways[locally].total+c.ways[byHost].total == 0 {
			continue
		}
		l := LearnedCost{Local: micros(c.ways[locally].value()), Host: micros(c.ways[byHost].value()), Through: "guest"}
		if i > 0 {
			l.From = 1 << (i - 1 + costClassShift)
		}
		if k.better(c) == byHost {
			l.Through = "host"
		}
		all = append(all, l)
	}
	return all
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// turn is a request and its response on one connection, as costs counts them.
type turn struct {
	mu        sync.Mutex
	began     time.Time // the request's first byte
	responses int       // file ranges since then
	bytes     int64     // of the only one
	way       way
	mixed     bool // there was a handover, too
	against   int  // responses in a row after which the connection had better not stay on the host
}

// costPatience is how many responses in a row must be against it before a connection is taken back: a change of hands costs, too.
const costPatience = 8

// heard is called when the client has said something.
func (t *turn) heard(k *costs) {
	if k == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.responses == 0 && !t.began.IsZero() {
		return // more of the same request
	}
	if t.responses == 1 && !t.mixed {
		k.sample(t.bytes, t.way, now.Sub(t.began))
	}
	t.began, t.responses, t.mixed = now, 0, false
}

// answered is called when a file range goes one way or the other, wasLocal if the connection was local before.
func (t *turn) answered(k *costs, bytes int64, w way, wasLocal bool) {
	if k == nil {
		return
	}
	if wasLocal {
		k.decided(bytes)
	}
	if w == byHost {
		k.sent()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.responses++
	t.bytes, t.way, t.mixed = bytes, w, t.mixed || w == byHost && wasLocal && k.mode == Lease
}

// returns tells whether a leased connection should come back after a response of so many bytes.
func (t *turn) returns(k *costs, bytes int64) bool {
	if k == nil {
		return false
	}
	stays := k.stays(bytes)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.against++; stays {
		t.against = 0
	}
	if t.against < costPatience {
		return false
	}
	t.against = 0
	return true
}
