package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"spillway/internal/bench"
	"spillway/internal/dataset"
)

// allSets is the name for every data set.
const allSets = "all"

// datasetFlags are what the command can be told.
type datasetFlags struct {
	dir, set string
	segments int
	scale    float64
	seed     uint64
	encode   bool
	encoding dataset.Encoding
}

func datasetCommand() *cobra.Command {
	var flags datasetFlags
	cmd := &cobra.Command{
		Use:   "dataset",
		Short: "Generate a data set in the shape of the paper's Table I, or encode short films",
		Long: `Generate a data set in the shape of the paper's Table I: a DASH manifest, an initialization segment and media segments of the set's length, bit
rate, mean size and number. A player fetches and demultiplexes them and can show nothing: the samples are random, the same for the same seed.

With --encode, films that a player can show: synthetic sources, encoded by ffmpeg (Debian's package) in a ladder of the three sets' bit rates, each in a directory
of its own with a manifest.mpd, as for: ffplay DIR/fractal/manifest.mpd

  spillway dataset --dir /srv/media/tablet --set tablet --segments 20
  spillway dataset --dir /srv/media/films --encode`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(cmd); err != nil {
				return err
			}
			if flags.encode {
				return flags.films(cmd.Context(), cmd.OutOrStdout())
			}
			return flags.generate(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.dir, "dir", "", "where to, made if need be; films, and the sets of --set all, each in a directory of its name below it")
	f.StringVar(&flags.set, "set", "tablet", "smarttv, tablet, mobile, or all of them")
	f.IntVar(&flags.segments, "segments", 0, "how many; 0: as many as in Table I")
	f.Float64Var(&flags.scale, "scale", 1, "part of Table I's segments, as 0.1; their mean size stays")
	f.Uint64Var(&flags.seed, "seed", 1, "of the content")
	f.BoolVar(&flags.encode, "encode", false, "encode films from synthetic sources with ffmpeg instead")
	f.IntVar(&flags.encoding.Seconds, "seconds", 60, "of each film; with --encode")
	f.IntVar(&flags.encoding.SegmentSeconds, "segment-seconds", 4, "of each segment; with --encode")
	return cmd
}

// check refuses flags that contradict each other.
func (f *datasetFlags) check(cmd *cobra.Command) error {
	for name, encode := range map[string]bool{
		"set": false, "segments": false, "scale": false, "seed": false, "seconds": true, "segment-seconds": true,
	} {
		if cmd.Flags().Changed(name) && encode != f.encode {
			return fmt.Errorf("--%s does not go with what --encode=%v makes; see spillway dataset --help", name, f.encode)
		}
	}
	if err := checkScale(f.scale); err != nil {
		return err
	}
	if cmd.Flags().Changed("scale") && cmd.Flags().Changed("segments") {
		return fmt.Errorf("--scale and --segments both say how many segments: use one of them")
	}
	return f.needsDir()
}

// needsDir says what would be written: nobody finds hundreds of megabytes in his directory that he did not ask for.
func (f *datasetFlags) needsDir() error {
	switch {
	case f.dir != "":
		return nil
	case f.encode:
		return fmt.Errorf("say where to with --dir: %d films of %d s, as --dir /srv/media/films", len(dataset.Films()), f.encoding.Seconds)
	}
	sets := dataset.Sets()
	if f.set != allSets {
		set, err := dataset.Lookup(f.set)
		if err != nil {
			return fmt.Errorf("%w, or all", err)
		}
		sets = []dataset.Set{set}
	}
	segments, bytes := 0, int64(0)
	for _, s := range sets {
		n := f.segments
		if n == 0 {
			n = s.Scaled(f.scale)
		}
		segments, bytes = segments+n, bytes+s.Bytes(n)
	}
	return fmt.Errorf("say where to with --dir: %d segments of %s take %s (--segments N, --scale 0.1 for fewer)", segments, f.set, humanize.Bytes(uint64(bytes)))
}

// checkScale refuses what is no part of a set.
func checkScale(scale float64) error {
	if !(scale > 0 && scale <= 1) {
		return fmt.Errorf("--scale %g: use a part of the whole, above 0 and up to 1", scale)
	}
	return nil
}

// generate makes one set or all of them and prints their figures, in the paper's units.
func (f *datasetFlags) generate(ctx context.Context, out io.Writer) error {
	dirs := map[string]string{f.set: f.dir}
	if f.set == allSets {
		for _, s := range dataset.Sets() {
			dirs[s.Name] = filepath.Join(f.dir, s.Name)
		}
		delete(dirs, allSets)
	} else if _, err := dataset.Lookup(f.set); err != nil {
		return fmt.Errorf("%w, or all", err)
	}
	progress := bench.NewProgress(os.Stderr)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "set\tsegments\tof\tbit rate\taverage\tin all\t\n")
	for _, set := range dataset.Sets() {
		dir, wanted := dirs[set.Name]
		if !wanted {
			continue
		}
		spec := dataset.Spec{Set: set.Name, Segments: f.segments, Seed: f.seed}
		if f.segments == 0 {
			spec.Segments = set.Scaled(f.scale)
		}
		progress.Step("%s in %s", set.Name, dir)
		m, err := dataset.Generate(ctx, dir, spec, func(p dataset.Progress) {
			progress.Update("%d of %d segments", p.Segments, p.TotalSegments)
		})
		progress.Done("")
		if err != nil {
			return err
		}
		n, sum := len(m.Segments), float64(m.SegmentBytes())
		fmt.Fprintf(table, "%s\t%d segments\t%d s\t%g kbit/s\t%.1f KB\t%.1f MB\t\n",
			set.Name, n, set.SegmentSeconds, float64(set.BitsPerSecond)/1000, sum/float64(n)/(1<<10), sum/(1<<20))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "in %s; 1 MB is 1024 KB of 1024 bytes, as in the paper\n", f.dir)
	return err
}

// films encodes every film.
func (f *datasetFlags) films(ctx context.Context, out io.Writer) error {
	if err := f.encoding.Validate(); err != nil {
		return err
	}
	progress := bench.NewProgress(os.Stderr)
	for _, film := range dataset.Films() {
		dir := filepath.Join(f.dir, film.Name)
		progress.Step("film %s in %s", film.Name, dir)
		err := dataset.Encode(ctx, dir, film, f.encoding)
		progress.Done("")
		if err != nil {
			return err
		}
		fmt.Fprintln(out, filepath.Join(dir, dataset.MPDName))
	}
	return nil
}
