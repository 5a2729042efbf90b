package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway/internal/wire"
)

// version is what the model knows of one version of a file.
type version struct {
	path    string
	content string
	mtimeNs int64
}

func (v version) ref() wire.FileRef { return ref(v.path, len(v.content), v.mtimeNs) }

type heldFile struct {
	file    *File
	version version
}

// TestModel runs random histories of files and guests. What must hold is simple: a File has the bytes of the version that was asked
// for, until it is released; what is there is found; a refusal has the reason that fits; and the limit holds.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "share-model-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		m := &model{dir: dir, max: rapid.IntRange(1, 4).Draw(t, "max"), present: make(map[string]version)}
		if m.share, err = Open(testShare, dir, Options{MaxOpenFiles: m.max}); err != nil {
			t.Fatal(err)
		}
		defer m.share.Close()
		t.Repeat(map[string]func(*rapid.T){
			"replace": m.replace,
			"append":  m.append,
			"remove":  m.remove,
			"acquire": m.acquire,
			"release": m.release,
			"":        m.check,
		})
		for len(m.held) > 0 {
			m.drop(len(m.held) - 1)
		}
		m.check(t)
		m.share.Close()
		if n := m.openNow(t); n != 0 {
			t.Fatalf("%d files open at the end", n)
		}
	})
}

type model struct {
	share   *Share
	dir     string
	max     int
	clock   int64              // every version has a modification time of its own
	present map[string]version // by path
	all     []version          // present and past
	held    []heldFile
}

func (m *model) path(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d/e", "d/f"}).Draw(t, "path")
}

func (m *model) write(t *rapid.T, file string, v version) {
	full := filepath.Join(m.dir, file)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(v.content), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(full, time.Time{}, time.Unix(0, v.mtimeNs)); err != nil {
		t.Fatal(err)
	}
	m.all = append(m.all, v)
	m.present[v.path] = v
}

func (m *model) replace(t *rapid.T) {
	m.clock++
	v := version{path: m.path(t), content: fmt.Sprintf("version %d", m.clock), mtimeNs: m.clock}
	m.write(t, "new", v)
	full := filepath.Join(m.dir, v.path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.Rename(filepath.Join(m.dir, "new"), full)); err != nil {
		t.Fatal(err)
	}
}

func (m *model) append(t *rapid.T) {
	v, ok := m.present[m.path(t)]
	if !ok {
		t.Skip("no file")
	}
	m.clock++
	v.content, v.mtimeNs = v.content+"+", m.clock
	m.write(t, v.path, v)
}

func (m *model) remove(t *rapid.T) {
	path := m.path(t)
	if _, ok := m.present[path]; !ok {
		t.Skip("no file")
	}
	delete(m.present, path)
	if err := os.Remove(filepath.Join(m.dir, path)); err != nil {
		t.Fatal(err)
	}
}

func (m *model) acquire(t *rapid.T) {
	if len(m.all) == 0 {
		t.Skip("no version")
	}
	v := rapid.SampledFrom(m.all).Draw(t, "version")
	if current, ok := m.present[v.path]; ok && rapid.Bool().Draw(t, "current") {
		v = current
	}
	current, exists := m.present[v.path]
	f, err := m.share.Acquire(v.ref())
	switch {
	case err == nil:
		m.held = append(m.held, heldFile{f, v})
	case errors.Is(err, wire.ReasonLimit):
		if n := m.inUse(); n < m.max {
			t.Fatalf("%v, with %d of %d in use", err, n, m.max)
		}
	case exists && v == current:
		t.Fatalf("%v, but the file is there", err)
	case exists && !errors.Is(err, wire.ReasonChanged), !exists && !errors.Is(err, wire.ReasonNotFound):
		t.Fatalf("%v (exists: %t)", err, exists)
	}
}

func (m *model) release(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("none held")
	}
	m.drop(rapid.IntRange(0, len(m.held)-1).Draw(t, "held"))
}

func (m *model) drop(i int) {
	m.held[i].file.Release()
	m.held = append(m.held[:i], m.held[i+1:]...)
}

func (m *model) check(t *rapid.T) {
	for _, h := range m.held {
		p := make([]byte, h.file.Size())
		if n, err := h.file.ReadAt(p, 0); err != nil || string(p[:n]) != h.version.content {
			t.Fatalf("%+v reads %q, %v", h.version, p[:n], err)
		}
	}
	stats, open := m.share.Stats(), m.openNow(t)
	if inUse := m.inUse(); open > m.max || stats.Open != open || stats.Open-stats.Idle != inUse {
		t.Fatalf("%d files open, %+v, %d in use, %d allowed", open, stats, inUse, m.max)
	}
}

func (m *model) inUse() int {
	distinct := make(map[int]bool)
	for _, h := range m.held {
		distinct[h.file.Fd()] = true
	}
	return len(distinct)
}

func (m *model) openNow(t *rapid.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, m.dir+"/") {
			n++
		}
	}
	return n
}
