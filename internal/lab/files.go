package lab

import (
	"context"
	"fmt"
	"path"
	"path/filepath"

	"spillway/internal/dataset"
)

// Files are data sets below one directory, ready to be shared.
type Files struct {
	Dir  string
	Sets []Set
}

// Set is one data set of Files.
type Set struct {
	Name string
	*dataset.Manifest
}

// Paths of the set's segments beneath the shared directory.
func (s Set) Paths() []string {
	paths := make([]string, len(s.Segments))
	for i, f := range s.Segments {
		paths[i] = path.Join(s.Name, f.Name)
	}
	return paths
}

// demoSegments are the sizes of the demo's sets: small enough for a minute, large enough to have a spread.
var demoSegments = map[string]int{"smarttv": 6, "tablet": 24, "mobile": 60}

// demoSeed makes every machine's demo the same.
const demoSeed = 1

// DemoFiles generates small data sets in the shape of the seed's Table I below cache/media, or finds them there.
func DemoFiles(ctx context.Context, cache string, progress func(step string)) (*Files, error) {
	files := &Files{Dir: filepath.Join(cache, "media")}
	for _, set := range dataset.Sets() {
		n := demoSegments[set.Name]
		progress(fmt.Sprintf("data set %s: %d segments of %.1f MB on average", set.Name, n, float64(set.Bytes(1))/1e6))
		m, err := dataset.Generate(ctx, filepath.Join(files.Dir, set.Name), dataset.Spec{Set: set.Name, Segments: n, Seed: demoSeed}, nil)
		if err != nil {
			return nil, err
		}
		files.Sets = append(files.Sets, Set{set.Name, m})
	}
	return files, nil
}
