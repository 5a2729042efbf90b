package main

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestIdleness(t *testing.T) {
	var idle idleness
	for i, step := range []struct {
		count uint64
		want  bool
	}{
		{0, false}, {0, false}, {0, false}, // nobody has asked for anything yet
		{5, false}, {5, false}, {5, true}, {5, false}, {5, false}, // once
		{6, false}, {7, false}, {7, false}, {8, false}, {8, false}, {8, true}, {8, false},
	} {
		if got := idle.begins(step.count); got != step.want {
			t.Errorf("step %d, count %d: idleness begins: %v, want %v", i, step.count, got, step.want)
		}
	}
}

// TestReturnMemory: what idle clients have left behind goes back to the system.
func TestReturnMemory(t *testing.T) {
	const size = 64 << 20
	var served atomic.Uint64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); returnMemory(ctx, served.Load) }()
	defer func() { cancel(); <-done }()

	served.Add(1)
	block := make([]byte, size)
	for i := range block {
		block[i] = 1
	}
	held := mapped()
	runtime.KeepAlive(block)
	for deadline := time.Now().Add(time.Minute); mapped() > held-size/2; time.Sleep(memoryTick / 10) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still mapped of %d with %d of garbage", mapped(), held, size)
		}
	}
}

// mapped is what the heap has from the system, in bytes.
func mapped() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys - m.HeapReleased
}
