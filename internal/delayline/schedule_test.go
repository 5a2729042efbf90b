package delayline

import (
	"strings"
	"testing"
	"time"
)

// TestSchedule: what is asked of the line at which time, and what becomes of it.
func TestSchedule(t *testing.T) {
	const ms = time.Millisecond
	type ask struct {
		at    time.Duration
		bytes int64
		due   time.Duration // -1: dropped, as too much is waiting
	}
	for name, c := range map[string]struct {
		cfg  Config
		asks []ask
	}{
		"delay only": {Config{Delay: 20 * ms}, []ask{{0, 1500, 20 * ms}, {0, 65536, 20 * ms}, {7 * ms, 40, 27 * ms}}},
		"nothing":    {Config{}, []ask{{0, 1500, 0}, {3 * ms, 1500, 3 * ms}}},
		// 1 Mbit/s: 125 bytes take 1 ms.
		"rate": {Config{Delay: 20 * ms, BitsPerSecond: 1e6}, []ask{
			{0, 1250, 30 * ms}, {0, 1250, 40 * ms}, {5 * ms, 125, 41 * ms}, // behind each other
			{100 * ms, 125, 121 * ms}, // the line has been idle: no credit is left of it
		}},
		"bound": {Config{BitsPerSecond: 1e6, QueueBytes: 2500}, []ask{
			{0, 9000, 72 * ms}, // an idle line takes a packet of any size
			{0, 125, -1},
			{52 * ms, 125, -1},           // 2,500 bytes wait
			{53 * ms, 125, 73 * ms},      // 2,375
			{53 * ms, 125, -1},           // 2,500 again
			{53*ms + 2*ms, 250, 75 * ms}, // 2,250
			{75 * ms, 100_000, 875 * ms}, // idle in this moment
			{875 * ms, 125, 876 * ms},    // and again
			{2000 * ms, 2500, 2020 * ms}, // ...
			{2000 * ms, 1, -1},           //
			{2019 * ms, 2375, 2039 * ms}, // 125 bytes wait, so this is exactly the bound
			{2019 * ms, 1, -1},           //
			{2020*ms + ms/2, 62, 2039496 * time.Microsecond},
		}},
	} {
		s := newSchedule(c.cfg, 0)
		for i, a := range c.asks {
			due, v := s.admit(a.at, a.bytes)
			if v == queueFull {
				due = -1
			}
			if (due - a.due).Abs() > time.Microsecond { // of floating point
				t.Errorf("%s: packet %d is due at %v, want %v", name, i, due, a.due)
			}
		}
	}
}

// TestScheduleOrder: no packet is due before one that came earlier, whatever the sizes.
func TestScheduleOrder(t *testing.T) {
	s := newSchedule(Config{Delay: time.Millisecond, BitsPerSecond: 333_333_333, Loss: 0.1, Seed: 1}, 0)
	var last, now time.Duration
	for i := range 100_000 {
		now += time.Duration(i%7) * time.Microsecond
		due, v := s.admit(now, int64(40+i*7919%65000))
		if v != admitted {
			continue
		}
		if due < last || due < now+time.Millisecond {
			t.Fatalf("packet %d, which came at %v, is due at %v; the one before at %v", i, now, due, last)
		}
		last = due
	}
}

// TestScheduleLoss: as often as configured, the same packets for a seed, others for another one and for the other direction.
func TestScheduleLoss(t *testing.T) {
	const n, loss = 100_000, 0.01
	lostOf := func(seed, direction uint64) (packets []int) {
		s := newSchedule(Config{Loss: loss, Seed: seed}, direction)
		for i := range n {
			if _, v := s.admit(0, 1000); v == lost {
				packets = append(packets, i)
			}
		}
		return packets
	}
	first := lostOf(7, 0)
	if len(first) < n*loss*0.8 || len(first) > n*loss*1.2 { // six standard deviations
		t.Errorf("%d of %d are lost", len(first), n)
	}
	same := func(a, b []int) bool {
		common := 0
		for _, i := range a {
			for _, j := range b {
				if i == j {
					common++
				}
			}
		}
		return common == len(a) && common == len(b)
	}
	if !same(first, lostOf(7, 0)) {
		t.Error("a seed does not lose the same packets again")
	}
	if same(first, lostOf(8, 0)) || same(first, lostOf(7, 1)) {
		t.Error("another seed or direction loses the same packets")
	}
}

func TestValidate(t *testing.T) {
	for _, good := range []Config{
		{}, {Delay: MaxDelay}, {BitsPerSecond: MinBitsPerSecond}, {BitsPerSecond: 1e11, QueueBytes: 1, Loss: 0.999, Seed: 5},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	nan := 0.0
	nan /= nan
	for want, bad := range map[string]Config{
		"delay -1ns":          {Delay: -1},
		"delay 10.000000001s": {Delay: MaxDelay + 1},
		"rate 999 bit/s":      {BitsPerSecond: 999},
		"queue of -1 bytes":   {BitsPerSecond: 1e6, QueueBytes: -1},
		"a queue without":     {QueueBytes: 1},
		"loss of 1":           {Loss: 1},
		"loss of -0.1":        {Loss: -0.1},
		"loss of NaN":         {Loss: nan},
	} {
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestDefaultQueue(t *testing.T) {
	for bits, want := range map[uint64]int64{0: 2 * maxPacket, 1e6: 2 * maxPacket, 1e8: 1.25e6, 1e9: 12.5e6} {
		if got := DefaultQueue(bits); got != want {
			t.Errorf("DefaultQueue(%d) = %d, want %d", bits, got, want)
		}
	}
}
