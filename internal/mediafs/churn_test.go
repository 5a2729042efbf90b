package mediafs

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"testing"
)

// TestReplacementUnderLoad replaces a file and releases the directory while requests read it. Whatever a request reads, it is one
// version from end to end, of the length that its attributes promised.
func TestReplacementUnderLoad(t *testing.T) {
	d, dir := newDir(t, Options{AttributeTTL: -1, MaxIdlePerFile: 2})
	path := filepath.Join(dir, "f")
	version := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 50_000+n) }
	replaceFile(t, path, version(0))

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				opened, err := d.Open("f")
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				f := opened.(*File)
				ref, _, _ := f.HostFile()
				got, err := io.ReadAll(f)
				f.Close()
				switch {
				case errors.Is(err, ErrChanged) && len(got) == 0: // found out before the first byte
				case err != nil:
					t.Errorf("read: %v", err)
				case int64(len(got)) != ref.Size || !bytes.Equal(got, version(len(got)-50_000)):
					t.Errorf("read %d bytes of version %d, promised %d", len(got), got[0], ref.Size)
				}
			}
		})
	}
	for n := range 200 {
		replaceFile(t, path, version(n))
		for range 5 { // often enough to hit requests in the middle
			if err := d.Release(); err != nil {
				t.Errorf("Release: %v", err)
			}
		}
	}
	close(stop)
	readers.Wait()
	if got := d.Counters().Idle; got > 2 {
		t.Errorf("%d idle descriptors of one file, want at most 2", got)
	}
}
