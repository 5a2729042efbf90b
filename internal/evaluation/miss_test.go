package evaluation

import (
	"testing"

	"spillway/internal/bench"
)

func TestMiss(t *testing.T) {
	rows, err := Miss(t.Context(), t.TempDir(), 2, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(missSizes) {
		t.Fatalf("%d rows", len(rows))
	}
	for _, r := range rows {
		if r.Rounds != 2 || min(r.PlainFirstUs, r.CacheFirstUs, r.PlainMBPerS, r.CacheMBPerS) <= 0 {
			t.Errorf("%+v", r)
		}
	}
}

// TestMissBodies: both ways give the same bytes, and no file is an error.
func TestMissBodies(t *testing.T) {
	m, err := newMissRig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for name, get := range map[string]func() error{
		missPlain: func() error { _, _, err := m.plain(t.Context(), "300000/a", m.buf[:300_000]); return err },
		missCache: func() error { _, _, err := m.cached(t.Context(), "300000/a", m.buf[:300_000]); return err },
	} {
		clear(m.buf)
		if err := get(); err != nil || string(m.buf[:300_000]) != string(m.content[:300_000]) || m.buf[300_000] != 0 {
			t.Errorf("%s: %v, or another body", name, err)
		}
	}
	if _, _, err := m.plain(t.Context(), "none", m.buf[:10]); err == nil {
		t.Error("a body of an error page is one of a file")
	}
	if _, _, err := m.cached(t.Context(), "none", m.buf[:10]); err == nil {
		t.Error("a file that is not there")
	}
}
