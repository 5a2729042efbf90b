package guest

import (
	"testing"
	"time"
)

// teach gives k so many samples of a way.
func teach(k *costs, bytes int64, w way, cost time.Duration) {
	for range costSamples {
		k.sample(bytes, w, cost)
	}
}

// TestCosts: both ways are tried before one is chosen, and then the cheaper is, with a share of what the handover has cost.
func TestCosts(t *testing.T) {
	const size = 100_000
	for _, c := range []struct {
		name               string
		mode               Mode
		local, host, first time.Duration // of a response, and of a handover; 0: not known
		sends              int           // on each lease
		want               way
	}{
		{"nothing is known", Lease, 0, 0, 0, 0, locally},
		{"the host's way is not known", Lease, time.Millisecond, 0, 0, 0, byHost},
		{"the host is slower", Lease, time.Millisecond, 1021 * time.Microsecond, 0, 1, locally},
		{"the host is as fast, as far as one can tell", Lease, time.Millisecond, 1019 * time.Microsecond, 0, 1, byHost},
		{"the host is faster", Lease, time.Millisecond, 100 * time.Microsecond, 0, 1, byHost},
		{"but for a single response the handover costs more", Lease, time.Millisecond, 100 * time.Microsecond, time.Millisecond, 1, locally},
		{"for ten it does not", Lease, time.Millisecond, 100 * time.Microsecond, time.Millisecond, 10, byHost},
		{"in mode offload the handover is a part of each", Offload, time.Millisecond, 900 * time.Microsecond, time.Second, 1, byHost},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &costs{mode: c.mode}
			if c.local > 0 {
				teach(k, size, locally, c.local)
			}
			if c.host > 0 {
				teach(k, size, byHost, c.host)
			}
			for range 3 {
				k.leased(c.first)
				for range c.sends {
					k.sent()
				}
			}
			if got := k.choose(size); got != c.want {
				t.Errorf("chosen is %v, want %v; learned: %+v", got, c.want, k.learned())
			}
			if got := k.choose(4 * size); got != locally {
				t.Error("what is known of one size counts for another")
			}
		})
	}
}

// TestCostsExplore: the way that seems to cost more is taken now and then, so that a change is noticed.
func TestCostsExplore(t *testing.T) {
	const size = 4096
	k := &costs{mode: Lease}
	teach(k, size, locally, time.Millisecond)
	teach(k, size, byHost, 2*time.Millisecond)
	tried := 0
	for range 3 * costExplores {
		w := k.choose(size)
		if w != k.choose(size) {
			t.Fatal("two answers for one response")
		}
		if w == byHost {
			tried++
		}
		k.decided(size)
	}
	if tried != 3 {
		t.Errorf("the host's way was tried %d times of %d, want 3", tried, 3*costExplores)
	}
	// It has become cheap.
	for range 2*costWindow + 1 {
		k.sample(size, locally, 3*time.Millisecond)
	}
	if k.choose(size) != byHost {
		t.Errorf("an old minimum counts for ever: %+v", k.learned())
	}
}

// TestTurn: what counts is the time from a request to the next, of one response that took one way.
func TestTurn(t *testing.T) {
	const size = 100_000
	request := func(c *turn, k *costs) { c.heard(k); c.heard(k) } // in two pieces
	for _, c := range []struct {
		name   string
		mode   Mode
		answer func(c *turn, k *costs)
		want   [2]int
	}{
		{"local", Lease, func(c *turn, k *costs) { c.answered(k, size, locally, true) }, [2]int{1, 0}},
		{"leased", Lease, func(c *turn, k *costs) { c.answered(k, size, byHost, false) }, [2]int{0, 1}},
		{"with the handover of a lease", Lease, func(c *turn, k *costs) { c.answered(k, size, byHost, true) }, [2]int{0, 0}},
		{"with that of one response", Offload, func(c *turn, k *costs) { c.answered(k, size, byHost, true) }, [2]int{0, 1}},
		{"pipelined", Lease, func(c *turn, k *costs) {
			c.answered(k, size, byHost, false)
			c.answered(k, size, byHost, false)
		}, [2]int{0, 0}},
		{"no file", Lease, func(*turn, *costs) {}, [2]int{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &costs{mode: c.mode}
			var on turn
			request(&on, k)
			c.answer(&on, k)
			request(&on, k)
			of := &k.classes[classOf(size)]
			if got := [2]int{of.ways[locally].total, of.ways[byHost].total}; got != c.want {
				t.Errorf("samples of the two ways: %v, want %v", got, c.want)
			}
		})
	}
}

// TestTurnReturns: a connection comes back when it has been in the wrong hands for a while.
func TestTurnReturns(t *testing.T) {
	const small, large = 4096, 10_000_000
	k := &costs{mode: Lease}
	teach(k, small, locally, time.Millisecond)
	teach(k, small, byHost, 2*time.Millisecond)
	teach(k, large, locally, 20*time.Millisecond)
	teach(k, large, byHost, 10*time.Millisecond)
	var on turn
	for round := range 3 {
		for i := 1; i < costPatience; i++ {
			if on.returns(k, small) {
				t.Fatalf("round %d: after %d small responses it comes back", round, i)
			}
		}
		if round == 1 {
			if on.returns(k, large) {
				t.Fatal("after a large response it comes back")
			}
			continue
		}
		if !on.returns(k, small) {
			t.Fatalf("round %d: after %d small responses it stays", round, costPatience)
		}
	}
	var none *costs
	if on.heard(none); on.returns(none, small) {
		t.Error("with a fixed threshold it comes back")
	}
}
