package guest

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

// far is a deadline that no test reaches.
const far = time.Hour

func TestDeadline(t *testing.T) {
	d := newDeadline()
	expect := func(what string, passed bool) {
		t.Helper()
		if d.passed() != passed {
			t.Errorf("%s: passed is %v", what, !passed)
		}
	}
	expect("none", false)
	d.set(time.Now().Add(-time.Second))
	expect("in the past", true)
	d.set(time.Now().Add(-time.Second))
	expect("in the past again", true)
	d.set(time.Time{})
	expect("taken back", false)
	d.set(longAgo)
	d.set(time.Now().Add(far))
	expect("moved to the future", false)
	d.set(time.Now().Add(2 * far))
	expect("moved within the future", false)
	d.set(time.Now().Add(time.Millisecond))
	<-d.wait()
	expect("reached", true)
	d.set(time.Time{})
	expect("taken back after it was reached", false)
}

// TestDeadlineMoves: who waits is woken by a deadline that is set, or brought forward, while it waits, and not by one that was put off.
func TestDeadlineMoves(t *testing.T) {
	for name, first := range map[string]time.Time{"none before": {}, "far before": time.Now().Add(far)} {
		t.Run(name, func(t *testing.T) {
			d := newDeadline()
			d.set(first)
			woken := make(chan struct{})
			go func() {
				defer close(woken)
				<-d.wait()
			}()
			d.set(time.Now().Add(2 * far))
			select {
			case <-woken:
				t.Fatal("woken by a deadline in the future")
			case <-time.After(5 * time.Millisecond):
			}
			d.set(longAgo)
			select {
			case <-woken:
			case <-time.After(patience):
				t.Fatal("not woken by a deadline in the past")
			}
			d.set(time.Time{})
		})
	}
}

// TestDeadlineRaces moves a deadline about that fires all the time. A mistake shows as a race, a double close or a hang.
func TestDeadlineRaces(t *testing.T) {
	d := newDeadline()
	var wait sync.WaitGroup
	for i := range 4 {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		wait.Go(func() {
			for range 3000 {
				switch random.IntN(4) {
				case 0:
					d.set(time.Time{})
				case 1:
					d.set(longAgo)
				default:
					d.set(time.Now().Add(time.Duration(random.IntN(50)) * time.Microsecond))
				}
				d.passed()
			}
		})
	}
	wait.Wait()
	d.set(longAgo)
	select {
	case <-d.wait():
	case <-time.After(patience):
		t.Fatal("the last deadline is lost")
	}
}
