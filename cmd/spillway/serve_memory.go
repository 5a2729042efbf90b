package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryTick and idleTicks: a server that nobody asks for anything for so many ticks is idle.
	memoryTick = 500 * time.Millisecond
	idleTicks  = 2

	// minAllocated is what is worth a garbage collection, in bytes allocated since the last one of these.
	minAllocated = 8 << 20
)

// returnMemory gives memory back to the system whenever the server has become idle, until ctx is done. The collector waits until the heap has doubled, and a
// server with thousands of idle clients would keep what they have left behind for as long as they are idle: the VM has other uses for it. served counts
// responses.
func returnMemory(ctx context.Context, served func() uint64) {
	tick := time.NewTicker(memoryTick)
	defer tick.Stop()
	var idle idleness
	var before uint64 // what had been allocated the last time: at first also what the start has left behind
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if idle.begins(served()) && allocated()-before >= minAllocated {
			runtime.GC() // what lies in a sync.Pool outlives one collection; net/http has a buffer of 32 KB for each response under way
			debug.FreeOSMemory()
			before = allocated()
		}
	}
}

// idleness finds out when a counter has come to rest.
type idleness struct {
	last  uint64
	quiet int // ticks since it changed, up to idleTicks
}

// begins takes the counter's value at a tick, and tells once after each change that nothing has happened for idleTicks.
func (i *idleness) begins(count uint64) bool {
	if count != i.last {
		i.last, i.quiet = count, 0
		return false
	}
	if i.quiet == idleTicks || count == 0 {
		return false
	}
	i.quiet++
	return i.quiet == idleTicks
}

// allocated is how many bytes the program has allocated on the heap, all in all.
func allocated() uint64 {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64()
}
