package dataset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func generated(t *testing.T, dir string, spec Spec) *Manifest {
	t.Helper()
	m, err := Generate(t.Context(), dir, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestGeneratedFilesAreAsListed(t *testing.T) {
	dir := t.TempDir()
	var last Progress
	m, err := Generate(t.Context(), dir, Spec{Set: "mobile", Segments: 20, Seed: 7}, func(p Progress) {
		if p.Segments != last.Segments+1 || p.Bytes <= last.Bytes {
			t.Errorf("progress went from %+v to %+v", last, p)
		}
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Sets()[2].Bytes(20)
	if got := (Progress{20, 20, want, want}); last != got {
		t.Errorf("the last progress is %+v, want %+v", last, got)
	}
	if m.SegmentBytes() != want {
		t.Errorf("the segments have %d bytes, want %d", m.SegmentBytes(), want)
	}
	blocks := map[[64]byte]string{}
	names := []string{ManifestName}
	for _, f := range m.Files() {
		names = append(names, f.Name)
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if int64(len(b)) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s: %d bytes with sum %x, listed as %+v", f.Name, len(b), sum, f)
		}
		for at := 4096; at+64 <= len(b); at += 4096 { // behind the boxes
			block := [64]byte(b[at:])
			where := fmt.Sprintf("%s at %d", f.Name, at)
			if other, ok := blocks[block]; ok {
				t.Fatalf("%s is the same as %s", where, other)
			}
			blocks[block] = where
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(names, listing(t, dir)); diff != "" {
		t.Errorf("files (-listed +there):\n%s", diff)
	}
	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, loaded); diff != "" {
		t.Errorf("manifest (-returned +written):\n%s", diff)
	}
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestBytesAreStable pins the bytes of a specification. When it must change, manifestVersion must, too.
func TestBytesAreStable(t *testing.T) {
	m := generated(t, t.TempDir(), Spec{Set: "mobile", Segments: 2, Seed: 1})
	want := &Manifest{
		Version: 2,
		Spec:    Spec{Set: "mobile", Segments: 2, Seed: 1},
		MPD:     File{MPDName, 620, "96442a9cb7ef332335f9fa1506e4409a9af5a864c7d90475960b3f7962464064"},
		Init:    File{InitName, 648, "4c5f903728bfbbf48792a672ee0aa60cbba90d1b4d622e52166c16984b4623bb"},
		Segments: []File{
			{"seg-00001.m4s", 430_490, "0731f8261a0728d4fa4a5d1720bc6d8c4f3dc89241107f10b95d4b2dc3c90335"},
			{"seg-00002.m4s", 160_562, "672dc838a1a6dd1bf8fbb7090a8348a1b7a856727dfd2d487451dd038e4acd69"},
		},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSeedsAndSetsDiffer(t *testing.T) {
	sums := map[string]string{}
	for _, spec := range []Spec{{"mobile", 3, 1}, {"mobile", 3, 2}, {"tablet", 3, 1}} {
		for _, f := range generated(t, t.TempDir(), spec).Segments {
			what := fmt.Sprint(spec, f.Name)
			if other, ok := sums[f.SHA256]; ok {
				t.Errorf("%s is the same as %s", what, other)
			}
			sums[f.SHA256] = what
		}
	}
}

func TestGenerateAgain(t *testing.T) {
	dir := t.TempDir()
	first := generated(t, dir, Spec{Set: "mobile", Segments: 4})
	foreign := filepath.Join(dir, "notes.txt")
	temporary := filepath.Join(dir, ".seg-00001.m4s.123")
	for _, path := range []string{foreign, temporary} {
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written := func() int { // segments that the same call writes
		t.Helper()
		n := 0
		m, err := Generate(t.Context(), dir, Spec{Set: "mobile", Segments: 4}, func(Progress) { n++ })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, m); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
		return n
	}
	if n := written(); n != 0 {
		t.Errorf("%d segments were written again", n)
	}
	if err := os.Truncate(filepath.Join(dir, first.Segments[2].Name), 10); err != nil {
		t.Fatal(err)
	}
	if n := written(); n != 4 {
		t.Errorf("after damage %d segments were written, want 4", n)
	}

	fewer := generated(t, dir, Spec{Set: "mobile", Segments: 2})
	want := []string{InitName, ManifestName, MPDName, "notes.txt", "seg-00001.m4s", "seg-00002.m4s"}
	if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
		t.Errorf("files after a change of the specification (-want +got):\n%s", diff)
	}
	if fewer.SegmentBytes() != Sets()[2].Bytes(2) {
		t.Errorf("two segments have %d bytes", fewer.SegmentBytes())
	}
}

func TestCancelledRunLeavesNoManifest(t *testing.T) {
	dir := t.TempDir()
	generated(t, dir, Spec{Set: "mobile", Segments: 2})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Generate(ctx, dir, Spec{Set: "mobile", Segments: 50}, func(Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Generate: %v", err)
	}
	if _, err := Load(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load: %v, want no manifest", err)
	}
	for _, name := range listing(t, dir) {
		if name[0] == '.' {
			t.Errorf("temporary file %s was left behind", name)
		}
	}
}

func TestRefusals(t *testing.T) {
	var unknown *UnknownSetError
	if _, err := Generate(t.Context(), t.TempDir(), Spec{Set: "cinema"}, nil); !errors.As(err, &unknown) || unknown.Name != "cinema" {
		t.Errorf("unknown set: %v", err)
	}
	for _, n := range []int{-1, 876} {
		if _, err := Generate(t.Context(), t.TempDir(), Spec{Set: "mobile", Segments: n}, nil); err == nil {
			t.Errorf("%d segments were accepted", n)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ManifestName), []byte(`{"mpd":{"name":"../x"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a manifest with a file outside its directory was loaded")
	}
}

// TestTable1: the figures of the paper's table, as it rounds them, of what is generated.
func TestTable1(t *testing.T) {
	type column struct {
		seconds           int
		quality           string
		segments          int
		average, allBytes string
	}
	want := map[string]column{
		"smarttv": {15, "6.0 Mbps", 351, "10.5 MB", "3.6 GB"},
		"tablet":  {10, "1.2 Mbps", 526, "1.4 MB", "729.5 MB"},
		"mobile":  {6, "400 kbps", 875, "288.6 KB", "246.6 MB"},
	}
	got := map[string]column{}
	for _, set := range Sets() {
		var sum int64
		for _, size := range segmentSizes(set.Segments, set.Bytes(set.Segments), rand.New(stream(Spec{Set: set.Name}, 0))) {
			sum += size
		}
		average := float64(sum) / float64(set.Segments)
		c := column{set.SegmentSeconds, fmt.Sprintf("%.1f Mbps", float64(set.BitsPerSecond)/1e6), set.Segments,
			fmt.Sprintf("%.1f MB", average/(1<<20)), fmt.Sprintf("%.1f MB", float64(sum)/(1<<20))}
		if set.BitsPerSecond < 1e6 {
			c.quality = fmt.Sprintf("%d kbps", set.BitsPerSecond/1000)
		}
		if average < 1<<20 {
			c.average = fmt.Sprintf("%.1f KB", average/(1<<10))
		}
		if sum > 1<<30 {
			c.allBytes = fmt.Sprintf("%.1f GB", float64(sum)/(1<<30))
		}
		got[set.Name] = c
		// What the length and the bit rate of a segment make of it, but for a few percent.
		if share := average * 8 / float64(set.SegmentSeconds*set.BitsPerSecond); share < 0.96 || share > 1 {
			t.Errorf("%s: segments have %.3f of what their bit rate announces", set.Name, share)
		}
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(column{})); d != "" {
		t.Errorf("(-table +set):\n%s", d)
	}
}

func TestScaled(t *testing.T) {
	set := Sets()[0]
	for scale, want := range map[float64]int{1: 351, 0.1: 35, 0.0001: 1, 2: 351} {
		if got := set.Scaled(scale); got != want {
			t.Errorf("%g of %d segments are %d, want %d", scale, set.Segments, got, want)
		}
	}
}

// TestSizes checks the spread: the sum is exact for any number of segments, and the logarithms have the stated deviation.
func TestSizes(t *testing.T) {
	for _, set := range Sets() {
		for _, n := range []int{1, 2, 10, set.Segments} {
			sizes := segmentSizes(n, set.Bytes(n), rand.New(stream(Spec{Set: set.Name}, 0)))
			var sum int64
			var logs, squares float64
			for _, size := range sizes {
				sum += size
				l := math.Log(float64(size))
				logs += l
				squares += l * l
			}
			if sum != set.Bytes(n) {
				t.Errorf("%s, %d segments have %d bytes, want %d", set.Name, n, sum, set.Bytes(n))
			}
			if n < set.Segments {
				continue
			}
			sigma := math.Sqrt(squares/float64(n) - logs/float64(n)*logs/float64(n))
			if math.Abs(sigma-SizeSigma) > 0.03 {
				t.Errorf("%s: the sizes' logarithms deviate by %.3f, want %.2f", set.Name, sigma, SizeSigma)
			}
			if least := slices.Min(sizes); least < set.Bytes(1)/5 {
				t.Errorf("%s: the smallest segment has %d bytes", set.Name, least)
			}
		}
	}
}

func TestMPD(t *testing.T) {
	dir := t.TempDir()
	generated(t, dir, Spec{Set: "tablet", Segments: 3})
	b, err := os.ReadFile(filepath.Join(dir, MPDName))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		XMLName  xml.Name `xml:"urn:mpeg:dash:schema:mpd:2011 MPD"`
		Duration string   `xml:"mediaPresentationDuration,attr"`
		Template struct {
			Duration int    `xml:"duration,attr"`
			Start    int    `xml:"startNumber,attr"`
			Init     string `xml:"initialization,attr"`
			Media    string `xml:"media,attr"`
		} `xml:"Period>AdaptationSet>SegmentTemplate"`
		Representation struct {
			Bandwidth int    `xml:"bandwidth,attr"`
			Codecs    string `xml:"codecs,attr"`
		} `xml:"Period>AdaptationSet>Representation"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	r, tmpl := doc.Representation, doc.Template
	if doc.Duration != "PT30S" || tmpl.Duration != 10 || tmpl.Start != 1 || tmpl.Init != InitName || tmpl.Media != "seg-$Number%05d$.m4s" ||
		r.Bandwidth != 1_200_000 || r.Codecs != "avc1.42c028" {
		t.Errorf("MPD: %+v", doc)
	}
}

// BenchmarkSegment shows what bounds a generation: random numbers and SHA-256 (set against the disk's speed).
func BenchmarkSegment(b *testing.B) {
	const size = 10_500_000
	b.Run("content", func(b *testing.B) {
		b.SetBytes(size)
		buf := make([]byte, 256<<10)
		for b.Loop() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(stream(Spec{}, 1), size), buf)
		}
	})
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(size)
		data := bytes.Repeat([]byte{1}, size)
		for b.Loop() {
			sha256.Sum256(data)
		}
	})
}
