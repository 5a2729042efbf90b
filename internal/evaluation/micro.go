package evaluation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"spillway/internal/bench"
	"spillway/internal/dataset"
	"spillway/internal/lab"
)

// MicroSizes are the file sizes of the seed's figure 3, 4 KB to 200 MB, about evenly spaced on a logarithmic axis. Those that the paper's text names (64 KB,
// 3 MB, 25 MB) and the means of its data sets in MB of 10^6 bytes are among them.
func MicroSizes() []int64 {
	return []int64{4096, 16384, 65536, 288_600, 1_400_000, 3_000_000, 10_500_000, 25_000_000, 75_000_000, 200_000_000}
}

// Bounds of a pass of the micro bench.
const (
	microPassBytes    = 400e6 // more than one file of the largest size
	microPassRequests = 500   // of the smallest sizes
)

// MicroCases makes a file of each size below dir. A pass requests it as often as microPassRequests and microPassBytes allow, times scale.
func MicroCases(dir string, sizes []int64, scale float64) ([]Case, error) {
	var cases []Case
	for _, size := range sizes {
		if size < 1 {
			return nil, fmt.Errorf("sizes: %d; at least 1 byte is needed", size)
		}
		n := max(1, int(scale*min(microPassRequests, microPassBytes/float64(size))))
		c, err := SizeCases(dir, []int64{size}, n)
		if err != nil {
			return nil, err
		}
		cases = append(cases, c...)
	}
	return cases, nil
}

// TableFiles makes the three data sets of Table I below dir, or finds them there. scale is the part of their segments.
func TableFiles(ctx context.Context, dir string, scale float64, progress *bench.Progress) (*lab.Files, error) {
	files := &lab.Files{Dir: dir}
	for _, set := range dataset.Sets() {
		spec := dataset.Spec{Set: set.Name, Segments: set.Scaled(scale), Seed: 1}
		progress.Step("data set %s, %d segments", set.Name, spec.Segments)
		m, err := dataset.Generate(ctx, filepath.Join(dir, set.Name), spec, func(p dataset.Progress) {
			progress.Update("%d segments", p.Segments)
		})
		if err != nil {
			return nil, err
		}
		files.Sets = append(files.Sets, lab.Set{Name: set.Name, Manifest: m})
	}
	progress.Done("")
	return files, nil
}

// RunConcurrency requests a file over several numbers of connections at the same time, one after the other. A pass has about as many requests with each.
func RunConcurrency(ctx context.Context, opts lab.Options, plan Plan, numbers []int, requests int, progress *bench.Progress) (report *bench.Report, err error) {
	if err := checkConcurrency(&plan, numbers); err != nil {
		return nil, err
	}
	err = inLabFor(ctx, opts, plan.Arms, progress, func(l *lab.Lab) error {
		env, err := environment(l)
		if err != nil {
			return err
		}
		report = bench.NewReport("concurrency", env)
		report.Rows, err = measureConcurrency(ctx, l, plan, numbers, requests, progress)
		return err
	})
	return report, err
}

// checkConcurrency tells whether a plan can be measured with these numbers of connections, and makes room for them.
func checkConcurrency(plan *Plan, numbers []int) error {
	if len(plan.Cases) != 1 || len(plan.Cases[0].Targets) == 0 || len(numbers) == 0 {
		return errors.New("concurrency: one case and a number of connections are needed")
	}
	for i, n := range numbers {
		if n < 1 || slices.Contains(numbers[:i], n) {
			return fmt.Errorf("concurrency: %d connections; each number is at least 1, and there once", n)
		}
	}
	plan.Connections = 1
	return errors.Join(plan.Validate(), raiseFileLimit(uint64(slices.Max(numbers)+spareFiles)))
}

// minEach is how many requests a connection has at least: with one alone the figure of many connections would be that of their first requests, and of nothing else.
const minEach = 3

// measureConcurrency measures the plan's one case with each number of connections.
func measureConcurrency(ctx context.Context, s site, plan Plan, numbers []int, requests int, progress *bench.Progress) (all []bench.Row, err error) {
	var errs []error
	for _, n := range numbers {
		p := plan
		p.Connections = n
		p.Cases = []Case{{Name: connectionsName(n)}}
		for range max(minEach, requests/n) {
			p.Cases[0].Targets = append(p.Cases[0].Targets, plan.Cases[0].Targets[0])
		}
		rows, err := measure(ctx, s, p, progress)
		for i := range rows {
			rows[i].Connections = n
		}
		all, errs = append(all, rows...), append(errs, err)
		if len(rows) < len(plan.Arms) {
			break
		}
	}
	return all, errors.Join(errs...)
}

func connectionsName(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// inLabFor is inLab, with all in the lab that the arms need.
func inLabFor(ctx context.Context, opts lab.Options, arms []lab.Arm, progress *bench.Progress, fn func(*lab.Lab) error) (err error) {
	opts.InMemory = slices.Contains(arms, lab.VMTmpfs)
	opts.Virtiofs = slices.Contains(arms, lab.VMVirtiofs)
	opts.Peers = slices.ContainsFunc(arms, lab.Arm.IsPeer)
	if slices.Contains(arms, lab.LeaseCache) {
		// Beside the files: a page cache of another file system is another arm.
		if opts.CacheDir, err = os.MkdirTemp(filepath.Dir(filepath.Clean(opts.Files)), "lease-cache-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(opts.CacheDir)) }()
	}
	return inLab(ctx, opts, progress, fn)
}
