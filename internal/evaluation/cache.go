package evaluation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// CachePlan says what to measure of copies: what a hit of a cache share costs beside the directory, and, in VMs, what memory the copies of two guests take.
type CachePlan struct {
	Hits     Plan    // its arms are lease and lease-cache, unless it has some
	Sets     []int64 // bytes of the working sets of two VMs; none are measured in namespaces, whose guests have no memory of their own
	Requests int     // of each VM, all rounds together
	Rounds   int
	Seed     uint64 // of the requests, which are the same in each arm
}

// Validate tells whether the plan can be measured.
func (p CachePlan) Validate() error {
	for _, set := range p.Sets {
		if set < setFileBytes {
			return fmt.Errorf("sets: %d bytes; a file has %d", set, setFileBytes)
		}
	}
	if p.Requests < p.Rounds {
		return fmt.Errorf("requests: %d; at least one in each of %d rounds is needed", p.Requests, p.Rounds)
	}
	return p.Hits.Validate()
}

// RunCache measures a plan: first the hits, of files below opts.Files, then each working set, which is made below its parent directory. The rows of the sets have
// Memory. A report can come together with an error, as in [Run].
func RunCache(ctx context.Context, opts lab.Options, plan CachePlan, progress *bench.Progress) (*bench.Report, error) {
	if plan.Hits.Arms == nil {
		plan.Hits.Arms = []lab.Arm{lab.Lease, lab.LeaseCache}
	}
	if opts.VM != lab.QEMU {
		plan.Sets = nil
	}
	plan.Hits.Rounds = plan.Rounds
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	var report *bench.Report
	err := inLabFor(ctx, opts, plan.Hits.Arms, progress, func(l *lab.Lab) error {
		env, err := environment(l)
		if err != nil {
			return err
		}
		report = bench.NewReport("cache", env)
		plan.Hits.prepare = func() error { return errors.Join(reread(l.Files), reread(filepath.Join(l.CacheDir, "data"))) }
		report.Rows, err = Measure(ctx, l, plan.Hits, progress)
		return err
	})
	if report == nil {
		return nil, err
	}
	errs := []error{err}
	for _, set := range plan.Sets {
		rows, err := runSet(ctx, opts, plan, set, progress)
		report.Rows = append(report.Rows, rows...)
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return report, errors.Join(errs...)
}

// reread makes the page cache have the files in a directory as reading brings them. Writing, which has filled the cache, can bring them in pages of other sizes, and the
// arms would differ in that.
func reread(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err = dropFile(f); err == nil {
			_, err = io.Copy(io.Discard, f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// setFileBytes is about the size of a file of a working set: that of the middle data set of the seed paper's Table I.
const setFileBytes = 1_400_000

// setTargets makes the files of a working set below dir. No two have the same size, so that no two have the same bytes.
func setTargets(dir string, bytes int64) ([]bench.Target, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var targets []bench.Target
	for i := range bytes / setFileBytes {
		size := setFileBytes + i
		name := fmt.Sprintf("%d.bin", size)
		sum, err := writeFile(filepath.Join(dir, name), size)
		if err != nil {
			return nil, err
		}
		targets = append(targets, bench.Target{Path: lab.URLPath(name), Bytes: size, SHA256: sum})
	}
	return targets, nil
}

// runSet measures a working set with two VMs that have a copy each, and with two that share the host's: each in a lab of its own, with empty caches.
func runSet(ctx context.Context, opts lab.Options, plan CachePlan, set int64, progress *bench.Progress) ([]bench.Row, error) {
	name := fmt.Sprintf("set of %d MiB", set>>20)
	progress.Step("%s: files", name)
	// One directory for each set: the guests are to see no others.
	opts.Files = filepath.Join(filepath.Dir(filepath.Clean(opts.Files)), fmt.Sprintf("working-set-%d", set))
	targets, err := setTargets(opts.Files, set)
	if err != nil {
		return nil, err
	}
	opts.SecondGuest = true
	var rows []bench.Row
	for _, arms := range [][2]lab.Arm{{lab.VM, lab.SecondVM}, {lab.Lease, lab.Second}} {
		if err := dropPages(opts.Files, targets); err != nil {
			return rows, err
		}
		err := inLab(ctx, opts, progress, func(l *lab.Lab) error {
			m := memoryMeasurement{lab: l, plan: plan, arms: arms, targets: targets, progress: progress, name: name}
			row, err := m.run(ctx)
			if row != nil {
				rows = append(rows, *row)
			}
			return err
		})
		if err != nil {
			return rows, fmt.Errorf("%s, %s: %w", name, arms[0], err)
		}
	}
	return rows, nil
}
