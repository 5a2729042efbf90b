package evict

import (
	"testing"

	"pgregory.net/rapid"
)

func idle(uint64) bool { return false }

func item(key uint64, size int64) *Item[uint64] {
	return &Item[uint64]{Value: key, Key: key, size: size}
}

// victims evicts until nothing is left.
func victims(p Policy[uint64]) (keys []uint64) {
	for v := p.Victim(idle); v != nil; v = p.Victim(idle) {
		keys = append(keys, v.Key)
	}
	return keys
}

func TestScanPassesTheSmallQueue(t *testing.T) {
	s := NewS3FIFO[uint64](100, 100)
	hot := item(1, 10)
	s.Add(hot)
	s.Use(hot)
	s.Use(hot)
	for k := uint64(100); k < 200; k++ { // a scan
		s.Add(item(k, 1))
		for s.small.bytes+s.main.bytes > 100 {
			if v := s.Victim(idle); v == hot {
				t.Fatal("what was used again was evicted by a scan")
			}
		}
	}
	if hot.queue != &s.main {
		t.Error("what was used again is not in the main queue")
	}
}

func TestGhostsComeBackToMain(t *testing.T) {
	s := NewS3FIFO[uint64](10, 100)
	s.Add(item(1, 5))
	if v := s.Victim(idle); v == nil || v.Key != 1 {
		t.Fatal("nothing evicted")
	}
	again := item(1, 5)
	s.Add(again)
	if again.queue != &s.main {
		t.Error("its ghost was not known")
	}
	for k := range uint64(3 * minGhosts) {
		s.remember(1000 + k)
	}
	if len(s.ghosts) > minGhosts || len(s.ghostOrder) > minGhosts {
		t.Errorf("%d ghosts", len(s.ghosts))
	}
}

func TestBusyStays(t *testing.T) {
	for name, p := range map[string]Policy[uint64]{"s3fifo": NewS3FIFO[uint64](10, 10), "lru": &LRU[uint64]{}} {
		for k := range uint64(5) {
			p.Add(item(k, 5))
		}
		busy := func(k uint64) bool { return k != 3 }
		if v := p.Victim(busy); v == nil || v.Key != 3 {
			t.Errorf("%s: %+v", name, v)
		}
		if v := p.Victim(busy); v != nil {
			t.Errorf("%s: evicted %d, which is busy", name, v.Key)
		}
		if left := victims(p); len(left) != 4 {
			t.Errorf("%s: %d are left", name, len(left))
		}
	}
}

func TestSmallQueueIsBoundedInItemsToo(t *testing.T) {
	s := NewS3FIFO[uint64](1<<40, 100)
	for k := range uint64(50) {
		i := item(k, 0)
		s.main.push(i)
	}
	first := item(100, 0)
	s.Add(first)
	for k := range uint64(20) {
		s.Add(item(101+k, 0))
	}
	if v := s.Victim(idle); v != first {
		t.Error("files without bytes push others out")
	}
}

func TestLRU(t *testing.T) {
	l := &LRU[uint64]{}
	a, b, c := item(1, 1), item(2, 1), item(3, 1)
	l.Add(a)
	l.Add(b)
	l.Add(c)
	l.Use(a)
	l.Remove(b)
	if got := victims(l); len(got) != 2 || got[0] != 3 || got[1] != 1 {
		t.Errorf("order %v", got)
	}
}

// TestModel holds the sums of the queues against what was done, whatever it was.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewS3FIFO[uint64](rapid.Int64Range(1, 1000).Draw(t, "bytes"), rapid.IntRange(1, 50).Draw(t, "items"))
		live := map[uint64]*Item[uint64]{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				k := rapid.Uint64Range(0, 40).Draw(t, "key")
				if live[k] == nil {
					live[k] = item(k, rapid.Int64Range(0, 100).Draw(t, "size"))
					s.Add(live[k])
				}
			},
			"use": func(t *rapid.T) {
				if i := live[rapid.Uint64Range(0, 40).Draw(t, "key")]; i != nil {
					s.Use(i)
				}
			},
			"resize": func(t *rapid.T) {
				if i := live[rapid.Uint64Range(0, 40).Draw(t, "key")]; i != nil {
					s.Resize(i, rapid.Int64Range(-i.size, 100).Draw(t, "delta"))
				}
			},
			"remove": func(t *rapid.T) {
				k := rapid.Uint64Range(0, 40).Draw(t, "key")
				if i := live[k]; i != nil {
					s.Remove(i)
					delete(live, k)
				}
			},
			"victim": func(t *rapid.T) {
				odd := func(k uint64) bool { return k%2 == 1 }
				v := s.Victim(odd)
				even := false
				for k := range live {
					even = even || k%2 == 0
				}
				if (v != nil) != even || v != nil && live[v.Key] != v {
					t.Fatalf("victim %v, an even one was there: %t", v, even)
				}
				if v != nil {
					delete(live, v.Key)
				}
			},
			"": func(t *rapid.T) {
				var bytes int64
				for _, i := range live {
					bytes += i.size
				}
				n := 0
				s.Each(func(k uint64) { n++ })
				if got := s.small.bytes + s.main.bytes; got != bytes || n != len(live) || s.small.items+s.main.items != n {
					t.Fatalf("%d bytes of %d, %d items of %d", got, bytes, n, len(live))
				}
			},
		})
	})
}

// TestAgainstLRU is what the policy is for: no worse on a Zipf trace, much better on one that scans pollute.
func TestAgainstLRU(t *testing.T) {
	zipf := Zipf(7, 60_000, 20_000, 1.1)
	for name, trace := range map[string][]Request{"zipf": zipf, "scanned": Scanned(zipf, 1000, 1000)} {
		const budget = 4 << 30
		fifo := Simulate(NewS3FIFO[struct{}](budget, len(trace)), budget, trace)
		lru := Simulate(&LRU[struct{}]{}, budget, trace)
		t.Logf("%s: S3-FIFO %+v, LRU %+v", name, fifo, lru)
		if fifo.Hits < lru.Hits || fifo.Bytes < lru.Bytes || lru.Hits < 0.05 || fifo.Hits > 0.99 {
			t.Errorf("%s: S3-FIFO %+v, LRU %+v", name, fifo, lru)
		}
	}
}
