package evaluation

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

func TestCachePlan(t *testing.T) {
	good := CachePlan{Hits: Plan{Arms: []lab.Arm{lab.Lease, lab.LeaseCache}, Rounds: 2, Connections: 1}, Sets: []int64{1 << 30}, Requests: 4, Rounds: 2}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*CachePlan){
		"sets":     func(p *CachePlan) { p.Sets = []int64{1 << 30, 1000} },
		"requests": func(p *CachePlan) { p.Requests = 1 },
		"rounds":   func(p *CachePlan) { p.Hits.Rounds = 0 },
	} {
		p := good
		if change(&p); p.Validate() == nil || !strings.Contains(p.Validate().Error(), want) {
			t.Errorf("%s: %v", want, p.Validate())
		}
	}
}

// TestPopular: requests are those of the seed, some files are asked for more than others, and guests agree about which.
func TestPopular(t *testing.T) {
	targets := make([]bench.Target, 100)
	for i := range targets {
		targets[i].Bytes = int64(i)
	}
	const n = 5000
	first, again, second, other := popular(targets, n, 1, 0), popular(targets, n, 1, 0), popular(targets, n, 1, 1), popular(targets, n, 2, 0)
	if !slices.Equal(first, again) || slices.Equal(first, second) {
		t.Error("requests are not those of seed and guest")
	}
	favourite := func(trace []bench.Target) int64 {
		counts := make([]int, len(targets))
		for _, r := range trace {
			counts[r.Bytes]++
		}
		most := slices.Max(counts)
		if most < n/10 {
			t.Errorf("the favourite is asked for %d times", most)
		}
		return int64(slices.Index(counts, most))
	}
	if favourite(first) != favourite(second) || favourite(first) == favourite(other) {
		t.Error("the guests' favourites differ, or those of seeds do not")
	}
}

// TestCachedBytes: the page cache has what was read, and not what was dropped.
func TestCachedBytes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	targets, err := setTargets(dir, 3*setFileBytes)
	if err != nil || len(targets) != 3 || targets[0].SHA256 == targets[1].SHA256 {
		t.Fatalf("%+v, %v", targets, err)
	}
	if err := dropPages(dir, targets); err != nil {
		t.Fatal(err)
	}
	if n, err := cachedBytes(dir, targets); err != nil || n != 0 {
		t.Skipf("%d bytes after the drop, %v: a file system in memory, or a kernel without cachestat", n, err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, lab.SharedFile(targets[1].Path))); err != nil {
		t.Fatal(err)
	}
	if n, err := cachedBytes(dir, targets); err != nil || n < targets[1].Bytes || n > targets[1].Bytes+1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestRunCacheHits: in namespaces there are hits only, each of both ways by the host, and what was made for the cache goes.
func TestRunCacheHits(t *testing.T) {
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	cases, err := SizeCases(files, []int64{300_000}, 3)
	if err != nil {
		t.Fatal(err)
	}
	plan := CachePlan{Hits: Plan{Cases: cases, Connections: 1}, Sets: []int64{16 << 20}, Requests: 2, Rounds: 2}
	opts := lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: files}
	report, err := RunCache(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) != 2 {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, arm := range []lab.Arm{lab.Lease, lab.LeaseCache} {
		r := report.Rows[i]
		if r.Arm != string(arm) || r.N != 6 || r.Wrong != 0 || (r.ToLease != nil) != (arm == lab.LeaseCache) {
			t.Errorf("%+v", r)
		}
		if in := r.ToLease; in != nil && (in.Low <= 0 || in.Median < in.Low || in.High < in.Median) {
			t.Errorf("%+v", in)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
