package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// targets are the files of a media directory, times over, in an order that seed decides.
func (m *media) targets(times int, seed uint64) []bench.Target {
	var all []bench.Target
	for _, name := range m.names() {
		sum := sha256.Sum256(m.files[name])
		for range times {
			all = append(all, bench.Target{Path: target(name), Bytes: int64(len(m.files[name])), SHA256: hex.EncodeToString(sum[:])})
		}
	}
	random := rand.New(rand.NewPCG(seed, seed))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// maxGap is the silence within a response that is a fault. Stalls from 150 ms on are reported: the machine may be busy.
const maxGap = time.Second

// load runs connections side by side, each with all targets in an order of its own, checks every SHA-256, and reports stalls.
func load(t *testing.T, l *lab.Lab, files *media, arm lab.Arm, connections, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	recorders := make([]bench.Recorder, connections)
	errs := make([]error, connections)
	gaps := make([]time.Duration, connections)
	dials := make([]int, connections)
	var running sync.WaitGroup
	for i := range connections {
		running.Go(func() {
			c := bench.NewClient(l.Addr(arm), bench.ClientOptions{Dial: l.DialContext})
			defer c.Close()
			errs[i] = bench.Pass(ctx, c, files.targets(times, uint64(i)), true, &recorders[i], func(r bench.Result) {
				gaps[i] = max(gaps[i], r.LongestGap)
			})
			dials[i] = c.Dials()
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range recorders {
		for _, err := range recorders[i].Errors() {
			t.Errorf("connection %d: %v", i, err)
		}
		if dials[i] != 1 {
			t.Errorf("connection %d: dialled %d times, want one connection for all requests", i, dials[i])
		}
		if gaps[i] > maxGap {
			t.Errorf("connection %d: a silence of %v within a response", i, gaps[i])
		}
		if n := recorders[i].Stalls(); n > 0 {
			t.Logf("connection %d: %d waits of more than %v, the longest %v", i, n, bench.DefaultStallAfter, gaps[i])
		}
	}
}

// TestMixedSizes: many requests of 1.2 KB to 10.5 MB on one connection, every one of them through the host.
func TestMixedSizes(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	const times = 40
	requests := uint64(times * len(files.files))
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			load(t, l, files, arm, 1, times)
			s := serverStats(t, l, arm)
			// A stray fallback is no fault: a response may find the one before it not acknowledged yet.
			if s.Counts.Sends < requests*9/10 {
				t.Errorf("the host has sent %d of %d responses; the others: %v", s.Counts.Sends, requests, s.Fallbacks)
			}
			if arm == lab.Lease && s.Counts.Handovers != 1 {
				t.Errorf("%d handovers of one connection, want 1", s.Counts.Handovers)
			}
			if arm == lab.Offload && s.Counts.Handbacks < requests*9/10 {
				t.Errorf("%d handbacks, want one for each of %d responses", s.Counts.Handbacks, requests)
			}
		})
	}
	noLeases(t, l)
}

// TestParallelConnections: twenty of them at a time.
func TestParallelConnections(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) { load(t, l, files, arm, 20, 1) })
	}
	noLeases(t, l)
}

// TestNoResets: on connections that live nobody sends a RST: not the client's kernel, which would mean that a segment came that does not
// belong to its connection, nor host or guest, whose RST would kill it.
func TestNoResets(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	check := watchResets(t, l)
	for _, arm := range offloading {
		for range 4 {
			load(t, l, files, arm, 1, 4) // 24 requests on one connection
		}
		for range 10 {
			fetch(t, l, arm, "64k.m4s", files.files["64k.m4s"])
		}
		load(t, l, files, arm, 4, 1)
	}
	noLeases(t, l)
	check()
}
