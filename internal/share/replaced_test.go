package share

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestReplaced: who asks for a file that was replaced or removed gets the version that he knows, whole, and Replaced is told, once and not sooner than nameTTL.
func TestReplaced(t *testing.T) {
	for _, removed := range []bool{false, true} {
		var told []string
		s, dir := newShare(t, Options{Replaced: func(path string) { told = append(told, path) }})
		path := filepath.Join(dir, "f")
		write(t, path, "first", 1000)
		again := func(want int) {
			t.Helper()
			f := acquire(t, s, ref("f", 5, 1000))
			if got := content(t, f); got != "first" {
				t.Errorf("%q", got)
			}
			f.Release()
			if len(told) != want {
				t.Errorf("Replaced was told of %q, want %d", told, want)
			}
		}
		passes := func() { // the time, without waiting for it
			f := acquire(t, s, ref("f", 5, 1000))
			f.checked.Store(time.Now().Add(-nameTTL).UnixNano())
			f.Release()
		}
		again(0)
		passes()
		again(0) // nothing has happened
		if removed {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else {
			replace(t, path, "second", 2000)
		}
		again(0) // not looked at again so soon
		passes()
		again(1)
		if _, err := s.Acquire(ref("f", 5, 1000)); err == nil {
			t.Error("the old version is still open")
		}
		if len(told) != 1 || told[0] != "f" {
			t.Errorf("Replaced was told of %q", told)
		}
	}
}
