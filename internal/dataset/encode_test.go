package dataset

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ffmpeg skips the test on a machine that has none.
func ffmpeg(t *testing.T) {
	t.Helper()
	for _, program := range []string{"ffmpeg", "ffprobe"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed (Debian's package ffmpeg)", program)
		}
	}
}

// TestEncode makes a short film of each source and has ffprobe, which is a player up to the screen, decode every rung of it.
func TestEncode(t *testing.T) {
	ffmpeg(t)
	for _, film := range Films() {
		t.Run(film.Name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), film.Name)
			for range 2 { // the second time over the first
				if err := Encode(t.Context(), dir, film, Encoding{Seconds: 2, SegmentSeconds: 1}); err != nil {
					t.Fatal(err)
				}
			}
			checkMPD(t, filepath.Join(dir, MPDName))
			var want []probedStream
			for i, r := range Ladder() {
				s := probedStream{Codec: "h264", Width: r.Width, Height: r.Height, Frames: "50"}
				if d := cmp.Diff([]probedStream{s}, probe(t, joined(t, dir, i), "-count_frames")); d != "" {
					t.Errorf("rung %d (-want +got):\n%s", i, d)
				}
				s.Frames = ""
				want = append(want, s)
			}
			want = append(want, probedStream{Codec: "aac"})
			if d := cmp.Diff(want, probe(t, filepath.Join(dir, MPDName))); d != "" {
				t.Errorf("streams of the MPD (-want +got):\n%s", d)
			}
		})
	}
}

// probedStream is what ffprobe says of one.
type probedStream struct {
	Codec  string `json:"codec_name"`
	Width  int
	Height int
	Frames string `json:"nb_read_frames"` // when they are counted, which decodes them
}

func probe(t *testing.T, file string, args ...string) []probedStream {
	t.Helper()
	args = append(args, "-v", "error", "-show_entries", "stream=codec_name,width,height,nb_read_frames", "-of", "json", file)
	cmd := exec.CommandContext(t.Context(), "ffprobe", args...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	var probed struct{ Streams []probedStream }
	if err == nil {
		err = json.Unmarshal(out, &probed)
	}
	if err != nil || complaints.Len() > 0 {
		t.Errorf("ffprobe %v: %v: %s", args, err, complaints.String())
	}
	return probed.Streams
}

// joined puts the segments of a rung into one file, as a player joins them.
func joined(t *testing.T, dir string, rung int) string {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("seg-%d-*.m4s", rung)))
	if err != nil || len(segments) != 2 {
		t.Fatalf("rung %d has the segments %v", rung, segments)
	}
	var film []byte
	for _, name := range append([]string{filepath.Join(dir, fmt.Sprintf("init-%d.m4s", rung))}, segments...) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		film = append(film, b...)
	}
	file := filepath.Join(t.TempDir(), "film.mp4")
	if err := os.WriteFile(file, film, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// checkMPD: the rungs are alternatives of one adaptation set, the sound is another.
func checkMPD(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Sets []struct {
			Type            string     `xml:"contentType,attr"`
			Representations []struct{} `xml:"Representation"`
		} `xml:"Period>AdaptationSet"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Sets) != 2 || doc.Sets[0].Type != "video" || len(doc.Sets[0].Representations) != len(Ladder()) ||
		doc.Sets[1].Type != "audio" || len(doc.Sets[1].Representations) != 1 {
		t.Errorf("the MPD has %+v:\n%s", doc.Sets, text)
	}
}

func TestEncodeRefuses(t *testing.T) {
	film := Films()[0]
	for _, e := range []Encoding{{Seconds: 0, SegmentSeconds: 1}, {Seconds: 4, SegmentSeconds: 5}, {Seconds: 4}} {
		if err := Encode(t.Context(), t.TempDir(), film, e); err == nil || !strings.Contains(err.Error(), "segment") {
			t.Errorf("%+v: %v", e, err)
		}
	}
	dir := t.TempDir()
	precious := filepath.Join(dir, "thesis.odt")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := removeFilm(dir); err == nil || !strings.Contains(err.Error(), "thesis.odt") {
		t.Errorf("a directory with other files: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	t.Setenv("PATH", dir)
	if err := Encode(t.Context(), dir, film, Encoding{Seconds: 2, SegmentSeconds: 2}); !errors.Is(err, ErrNoEncoder) ||
		!strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("without ffmpeg: %v", err)
	}
}

// TestEncodeFails: the error has ffmpeg's words, and nothing is left.
func TestEncodeFails(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "ffmpeg"), []byte("#!/bin/sh\necho no such filter >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	err := Encode(t.Context(), filepath.Join(dir, "film"), Films()[0], Encoding{Seconds: 2, SegmentSeconds: 2})
	if err == nil || !strings.Contains(err.Error(), "no such filter") {
		t.Errorf("the error is %v", err)
	}
	if left := listing(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Encode(ctx, filepath.Join(dir, "film"), Films()[0], Encoding{Seconds: 2, SegmentSeconds: 2}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
