package dataset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoEncoder says that there is no ffmpeg on this machine.
var ErrNoEncoder = errors.New("ffmpeg is not installed; on Debian: apt-get install --no-install-recommends ffmpeg")

// Film is a synthetic source that ffmpeg has built in.
type Film struct {
	Name   string
	source string // of the filter graph, without size and rate
}

// Films returns the sources: flat areas and text, fine detail that moves, and noise that no encoder predicts. Their segments differ in size accordingly.
func Films() []Film {
	return []Film{{"testcard", "testsrc2"}, {"fractal", "mandelbrot"}, {"cells", "life=ratio=0.2:mold=10:life_color=#c83232:death_color=#323232"}}
}

// Rung is one representation of an encoded film.
type Rung struct {
	Width, Height int // pixels
	BitsPerSecond int
}

// Ladder returns the rungs of an encoded film: bit rates and pictures of the three sets of Table I, the best first.
func Ladder() []Rung {
	var ladder []Rung
	for _, s := range Sets() {
		ladder = append(ladder, Rung{s.Width, s.Height, s.BitsPerSecond})
	}
	return ladder
}

// Encoding says how films are encoded.
type Encoding struct {
	Seconds        int // of each film
	SegmentSeconds int
}

// Validate tells whether ffmpeg can make something of it.
func (e Encoding) Validate() error {
	if e.SegmentSeconds < 1 || e.Seconds < e.SegmentSeconds {
		return fmt.Errorf("dataset: films of %d s in segments of %d s: a segment has at least 1 s, a film at least one segment", e.Seconds, e.SegmentSeconds)
	}
	return nil
}

// Encode makes a film in dir with ffmpeg: H.264 in each rung of the ladder with the same segment boundaries, one AAC track, and an MPD, which any DASH player
// plays. The directory is replaced. The bytes depend on the version of ffmpeg, unlike those of Generate.
func Encode(ctx context.Context, dir string, film Film, e Encoding) error {
	if err := e.Validate(); err != nil {
		return err
	}
	program, err := exec.LookPath("ffmpeg")
	if err != nil {
		return ErrNoEncoder
	}
	parent, name := filepath.Split(filepath.Clean(dir))
	if parent == "" {
		parent = "."
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(parent, "."+name+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	cmd := exec.CommandContext(ctx, program, encoderArgs(film, e)...)
	cmd.Dir = work
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("dataset: encode %s: %w\n%s", film.Name, err, strings.TrimSpace(output.String()))
	}
	if err := errors.Join(os.Chmod(work, 0o755), removeFilm(dir)); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// removeFilm removes an encoded film, and refuses to remove anything else.
func removeFilm(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); ext != ".mpd" && ext != ".m4s" {
			return fmt.Errorf("dataset: %s has %s, which is no part of an encoded film: choose another directory", dir, entry.Name())
		}
	}
	return os.RemoveAll(dir)
}

// encoderArgs are ffmpeg's arguments. Key frames are at the segments' boundaries only, or the rungs could not be switched between.
func encoderArgs(film Film, e Encoding) []string {
	best := Ladder()[0]
	separator := "="
	if strings.Contains(film.source, "=") {
		separator = ":"
	}
	args := []string{
		"-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-fflags", "+bitexact",
		"-f", "lavfi", "-i", fmt.Sprintf("%s%ssize=%dx%d:rate=%d", film.source, separator, best.Width, best.Height, framesPerSecond),
		"-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000",
		"-t", fmt.Sprint(e.Seconds), "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "96k",
	}
	for i, rung := range Ladder() {
		args = append(args, "-map", "0:v",
			fmt.Sprintf("-s:v:%d", i), fmt.Sprintf("%dx%d", rung.Width, rung.Height),
			fmt.Sprintf("-b:v:%d", i), fmt.Sprint(rung.BitsPerSecond),
			fmt.Sprintf("-maxrate:v:%d", i), fmt.Sprint(rung.BitsPerSecond*3/2),
			fmt.Sprintf("-bufsize:v:%d", i), fmt.Sprint(rung.BitsPerSecond*2))
	}
	return append(args, "-map", "1:a",
		"-g", fmt.Sprint(e.SegmentSeconds*framesPerSecond), "-keyint_min", fmt.Sprint(e.SegmentSeconds*framesPerSecond), "-sc_threshold", "0",
		"-flags", "+bitexact", "-f", "dash", "-seg_duration", fmt.Sprint(e.SegmentSeconds), "-use_template", "1", "-use_timeline", "1",
		"-adaptation_sets", "id=0,streams=v id=1,streams=a",
		"-init_seg_name", "init-$RepresentationID$.m4s", "-media_seg_name", "seg-$RepresentationID$-$Number%05d$.m4s", MPDName)
}
