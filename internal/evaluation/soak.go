package evaluation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// SoakPlan says how long and how hard to try to make a byte wrong.
type SoakPlan struct {
	Duration time.Duration
	Seed     uint64 // of everything that is decided at random
	Clients  int    // at the same time
	Sizes    []int64
	Logs     string // where the lab's logs are kept when the soak fails; empty: their ends are in the error
}

// Validate tells whether the plan can be carried out.
func (p SoakPlan) Validate() error {
	switch {
	case p.Duration <= 0:
		return fmt.Errorf("minutes: %v; more than 0 is needed", p.Duration.Minutes())
	case p.Clients < 1:
		return fmt.Errorf("clients: %d; at least 1 is needed", p.Clients)
	case p.Seed == 0:
		return errors.New("seed: 0 is none; use another number")
	case len(p.Sizes) == 0:
		return errors.New("sizes: at least one is needed")
	}
	return nil
}

// soakArms are the arms that a soak uses, those with more work more often.
var soakArms = []lab.Arm{lab.Lease, lab.Lease, lab.Lease, lab.Offload}

// RunSoak lets clients of all kinds use a lab while daemon, servers and channels come and go, and checks every byte. It returns how often everything
// happened, also with an error; a failure of a client is a *SoakError. After a soak that went well, nothing of it is left.
func RunSoak(ctx context.Context, opts lab.Options, plan SoakPlan, progress *bench.Progress) (counts bench.Counts, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	s := &soak{plan: plan, progress: progress, counts: bench.Counts{}}
	if err := s.makeFiles(opts.Files); err != nil {
		return nil, err
	}
	opts.Threshold = 0
	err = inLab(ctx, opts, progress, func(l *lab.Lab) error {
		s.lab = l
		if err := s.run(ctx); err != nil {
			return s.failed(err)
		}
		return nil
	})
	if err == nil {
		err = goneLab(opts.Name)
	}
	return s.counts, err
}

// failed tells what is needed to find out why.
func (s *soak) failed(err error) error {
	err = fmt.Errorf("seed %d: %w", s.plan.Seed, err)
	switch {
	case errors.Is(err, context.Canceled): // it did not fail
		return err
	case s.plan.Logs == "":
		return fmt.Errorf("%w\n%s", err, s.lab.LogTails())
	}
	if logErr := s.lab.SaveLogs(s.plan.Logs); logErr != nil {
		return errors.Join(err, logErr)
	}
	return fmt.Errorf("%w; the lab's logs are in %s", err, s.plan.Logs)
}

// SoakError is what a client met that must not be.
type SoakError struct {
	Client int // its number, which with the seed decides what it does
	Arm    lab.Arm
	Doing  string // the kind of visit
	File   string
	Got    int64 // bytes of the body that were right
	Err    error
}

func (e *SoakError) Error() string {
	return fmt.Sprintf("client %d, arm %s, %s: %s after %d bytes: %v", e.Client, e.Arm, e.Doing, e.File, e.Got, e.Err)
}

func (e *SoakError) Unwrap() error { return e.Err }

// soak is one in progress.
type soak struct {
	plan     SoakPlan
	lab      *lab.Lab
	progress *bench.Progress
	files    []soakFile

	mu       sync.Mutex // guards what follows
	counts   bench.Counts
	breaking int       // what may cut connections and is under way
	broke    time.Time // when the last of it was over
}

// soakFile is a file with what it holds.
type soakFile struct {
	target  string
	content []byte
}

func (s *soak) makeFiles(dir string) error {
	cases, err := SizeCases(dir, s.plan.Sizes, 1)
	if err != nil {
		return err
	}
	for i, size := range s.plan.Sizes {
		content, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%d.bin", size)))
		if err != nil {
			return err
		}
		s.files = append(s.files, soakFile{cases[i].Targets[0].Path, content})
	}
	return nil
}

func (s *soak) count(what string) {
	s.mu.Lock()
	s.counts[what]++
	s.mu.Unlock()
}

// run is the soak and what has to hold behind it.
func (s *soak) run(ctx context.Context) error {
	before, err := s.openFiles()
	if err != nil {
		return err
	}
	s.progress.Step("soak, seed %d, %v", s.plan.Seed, s.plan.Duration)
	if err := s.trouble(ctx); err != nil {
		return err
	}
	s.progress.Step("soak: what is left")
	return s.after(ctx, before)
}

// trouble runs clients and events for the plan's duration. The first error ends all.
func (s *soak) trouble(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	over, stop := context.WithTimeout(ctx, s.plan.Duration)
	defer stop()
	began := time.Now()
	var running sync.WaitGroup
	for i := range s.plan.Clients {
		c := &soakClient{soak: s, number: i, random: rand.New(rand.NewPCG(s.plan.Seed, uint64(i)+1))}
		running.Go(func() {
			for over.Err() == nil {
				if err := c.visit(ctx); err != nil && ctx.Err() == nil {
					fail(err)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(s.plan.Seed, 0))
	for over.Err() == nil {
		if pause(over, 100*time.Millisecond+time.Duration(random.Int64N(int64(1500*time.Millisecond)))) != nil {
			break
		}
		calm := time.Since(began)/s.calmTime()%2 == 0
		// An event is not interrupted by the end of the soak: the lab must be whole for what is checked then.
		if err := s.event(ctx, random, calm); err != nil && ctx.Err() == nil {
			fail(err)
		}
		s.progress.Update("%v, %s", time.Since(began).Round(time.Second), s.summary())
	}
	running.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return nil
}

// calmTime is how long nothing happens that may cut a connection, and then how long such things do. So what must not be cut is seen, too.
func (s *soak) calmTime() time.Duration {
	return min(30*time.Second, max(s.plan.Duration/4, time.Millisecond))
}

func (s *soak) summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d whole responses, %d cut", s.counts["responses whole"], s.counts["responses cut"])
}

// SoakCounts writes how often everything happened.
func SoakCounts(w io.Writer, counts bench.Counts) {
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(w, "%10d  %s\n", counts[what], what)
	}
}

// settleFiles is how many files more than at first a process may have open when all is over: pools fill with use.
const settleFiles = 64

// after checks that everything works and that nothing is left: no lease, no descriptor, and, when the daemon has stopped, no redirect.
func (s *soak) after(ctx context.Context, before map[string]int) error {
	for _, arm := range []lab.Arm{lab.Lease, lab.Offload} {
		if err := s.waitArm(ctx, arm); err != nil {
			return err
		}
		if err := s.noLeases(ctx, arm); err != nil {
			return err
		}
		c := &soakClient{soak: s, number: -1}
		if err := c.fetchAll(ctx, arm); err != nil {
			return fmt.Errorf("after all was over: %w", err)
		}
		if err := s.noLeases(ctx, arm); err != nil {
			return err
		}
	}
	if err := s.noHostLeases(ctx); err != nil {
		return err
	}
	var now map[string]int
	err := eventually(ctx, settleTimeout, func() (err error) {
		if now, err = s.openFiles(); err != nil {
			return err
		}
		for name, n := range now {
			if was, ok := before[name]; ok && n > was+settleFiles {
				return fmt.Errorf("%s has %d files open, and had %d before the soak", name, n, was)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.noRedirect()
}

// openFiles counts the descriptors of the lab's processes.
func (s *soak) openFiles() (map[string]int, error) {
	files := map[string]int{}
	for name, pid := range s.lab.PIDs() {
		u, err := threadsAndFiles(pid, s.lab.Files)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		files[name] = u.OpenFiles
	}
	return files, nil
}

// eventually calls f until it says nothing is wrong, for at most limit.
func eventually(ctx context.Context, limit time.Duration, f func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
