package evict

import "math/rand/v2"

// Request is one request of a trace.
type Request struct {
	Key   uint64
	Bytes int64
}

// Ratios are what a policy makes of a trace.
type Ratios struct {
	Requests int     `json:"requests"`
	Hits     float64 `json:"hit_ratio"`      // of the requests
	Bytes    float64 `json:"byte_hit_ratio"` // of the bytes
}

// Simulate runs a trace through a cache of maxBytes. The first half of the trace warms it and does not count.
func Simulate(p Policy[struct{}], maxBytes int64, trace []Request) Ratios {
	items := map[uint64]*Item[struct{}]{}
	var used, hits, hitBytes, bytes int64
	for n, r := range trace {
		counts := n >= len(trace)/2
		i := items[r.Key]
		if counts {
			bytes += r.Bytes
			if i != nil {
				hits++
				hitBytes += r.Bytes
			}
		}
		if i != nil {
			p.Use(i)
			continue
		}
		if r.Bytes > maxBytes {
			continue
		}
		for used+r.Bytes > maxBytes {
			v := p.Victim(func(struct{}) bool { return false })
			used -= v.Size()
			delete(items, v.Key)
		}
		i = &Item[struct{}]{Key: r.Key, size: r.Bytes}
		p.Add(i)
		items[r.Key] = i
		used += r.Bytes
	}
	counted := len(trace) - len(trace)/2
	return Ratios{Requests: counted, Hits: float64(hits) / float64(counted), Bytes: float64(hitBytes) / float64(max(bytes, 1))}
}

// Sizes of segments in bytes: those of the seed paper's Table I, at which all its figures are.
var segmentBytes = [...]int64{288_600, 1_400_000, 4_300_000, 10_500_000}

func sizeOf(key uint64) int64 {
	return segmentBytes[key*0x9E3779B97F4A7C15>>32%uint64(len(segmentBytes))]
}

// Zipf is a trace of n requests for files whose popularity falls with their rank to the power s.
func Zipf(seed uint64, n int, files uint64, s float64) []Request {
	random := rand.New(rand.NewPCG(seed, 1))
	z := rand.NewZipf(random, s, 1, files-1)
	trace := make([]Request, n)
	for i := range trace {
		key := z.Uint64()
		trace[i] = Request{key, sizeOf(key)}
	}
	return trace
}

// Scanned pollutes a trace: after each every requests a scan asks for length files, one after another, that nobody asks for again.
func Scanned(trace []Request, every, length int) []Request {
	const firstScanned = 1 << 40 // beyond all files of a trace
	var out []Request
	next := uint64(firstScanned)
	for i, r := range trace {
		out = append(out, r)
		if i%every == every-1 {
			for range length {
				out = append(out, Request{next, sizeOf(next)})
				next++
			}
		}
	}
	return out
}

// TotalBytes are those of the different files of a trace.
func TotalBytes(trace []Request) (total int64) {
	seen := map[uint64]bool{}
	for _, r := range trace {
		if !seen[r.Key] {
			seen[r.Key] = true
			total += r.Bytes
		}
	}
	return total
}
