package evaluation

import (
	"strings"
	"testing"

	"spillway/internal/bench"
)

func TestMiss(t *testing.T) {
	report, err := Miss(t.Context(), t.TempDir(), 2, bench.NewProgress(nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) != 3*len(missSizes) {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, r := range report.Rows {
		size := int64(missSizes[i/3])
		if r.N != 2 || r.CaseBytes != size || r.Bytes != 2*size || r.FirstByteUs <= 0 || r.MedianUs < r.FirstByteUs || r.Spread == nil || r.Spread.Rounds != 2 {
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
		missCurl:  func() error { _, _, err := m.curl(t.Context(), "300000/a", m.buf[:300_000]); return err },
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
	if _, _, err := m.curl(t.Context(), "none", m.buf[:10]); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("curl takes an error page for a file: %v", err)
	}
	if _, _, err := m.cached(t.Context(), "none", m.buf[:10]); err == nil {
		t.Error("a file that is not there")
	}
}
