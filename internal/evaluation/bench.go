package evaluation

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/lab"
)

// Run brings a lab up, measures a plan in it and takes it down again. A report can come together with an error, see [Measure].
func Run(ctx context.Context, name string, opts lab.Options, plan Plan, progress *bench.Progress) (report *bench.Report, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	err = inLabFor(ctx, opts, plan.Arms, progress, func(l *lab.Lab) error {
		env, err := environment(l)
		if err != nil {
			return err
		}
		report = bench.NewReport(name, env)
		report.Rows, err = Measure(ctx, l, plan, progress)
		return err
	})
	return report, err
}

// inLab brings a lab up, calls fn and takes it down again. When fn fails the error has what ended in the lab by itself.
func inLab(ctx context.Context, opts lab.Options, progress *bench.Progress, fn func(*lab.Lab) error) (err error) {
	opts.Progress = func(step string) { progress.Step("lab: %s", step) }
	l, err := lab.Up(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		progress.Step("lab: down")
		err = errors.Join(err, l.Down())
		progress.Done("")
	}()
	if err := fn(l); err != nil {
		return errors.Join(err, l.Health())
	}
	return nil
}

// environment describes the machine and the lab.
func environment(l *lab.Lab) (bench.Env, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bench.Env{}, err
	}
	link := cmp.Or(l.Link.String(), "unshaped")
	return bench.Env{
		Accelerator: l.Accelerator(), Kernel: unix.ByteSliceToString(u.Release[:]), QEMU: l.QEMUVersion(), CPUs: runtime.NumCPU(),
		Link: link, Congestion: l.Congestion,
	}, nil
}

// SetCases are the data sets of a lab's files.
func SetCases(files *lab.Files) []Case {
	var cases []Case
	for _, set := range files.Sets {
		c := Case{Name: set.Name}
		for i, path := range set.Paths() {
			f := set.Segments[i]
			c.Targets = append(c.Targets, bench.Target{Path: lab.URLPath(path), Bytes: f.Size, SHA256: f.SHA256})
		}
		cases = append(cases, c)
	}
	return cases
}

// SizeCases makes a file of each size below dir and requests it n times a pass.
func SizeCases(dir string, sizes []int64, n int) ([]Case, error) {
	for _, size := range sizes {
		if size < 1 {
			return nil, fmt.Errorf("sizes: %d; at least 1 byte is needed", size)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var cases []Case
	for _, size := range sizes {
		name := fmt.Sprintf("%d.bin", size)
		sum, err := writeFile(filepath.Join(dir, name), size)
		if err != nil {
			return nil, err
		}
		c := Case{Name: SizeName(size)}
		for range n {
			c.Targets = append(c.Targets, bench.Target{Path: lab.URLPath(name), Bytes: size, SHA256: sum})
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// SizeName is a size for people: 4 KB is 4096 bytes, as in the seed's figure 3.
func SizeName(size int64) string {
	switch {
	case size >= 1_000_000 && size%100_000 == 0:
		return fmt.Sprintf("%g MB", float64(size)/1e6)
	case size%1024 == 0:
		return fmt.Sprintf("%d KB", size/1024)
	case size%100 == 0:
		return fmt.Sprintf("%g KB", float64(size)/1e3)
	}
	return fmt.Sprintf("%d B", size)
}

// writeFile makes a file of size bytes that depend on nothing but the size, and returns their SHA-256. One that is there already is left alone: a server may
// be sending it.
func writeFile(name string, size int64) (sum string, err error) {
	seed := [32]byte{}
	copy(seed[:], fmt.Sprint(size))
	if there, err := fileSum(name); err == nil {
		h := sha256.New()
		if _, err := io.CopyN(h, rand.NewChaCha8(seed), size); err != nil {
			return "", err
		}
		if sum := hex.EncodeToString(h.Sum(nil)); sum == there {
			return sum, nil
		}
	}
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8(seed), size); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// fileSum is the SHA-256 of a file that is there.
func fileSum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
