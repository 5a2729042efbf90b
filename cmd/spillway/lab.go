package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway/internal/config"
	"spillway/internal/lab"
)

func labCommand() *cobra.Command {
	return groupCommand(&cobra.Command{
		Use:   "lab",
		Short: "Run a whole deployment on this machine, to try it out",
	}, labUpCommand(), labDownCommand(), labMigrateCommand())
}

// labFlags are what every command that makes a lab can be told.
type labFlags struct {
	vm        string
	cache     string
	link      lab.Link
	threshold config.Threshold
	busyPoll  string
	cpus      int
}

func (f *labFlags) add(cmd *cobra.Command, defaultVM lab.Kind) {
	cmd.Flags().StringVar(&f.vm, "vm", string(defaultVM), "the guest: qemu (a real VM) or netns (a network namespace that stands for one)")
	cmd.Flags().StringVar(&f.cache, "cache", "build/cache", "where scripts/setup.sh has put the guest kernel, and where data sets are kept")
	cmd.Flags().IntVar(&f.cpus, "cpus", 1, "CPUs of the guest, each with a channel of its own")
	cmd.Flags().Var(&f.link, "link", `shape the client's link: a rate as 1gbit or 100mbit, a round-trip time as 40ms, or both and more as
40ms,1gbit,loss=0.1%,seed=7,queue=256KiB; default: as fast as it goes`)
	cmd.Flags().StringVar(&f.busyPoll, "busy-poll", "", "how long daemon and offloading servers ask the channel before sleeping; default: what suits the guest")
}

func (f *labFlags) addThreshold(cmd *cobra.Command, byDefault config.Threshold) {
	f.threshold = byDefault
	cmd.Flags().Var(&f.threshold, "threshold", "smallest response that a connection is handed over for, or auto")
}

// options of a lab, checked as far as that needs no lab.
func (f *labFlags) options(name string, files string, out io.Writer) (lab.Options, error) {
	if f.cpus < 1 {
		return lab.Options{}, fmt.Errorf("--cpus %d: a guest needs at least 1", f.cpus)
	}
	opts := lab.Options{
		Name: name, VM: lab.Kind(f.vm), Cache: f.cache, Files: files, Threshold: f.threshold, CPUs: f.cpus, Link: f.link,
		Progress: func(step string) { fmt.Fprintln(out, "lab:", step) },
	}
	if f.busyPoll != "" {
		d, err := time.ParseDuration(f.busyPoll)
		if err != nil {
			return opts, fmt.Errorf("--busy-poll: %w", err)
		}
		opts.BusyPoll = &d
	}
	return opts, opts.Validate()
}

func labUpCommand() *cobra.Command {
	var flags labFlags
	var name, files, origin string
	var secondGuest bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab, leave it running and print what to try",
		Long: `Start a lab, leave it running and print what to try: a client, the host daemon, and media servers in a VM, with all their traffic in network
namespaces of their own. It needs root, and for a VM what scripts/setup.sh installs. "spillway lab down" removes every trace.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			opts, err := flags.options(name, files, out)
			if err != nil {
				return err
			}
			opts.Detached, opts.SecondGuest = true, secondGuest
			if opts.Origin = origin; origin == ownOrigin {
				opts.Origin = lab.OwnOrigin()
			}
			if err := opts.Validate(); err != nil {
				return err
			}
			if files == "" && origin != "" && !strings.Contains(opts.Origin, "://") {
				files, opts.Files = origin, origin // so that all arms have the same
			}
			if files == "" {
				sets, err := lab.DemoFiles(cmd.Context(), flags.cache, opts.Progress)
				if err != nil {
					return err
				}
				opts.Files = sets.Dir
			}
			file, err := fileToTry(opts.Files, int64(opts.Threshold))
			if err != nil {
				return err
			}
			began := time.Now()
			l, err := lab.Up(cmd.Context(), opts)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "lab: up after %.1f s\n\n%s", time.Since(began).Seconds(), l.WhatToTry((&url.URL{Path: file}).EscapedPath()))
			return nil
		},
	}
	flags.add(cmd, lab.QEMU)
	flags.addThreshold(cmd, config.DefaultServe().Offload.Threshold)
	cmd.Flags().StringVar(&name, "name", "lab", "the lab's name; several can run side by side")
	cmd.Flags().StringVar(&files, "files", "", "directory to share; default: a small data set")
	cmd.Flags().StringVar(&origin, "origin", "", `fill the share of the offloading servers from here, into a cache on the host (docs/cache.md): a directory, a URL that the
lab's host reaches, or "own" for the lab's bare-metal server, which has --files; default: they share --files`)
	cmd.Flags().BoolVar(&secondGuest, "second-guest", false, "have one more guest, with one server, on the same host")
	return cmd
}

// ownOrigin is what --origin calls the lab's bare-metal server.
const ownOrigin = "own"

// fileToTry is the path beneath dir of a regular file to try a lab with: the first in lexical order that is large enough to cause a handover, or
// else the first.
func fileToTry(dir string, threshold int64) (string, error) {
	var first string
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("it is no directory")
	}
	if err != nil {
		return "", fmt.Errorf("--files %s: %w; name a directory with files to share, or leave --files out for a small data set", dir, cause(err))
	}
	err = fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		large := info.Size() >= threshold
		if large || first == "" {
			first = path
		}
		if large {
			return fs.SkipAll
		}
		return nil
	})
	if err == nil && first == "" {
		err = errors.New("there is no regular file to share; put one there, or leave --files out for a small data set")
	}
	if err != nil {
		return "", fmt.Errorf("--files %s: %w", dir, err)
	}
	return first, nil
}

// cause is what the system says of a path that the reader knows.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

func labDownCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove every trace of a lab",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := lab.Down(cmd.Context(), name, func(step string) { fmt.Fprintln(cmd.OutOrStdout(), "lab:", step) })
			if errors.Is(err, lab.ErrNoLab) {
				if names, _ := lab.List(); len(names) > 0 {
					return fmt.Errorf("%w; there are: %s", err, strings.Join(names, ", "))
				}
				return fmt.Errorf("%w; there is none at all", err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "lab", "the lab's name")
	return cmd
}
