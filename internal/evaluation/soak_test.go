package evaluation

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

func TestSoakValidate(t *testing.T) {
	good := SoakPlan{Duration: time.Second, Seed: 1, Clients: 1, Sizes: []int64{1}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*SoakPlan){
		"minutes: 0": func(p *SoakPlan) { p.Duration = 0 },
		"clients: 0": func(p *SoakPlan) { p.Clients = 0 },
		"seed: 0":    func(p *SoakPlan) { p.Seed = 0 },
		"sizes":      func(p *SoakPlan) { p.Sizes = nil },
	} {
		p := good
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestSoakJudges: a connection may be closed while something is killed, and a while after; never may it be silent.
func TestSoakJudges(t *testing.T) {
	s := &soak{counts: bench.Counts{}}
	c := &soakClient{soak: s, number: 3, arm: lab.Lease, doing: "test", began: time.Now()}
	var failed *SoakError
	if err := c.ended("f", 7, io.EOF); !errors.Is(err, errCut) || !errors.As(err, &failed) || failed.Got != 7 || failed.Client != 3 {
		t.Errorf("closed while nothing happened: %v", err)
	}
	s.breakBegins()
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if err := c.ended("f", 7, closed); err != nil {
			t.Errorf("closed by %v during a kill: %v", closed, err)
		}
	}
	if err := c.ended("f", 7, os.ErrDeadlineExceeded); !errors.Is(err, errHang) {
		t.Errorf("silence during a kill: %v", err)
	}
	if err := c.ended("f", 7, syscall.EHOSTUNREACH); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("another error during a kill: %v", err)
	}
	s.breakEnds()
	if err := c.ended("f", 7, io.EOF); err != nil {
		t.Errorf("closed after a kill: %v", err)
	}
	c.began = time.Now().Add(time.Minute)
	if err := c.ended("f", 7, io.EOF); !errors.Is(err, errCut) {
		t.Errorf("closed long after a kill: %v", err)
	}
	if got := s.counts["responses cut"]; got != 5 {
		t.Errorf("%d responses cut, want 5", got)
	}
}

// soakOptions are a lab for a test.
func soakOptions(t *testing.T) lab.Options {
	t.Helper()
	return lab.Options{Name: labName(), VM: lab.NetNS, Binary: buildBinary(t), Files: filepath.Join(t.TempDir(), "sizes")}
}

var soakPlan = SoakPlan{Duration: 2 * time.Second, Seed: 1, Clients: 6, Sizes: []int64{1, 4096, 288_600, 3_000_000}}

// TestRunSoak: a short one, and then each event once, under the same clients.
func TestRunSoak(t *testing.T) {
	opts, plan := soakOptions(t), soakPlan
	plan.Seed = rand.Uint64()>>1 + 1
	t.Logf("seed %d", plan.Seed)
	counts, err := RunSoak(t.Context(), opts, plan, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if counts["responses whole"] == 0 || counts["visits: keep-alive"] == 0 {
		t.Errorf("counts are %v", counts)
	}
	opts.Name = labName()
	s := &soak{plan: plan, progress: bench.NewProgress(nil), counts: bench.Counts{}}
	if err := s.makeFiles(opts.Files); err != nil {
		t.Fatal(err)
	}
	err = inLab(t.Context(), opts, bench.NewProgress(nil), func(l *lab.Lab) error {
		s.lab = l
		before, err := s.openFiles()
		if err != nil {
			return err
		}
		c := &soakClient{soak: s}
		for _, e := range soakEvents {
			for _, arm := range []lab.Arm{lab.Lease, lab.Offload} {
				if err := c.fetchAll(t.Context(), arm); err != nil {
					return err
				}
			}
			if err := e.run(s, t.Context(), rand.New(rand.NewPCG(1, 1))); err != nil {
				t.Errorf("%s: %v", e.name, err)
			}
		}
		return s.after(t.Context(), before)
	})
	if err != nil {
		t.Error(err)
	}
	if err := goneLab(opts.Name); err != nil {
		t.Error(err)
	}
}

// TestSoakFindsWrongByte: a soak whose clients are sent something else than they expect fails, names its seed, and leaves nothing.
func TestSoakFindsWrongByte(t *testing.T) {
	opts := soakOptions(t)
	s := &soak{plan: soakPlan, progress: bench.NewProgress(nil), counts: bench.Counts{}}
	if err := s.makeFiles(opts.Files); err != nil {
		t.Fatal(err)
	}
	last := s.files[len(s.files)-1].content
	last[len(last)-1] ^= 1
	s.plan.Duration, s.plan.Logs = time.Minute, filepath.Join(t.TempDir(), "logs")
	err := inLab(t.Context(), opts, bench.NewProgress(nil), func(l *lab.Lab) error {
		s.lab = l
		if err := s.run(t.Context()); err != nil {
			return s.failed(err)
		}
		return nil
	})
	if log, logErr := os.ReadFile(filepath.Join(s.plan.Logs, "host.log")); logErr != nil || !strings.Contains(err.Error(), s.plan.Logs) || len(log) == 0 {
		t.Errorf("the logs are not in %s: %v, %v", s.plan.Logs, logErr, err)
	}
	if err == nil || !strings.Contains(err.Error(), "seed 1") {
		t.Errorf("the seed is not in the error: %v", err)
	}
	var failed *SoakError
	if !errors.As(err, &failed) || !errors.Is(err, errWrongBytes) || !strings.Contains(failed.File, "3000000") {
		t.Errorf("the soak says %v", err)
	}
	if err := goneLab(opts.Name); err != nil {
		t.Error(err)
	}
}

// TestInterrupted: a bench that is interrupted at any time leaves no lab.
func TestInterrupted(t *testing.T) {
	opts := soakOptions(t)
	runs := map[string]func(ctx context.Context, opts lab.Options) error{
		"soak": func(ctx context.Context, opts lab.Options) error {
			plan := soakPlan
			plan.Duration = time.Hour
			_, err := RunSoak(ctx, opts, plan, bench.NewProgress(nil))
			return err
		},
		"idle": func(ctx context.Context, opts lab.Options) error {
			_, err := RunIdle(ctx, opts, IdlePlan{Connections: 100, Window: 1, Size: 100_000}, bench.NewProgress(nil))
			return err
		},
	}
	for name, run := range runs {
		for _, after := range []time.Duration{10 * time.Millisecond, 1500 * time.Millisecond} {
			opts.Name = labName()
			ctx, cancel := context.WithTimeout(t.Context(), after)
			if err := run(ctx, opts); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s, interrupted after %v: %v", name, after, err)
			}
			cancel()
			if err := goneLab(opts.Name); err != nil {
				t.Errorf("%s, interrupted after %v: %v", name, after, err)
			}
		}
	}
}
