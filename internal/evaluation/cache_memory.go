package evaluation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// memoryMeasurement is one working set in two guests, in progress.
type memoryMeasurement struct {
	lab      *lab.Lab
	plan     CachePlan
	arms     [2]lab.Arm // of the first guest and of the second
	targets  []bench.Target
	progress *bench.Progress
	name     string
}

// run asks each guest for each file once, with its bytes checked, and then for files by their popularity, both guests at the same time. Caches are what they are
// at the end, reads are those of the timed passes.
func (m *memoryMeasurement) run(ctx context.Context) (*bench.Row, error) {
	before, err := m.caches(ctx)
	if err != nil {
		return nil, err
	}
	verified := &bench.Recorder{}
	m.progress.Step("%s, %s: checking every body", m.name, m.arms[0])
	if err := m.pass(ctx, [2][]bench.Target{m.targets, m.targets}, true, verified); err != nil {
		return nil, err
	}
	for _, arm := range m.arms {
		if _, err := settled(ctx, m.lab, arm); err != nil {
			return nil, err
		}
		if err := m.lab.ResetServerStats(ctx, arm); err != nil {
			return nil, err
		}
	}
	readBefore, err := m.reads()
	if err != nil {
		return nil, err
	}
	timed, rounds, err := m.timed(ctx)
	if err != nil {
		return nil, err
	}
	read, err := m.reads()
	if err != nil {
		return nil, err
	}
	after, err := m.caches(ctx)
	if err != nil {
		return nil, err
	}
	var doubts []error
	var sends uint64
	for _, arm := range m.arms {
		stats, err := settled(ctx, m.lab, arm)
		doubts = append(doubts, err)
		sends += stats.Counts.Sends
	}
	row := timed.Row(string(m.arms[0]), m.name)
	row.Wrong += verified.Wrong()
	row.Spread = timed.SpreadOf(rounds)
	row.Memory = m.memory(before, after, read.minus(readBefore), row.Bytes)
	doubts = append(doubts, append(verified.Errors(), timed.Errors()...)...)
	if m.arms[0] == lab.Lease && float64(sends) < minOffloaded*float64(row.N) {
		doubts = append(doubts, fmt.Errorf("the host sent only %d of %d responses", sends, row.N))
	}
	return &row, errors.Join(doubts...)
}

// timed asks for files by their popularity.
func (m *memoryMeasurement) timed(ctx context.Context) (*bench.Recorder, []bench.Round, error) {
	var traces [2][]bench.Target
	for i := range traces {
		traces[i] = popular(m.targets, m.plan.Requests, m.plan.Seed, uint64(i))
	}
	rec := &bench.Recorder{}
	var rounds []bench.Round
	each := m.plan.Requests / m.plan.Rounds
	for round := range m.plan.Rounds {
		m.progress.Step("%s, %s: round %d of %d", m.name, m.arms[0], round+1, m.plan.Rounds)
		bytes, elapsed := rec.Bytes(), rec.Elapsed()
		part := [2][]bench.Target{traces[0][round*each : (round+1)*each], traces[1][round*each : (round+1)*each]}
		if err := m.pass(ctx, part, false, rec); err != nil {
			return nil, nil, err
		}
		rounds = append(rounds, bench.Round{Bytes: rec.Bytes() - bytes, Elapsed: rec.Elapsed() - elapsed})
	}
	return rec, rounds, nil
}

// zipfExponent of the popularity: that of the cache's other bench (bench evict).
const zipfExponent = 1.1

// popular draws n requests: the popularity of files falls with their rank. The guests (stream) agree about the ranks, and draw by themselves.
func popular(targets []bench.Target, n int, seed, stream uint64) []bench.Target {
	ranks := rand.New(rand.NewPCG(seed, 0)).Perm(len(targets))
	z := rand.NewZipf(rand.New(rand.NewPCG(seed, 1+stream)), zipfExponent, 1, uint64(len(targets)-1))
	trace := make([]bench.Target, n)
	for i := range trace {
		trace[i] = targets[ranks[z.Uint64()]]
	}
	return trace
}

// pass requests targets of both guests at the same time, over a new connection to each.
func (m *memoryMeasurement) pass(ctx context.Context, targets [2][]bench.Target, verify bool, into *bench.Recorder) error {
	var wait sync.WaitGroup
	var recorders [2]bench.Recorder
	var errs [2]error
	start := time.Now()
	for i, arm := range m.arms {
		wait.Go(func() {
			c := newClient(m.lab, arm)
			defer c.Close()
			errs[i] = bench.Pass(ctx, c, there(m.lab, arm, targets[i]), verify, &recorders[i], nil)
		})
	}
	wait.Wait()
	into.AddElapsed(time.Since(start))
	for i := range recorders {
		into.Merge(&recorders[i])
	}
	return errors.Join(errs[:]...)
}

// caches are what memory holds at a moment, bytes.
type caches struct {
	guests int64 // page caches of both guests: Cached of their /proc/meminfo, with what was there from the start
	given  int64 // their memory: MemTotal
	host   int64 // of the files, in the host's page cache
	qemu   int64 // resident memory of both QEMUs
}

func (m *memoryMeasurement) caches(ctx context.Context) (c caches, err error) {
	for _, arm := range m.arms {
		text, err := m.lab.GuestFile(ctx, arm, "/proc/meminfo")
		if err != nil {
			return c, err
		}
		for name, into := range map[string]*int64{"Cached": &c.guests, "MemTotal": &c.given} {
			kib, err := numberOf(string(text), name)
			if err != nil {
				return c, fmt.Errorf("the guest's meminfo: %w", err)
			}
			*into += kib << 10
		}
	}
	for _, pid := range m.qemus() {
		u, err := processUsage(pid, m.lab.Files)
		if err != nil {
			return c, err
		}
		c.qemu += u.RSSBytes
	}
	c.host, err = cachedBytes(m.lab.Files, m.targets)
	return c, err
}

func (m *memoryMeasurement) qemus() []int {
	pids := m.lab.PIDs()
	return []int{pids[lab.QEMUProcess], pids[lab.SecondQEMUProcess]}
}

// numberOf finds "NAME: 123", as /proc has it.
func numberOf(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == name+":" {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("there is no %s", name)
}

// reads are bytes that processes have read since they began.
type reads struct {
	share int64 // by both QEMUs, by system calls: the share, and a little of tap and channels
	disk  int64 // by both QEMUs and the daemon, from a disk
}

func (r reads) minus(o reads) reads { return reads{r.share - o.share, r.disk - o.disk} }

func (m *memoryMeasurement) reads() (r reads, err error) {
	host := m.lab.PIDs()["host"]
	for _, pid := range append(m.qemus(), host) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)) // proc_pid_io(5)
		if err != nil {
			return r, err
		}
		calls, err := numberOf(string(text), "rchar")
		if err != nil {
			return r, err
		}
		disk, err := numberOf(string(text), "read_bytes")
		if err != nil {
			return r, err
		}
		if r.disk += disk; pid != host {
			r.share += calls
		}
	}
	return r, nil
}

// memory puts figures into a row. A hit is a byte that the cache had which the media are sent from: the guest's own, or, of an arm that shares it, the host's.
func (m *memoryMeasurement) memory(before, after caches, read reads, served int64) *bench.Memory {
	memory := &bench.Memory{
		GuestsBytes: after.given, GuestCacheBytes: max(after.guests-before.guests, 0), HostCacheBytes: after.host,
		QEMUBeforeBytes: before.qemu, QEMUBytes: after.qemu, ShareReadBytes: read.share, DiskReadBytes: read.disk,
	}
	for _, t := range m.targets {
		memory.MediaBytes += t.Bytes
	}
	missed := read.share
	if m.arms[0] == lab.Lease {
		missed = read.disk
	}
	if served > 0 {
		memory.HitRatio = rounded(max(0, 1-float64(missed)/float64(served)))
	}
	return memory
}

// cachedBytes counts what the page cache has of files below dir (cachestat(2), Linux 6.5).
func cachedBytes(dir string, targets []bench.Target) (sum int64, err error) {
	err = eachFile(dir, targets, func(f *os.File) error {
		var stat unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil { // an empty range is all of the file
			return os.NewSyscallError("cachestat", err)
		}
		sum += int64(stat.Cache) * int64(os.Getpagesize())
		return nil
	})
	return sum, err
}

// dropPages takes files below dir out of the page cache.
func dropPages(dir string, targets []bench.Target) error {
	return eachFile(dir, targets, dropFile)
}

func dropFile(f *os.File) error {
	if err := f.Sync(); err != nil { // what is not written yet cannot be dropped
		return err
	}
	return os.NewSyscallError("fadvise", unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func eachFile(dir string, targets []bench.Target, fn func(*os.File) error) error {
	for _, t := range targets {
		f, err := os.Open(filepath.Join(dir, lab.SharedFile(t.Path)))
		if err != nil {
			return err
		}
		err = fn(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}
