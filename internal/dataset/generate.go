package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Progress is how far a generation has come.
type Progress struct {
	Segments, TotalSegments int
	Bytes, TotalBytes       int64
}

// Generate makes sure that dir holds the data set of spec, and returns its manifest. If it is there already (same specification, every
// file with its size), nothing is written. What an earlier Generate has left in dir of another data set is removed; files with other
// names are not touched.
//
// progress, if not nil, is called after each segment, never twice at once. When Generate fails or ctx ends, dir has no manifest.json, and
// the next call begins anew.
func Generate(ctx context.Context, dir string, spec Spec, progress func(Progress)) (*Manifest, error) {
	set, err := Lookup(spec.Set)
	if err != nil {
		return nil, err
	}
	if spec.Segments < 0 || spec.Segments > set.Segments {
		return nil, fmt.Errorf("dataset: %s has %d segments, not %d", set.Name, set.Segments, spec.Segments)
	}
	if spec.Segments == 0 {
		spec.Segments = set.Segments
	}
	old, err := Load(dir)
	if err == nil && old.Version == manifestVersion && old.Spec == spec && old.complete(dir) {
		return old, nil
	}
	if err := clear(dir); err != nil {
		return nil, err
	}
	m, err := generate(ctx, dir, set, spec, progress)
	if err != nil {
		return nil, fmt.Errorf("dataset: generate %s in %s: %w", set.Name, dir, err)
	}
	return m, nil
}

// clear prepares dir and removes what an earlier run has left there, the manifest first.
func clear(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, ManifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isOurs(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// isOurs says whether Generate gives a file such a name, the temporary ones of a run that was killed included.
func isOurs(name string) bool {
	for _, final := range []string{ManifestName, MPDName, InitName, "seg-[0-9][0-9][0-9][0-9][0-9].m4s"} {
		for _, pattern := range []string{final, "." + final + ".*"} {
			if match, _ := path.Match(pattern, name); match {
				return true
			}
		}
	}
	return false
}

func generate(ctx context.Context, dir string, set Set, spec Spec, progress func(Progress)) (*Manifest, error) {
	m := &Manifest{Version: manifestVersion, Spec: spec, Segments: make([]File, spec.Segments)}
	var err error
	if m.MPD, err = small(dir, MPDName, mpd(set, spec.Segments)); err != nil {
		return nil, err
	}
	if m.Init, err = small(dir, InitName, initSegment(set)); err != nil {
		return nil, err
	}
	sizes := segmentSizes(spec.Segments, set.Bytes(spec.Segments), rand.New(stream(spec, 0)))

	var mu sync.Mutex // guards done
	done := Progress{TotalSegments: spec.Segments, TotalBytes: set.Bytes(spec.Segments)}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, size := range sizes {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			file, err := writeSegment(dir, set, spec, i+1, size)
			if err != nil {
				return err
			}
			m.Segments[i] = file
			if progress != nil {
				mu.Lock()
				defer mu.Unlock()
				done.Segments++
				done.Bytes += size
				progress(done)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return m, m.write(dir)
}

func small(dir, name string, content []byte) (File, error) {
	sum := sha256.Sum256(content)
	return File{Name: name, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}, writeFile(dir, name, content)
}

// writeSegment writes the media segment of a number (from 1), of exactly size bytes.
func writeSegment(dir string, set Set, spec Spec, number int, size int64) (File, error) {
	hash := sha256.New()
	name := segmentName(number)
	err := replaceFile(dir, name, func(f *os.File) error {
		w := io.MultiWriter(f, hash)
		head := segmentHead(set, number, size)
		if _, err := w.Write(head); err != nil {
			return err
		}
		const bufferBytes = 256 << 10
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(stream(spec, number), size-int64(len(head))), make([]byte, bufferBytes))
		return err
	})
	return File{Name: name, Size: size, SHA256: hex.EncodeToString(hash.Sum(nil))}, err
}

// stream returns the random numbers of one segment; number 0 is the sizes'. The key is a hash of all that names the stream.
func stream(spec Spec, number int) *rand.ChaCha8 {
	key := append([]byte("spillway dataset\x00"), spec.Set...)
	key = binary.BigEndian.AppendUint64(key, spec.Seed)
	key = binary.BigEndian.AppendUint64(key, uint64(number))
	return rand.NewChaCha8(sha256.Sum256(key))
}
