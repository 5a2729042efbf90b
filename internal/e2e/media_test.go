package e2e

import (
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"spillway/internal/lab"
)

// poolBytes is enough for every file of a test to be another part of the pool.
const poolBytes = 80 << 20

// pool is content in which no two places are alike.
var pool = sync.OnceValue(func() []byte {
	b := make([]byte, poolBytes)
	random := rand.NewChaCha8([32]byte([]byte("the same content in every run...")))
	_, _ = random.Read(b) // never fails
	return b
})

// Files of a test, in bytes. bigFile is so large that no socket buffers hold a noticeable part of it.
var (
	smallSizes = map[string]int{
		"manifest.mpd":      1200,
		"4k.m4s":            4 << 10,
		"64k.m4s":           64 << 10,
		"tablet/1 (1).m4s":  288_600,
		"smarttv/seg-1.m4s": 1_400_003,
		"10m.mp4":           10_500_000,
	}
	bigFile  = "big.mp4"
	bigBytes = 50_000_000
)

// media is a directory of files to share.
type media struct {
	t     testing.TB
	dir   string
	files map[string][]byte // as written at first
	used  int               // bytes of the pool
}

// newMedia makes a directory with the small files.
func newMedia(t testing.TB) *media {
	t.Helper()
	m := &media{t: t, dir: t.TempDir(), files: map[string][]byte{}}
	if err := os.Chmod(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(smallSizes)) {
		m.add(name, smallSizes[name])
	}
	return m
}

// newBigMedia has bigFile besides the small files.
func newBigMedia(t testing.TB) *media {
	t.Helper()
	m := newMedia(t)
	m.add(bigFile, bigBytes)
	return m
}

// fresh is content that no other file of the test has.
func (m *media) fresh(size int) []byte {
	m.t.Helper()
	if m.used+size > poolBytes {
		m.t.Fatal("the pool is used up")
	}
	content := pool()[m.used : m.used+size : m.used+size]
	m.used += size
	return content
}

// add writes a new file.
func (m *media) add(name string, size int) []byte {
	m.t.Helper()
	content := m.fresh(size)
	file := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.files[name] = content
	return content
}

// names of the files, sorted.
func (m *media) names() []string { return slices.Sorted(maps.Keys(m.files)) }

// target is the request target of a file.
func target(name string) string { return (&url.URL{Path: lab.URLPath(name)}).EscapedPath() }
