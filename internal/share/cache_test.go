package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/wire"
)

func TestFileIsSharedAndStaysOpen(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	a, b := acquire(t, s, ref("f", 3, 1)), acquire(t, s, ref("f", 3, 1))
	if a.Fd() != b.Fd() || openFilesIn(t, dir) != 1 {
		t.Errorf("descriptors %d and %d, want one", a.Fd(), b.Fd())
	}
	a.Release()
	if got := content(t, b); got != "abc" {
		t.Errorf("after the other's Release: %q", got)
	}
	b.Release()
	c := acquire(t, s, ref("f", 3, 1))
	if got, want := s.Stats(), (Stats{Open: 1, Opens: 1, Reuses: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	c.Release()
	if got, want := s.Stats(), (Stats{Open: 1, Idle: 1, Opens: 1, Reuses: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestChanges holds a file in use and one idle while the file at the path changes, and asks for the old and for the new version.
func TestChanges(t *testing.T) {
	const oldContent, oldTime = "old content", 1
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, path string)
		content string // of the new version
		mtimeNs int64
		old     error // of Acquire of the old version
		new     error // of Acquire of the new one
	}{
		// The old inode is untouched: a guest that believes in it may have it.
		{"replaced", func(t *testing.T, p string) { replace(t, p, "new content!", 2) }, "new content!", 2, nil, nil},
		{"removed", func(t *testing.T, p string) { os.Remove(p) }, "?", 2, nil, wire.ReasonNotFound},
		{"directory", func(t *testing.T, p string) { os.Remove(p); os.Mkdir(p, 0o755) }, "?", 2, nil, wire.ReasonNotRegular},
		{"symlink", func(t *testing.T, p string) { os.Remove(p); os.Symlink("other", p) }, "other", 1, nil, wire.ReasonForbidden},
		{"truncated", func(t *testing.T, p string) { write(t, p, "old", 2) }, "old", 2, wire.ReasonChanged, nil},
		{"truncated, same mtime", func(t *testing.T, p string) { write(t, p, "old", 1) }, "old", 1, wire.ReasonChanged, nil},
		{"appended", func(t *testing.T, p string) { write(t, p, "old content+", 2) }, "old content+", 2, wire.ReasonChanged, nil},
		{"touched", func(t *testing.T, p string) { setMTime(t, p, 2) }, oldContent, 2, wire.ReasonChanged, nil},
		{"touched back in time", func(t *testing.T, p string) { setMTime(t, p, 0) }, oldContent, 0, wire.ReasonChanged, nil},
		{"nothing", func(*testing.T, string) {}, "new", 2, nil, wire.ReasonChanged},
	} {
		for _, inUse := range []bool{true, false} {
			for _, newFirst := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s,inUse=%t,newFirst=%t", c.name, inUse, newFirst), func(t *testing.T) {
					s, dir := newShare(t, Options{})
					path := filepath.Join(dir, "f")
					write(t, path, oldContent, oldTime)
					write(t, filepath.Join(dir, "other"), "other", 1)
					held := acquire(t, s, ref("f", len(oldContent), oldTime))
					if inUse {
						defer held.Release()
					} else {
						held.Release()
					}
					c.change(t, path)

					checkOld := func(want error) { checkVersion(t, s, oldContent, oldTime, want) }
					checkNew := func() { checkVersion(t, s, c.content, c.mtimeNs, c.new) }
					if newFirst {
						checkNew()
						after := c.old // once the new version was found, the old one is not found again
						switch {
						case errors.Is(c.new, wire.ReasonChanged): // nothing has changed
						case c.new != nil:
							after = c.new
						default:
							after = wire.ReasonChanged
						}
						checkOld(after)
					} else {
						checkOld(c.old)
						checkNew()
					}
					if open, want := openFilesIn(t, dir), s.Stats().Open; open != want {
						t.Errorf("%d files open, Stats tell %d", open, want)
					}
				})
			}
		}
	}
}

func checkVersion(t *testing.T, s *Share, want string, mtimeNs int64, wantErr error) {
	t.Helper()
	f, err := s.Acquire(ref("f", len(want), mtimeNs))
	if !errors.Is(err, wantErr) {
		t.Errorf("Acquire of %q: %v, want %v", want, err, wantErr)
	}
	if err != nil {
		return
	}
	defer f.Release()
	if got := content(t, f); got != want {
		t.Errorf("content %q, want %q", got, want)
	}
}

// TestSameAttributesNewInode documents the limit of what a guest can tell: size and modification time.
func TestSameAttributesNewInode(t *testing.T) {
	s, dir := newShare(t, Options{})
	path := filepath.Join(dir, "f")
	write(t, path, "old", 1)
	f := acquire(t, s, ref("f", 3, 1))
	replace(t, path, "new", 1)
	checkVersion(t, s, "old", 1, nil)
	// A guest that has noticed something makes us look.
	checkVersion(t, s, "newer", 2, wire.ReasonChanged)
	checkVersion(t, s, "new", 1, nil)
	if got := content(t, f); got != "old" {
		t.Errorf("file in use became %q", got)
	}
	f.Release()
}

// TestWrongBeliefsDoNotCloseTheFileOfOthers: guests share the cache, and one of them lies.
func TestWrongBeliefsDoNotCloseTheFileOfOthers(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	f := acquire(t, s, ref("f", 3, 1))
	defer f.Release()
	for i := range 10 {
		_, err := s.Acquire(ref("f", 4+i, 1))
		wantReason(t, "acquire", "f", err, wire.ReasonChanged)
	}
	defer acquire(t, s, ref("f", 3, 1)).Release()
	if got := s.Stats(); got.Opens != 1 || got.Open != 1 {
		t.Errorf("%+v, want the file opened once", got)
	}
}

func TestLeastRecentlyUsedIsClosed(t *testing.T) {
	s, dir := newShare(t, Options{MaxOpenFiles: 3})
	for i := range 5 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), "", 1)
	}
	use := func(i int) { t.Helper(); acquire(t, s, ref(fmt.Sprint(i), 0, 1)).Release() }
	isOpen := func(want ...int) {
		t.Helper()
		got := make(map[string]bool)
		for _, path := range openFiles(t, dir) {
			got[path] = true
		}
		for _, i := range want {
			if !got[filepath.Join(dir, fmt.Sprint(i))] {
				t.Errorf("%d is not open: %v", i, got)
			}
		}
		if len(got) != len(want)+1 || s.Stats().Open != len(want) || s.Stats().Idle != len(want) {
			t.Errorf("open: %v, %+v, want %v", got, s.Stats(), want)
		}
	}
	use(0)
	use(1)
	use(2)
	isOpen(0, 1, 2)
	use(0) // now 1 is the oldest
	use(3)
	isOpen(0, 2, 3)
	use(2) // in the middle of the list
	use(4)
	isOpen(2, 3, 4)
}

func TestLimit(t *testing.T) {
	s, dir := newShare(t, Options{MaxOpenFiles: 2})
	for _, name := range []string{"a", "b", "c"} {
		write(t, filepath.Join(dir, name), name, 1)
	}
	a, b := acquire(t, s, ref("a", 1, 1)), acquire(t, s, ref("b", 1, 1))
	_, err := s.Acquire(ref("c", 1, 1))
	wantReason(t, "acquire", "c", err, wire.ReasonLimit)
	acquire(t, s, ref("a", 1, 1)).Release() // what is open can be had

	// A replaced file in use counts as well.
	replace(t, filepath.Join(dir, "a"), "A!", 2)
	_, err = s.Acquire(ref("a", 2, 2))
	wantReason(t, "acquire", "a", err, wire.ReasonLimit)
	if open := openFilesIn(t, dir); open != 2 {
		t.Errorf("%d files open", open)
	}
	if a, b := content(t, a), content(t, b); a != "a" || b != "b" {
		t.Errorf("files in use became %q and %q", a, b)
	}
	b.Release()
	c := acquire(t, s, ref("c", 1, 1))
	if open := openFilesIn(t, dir); open != 2 {
		t.Errorf("%d files open", open)
	}
	c.Release()
	a.Release()
}

// TestNoDescriptors takes away the process's permission to open anything.
func TestNoDescriptors(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	_, err := s.Acquire(ref("f", 3, 1))
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	wantReason(t, "acquire", "f", err, wire.ReasonLimit)
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("%v is not EMFILE", err)
	}
	checkVersion(t, s, "abc", 1, nil)
}

// slowOpen makes every open of a share wait. It returns a channel that tells of each open, and one that lets it go on.
func slowOpen(s *Share) (started <-chan string, proceed chan<- struct{}) {
	open, start, gate := s.files.open, make(chan string, 100), make(chan struct{})
	s.files.open = func(path string) (int, attributes, error) {
		start <- path
		<-gate
		return open(path)
	}
	return start, gate
}

// acquireAll starts n concurrent Acquires and returns when all of them wait for an open under way.
func acquireAll(t *testing.T, s *Share, r wire.FileRef, n int, started <-chan string) <-chan error {
	t.Helper()
	results := make(chan error, n)
	for range n {
		go func() {
			f, err := s.Acquire(r)
			if err == nil {
				f.Release()
			}
			results <- err
		}()
	}
	<-started
	deadline := time.Now().Add(patience)
	for s.Stats().Reuses < uint64(n-1) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want %d waiting", s.Stats(), n-1)
		}
		time.Sleep(time.Millisecond)
	}
	return results
}

func TestConcurrentMissesOpenOnce(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	started, proceed := slowOpen(s)
	const n = 20
	results := acquireAll(t, s, ref("f", 3, 1), n, started)
	close(proceed)
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := s.Stats(); got.Opens != 1 || got.Open != 1 || got.Idle != 1 {
		t.Errorf("%+v, want one open", got)
	}
}

// TestFailedOpenIsNotNews: who waited for an open that failed looks again, because the file may have come since it began; but all
// of them together look once.
func TestFailedOpenIsNotNews(t *testing.T) {
	s, dir := newShare(t, Options{MaxOpenFiles: 1})
	started, proceed := slowOpen(s)
	const n = 20
	results := acquireAll(t, s, ref("f", 3, 1), n, started)
	proceed <- struct{}{}
	if err := <-results; !errors.Is(err, wire.ReasonNotFound) {
		t.Errorf("first: %v", err)
	}
	<-started
	write(t, filepath.Join(dir, "f"), "abc", 1)
	close(proceed)
	for range n - 1 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := s.Stats(); got.Opens != 1 || len(started) != 0 {
		t.Errorf("%+v and %d more opens, want one", got, len(started))
	}
}

func TestSlowOpenHoldsUpNobody(t *testing.T) {
	s, dir := newShare(t, Options{MaxOpenFiles: 2})
	for _, name := range []string{"slow", "open", "third"} {
		write(t, filepath.Join(dir, name), "abc", 1)
	}
	acquire(t, s, ref("open", 3, 1)).Release()
	started, proceed := slowOpen(s)
	results := acquireAll(t, s, ref("slow", 3, 1), 1, started)
	f := acquire(t, s, ref("open", 3, 1))
	if _, _, err := s.Stat("slow"); err != nil {
		t.Error(err)
	}
	// An open under way has its place already.
	_, err := s.Acquire(ref("third", 3, 1))
	wantReason(t, "acquire", "third", err, wire.ReasonLimit)
	f.Release()
	close(proceed)
	if err := <-results; err != nil {
		t.Error(err)
	}
}

func TestCloseDuringOpen(t *testing.T) {
	s, dir := newShare(t, Options{})
	write(t, filepath.Join(dir, "f"), "abc", 1)
	started, proceed := slowOpen(s)
	const n = 5
	results := acquireAll(t, s, ref("f", 3, 1), n, started)
	s.Close()
	close(proceed)
	for range n {
		if err := <-results; err != nil && !errors.Is(err, wire.ReasonShareUnknown) {
			t.Error(err)
		}
	}
	if open := openFiles(t, dir); len(open) > 0 || s.Stats().Open != 0 {
		t.Errorf("left open: %q, %+v", open, s.Stats())
	}
}

// TestConcurrentUse acquires few files from many goroutines while they are replaced. The content names the version, and so does the
// modification time, so a descriptor of the wrong file, or a closed one, is noticed.
func TestConcurrentUse(t *testing.T) {
	const (
		files, maxOpen   = 6, 4
		workers, rounds  = 8, 400
		replacements     = 150
		sizeBytes        = 12
		versionFormat    = "%d:%010d" // file, version
		minimumSuccesses = 100
	)
	s, dir := newShare(t, Options{MaxOpenFiles: maxOpen})
	name := func(i int) string { return fmt.Sprint("f", i) }
	for i := range files {
		write(t, filepath.Join(dir, name(i)), fmt.Sprintf(versionFormat, i, 1), 1)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for v := int64(2); v < replacements; v++ {
			i := int(v) % files
			replace(t, filepath.Join(dir, name(i)), fmt.Sprintf(versionFormat, i, v), v)
		}
	})
	var successes atomic.Int64
	for w := range workers {
		all.Go(func() {
			held := make([]*File, 0, 2)
			for r := range rounds {
				i := (w + r*r) % files
				_, version, err := s.Stat(name(i))
				if err != nil {
					t.Error(err)
					return
				}
				f, err := s.Acquire(ref(name(i), sizeBytes, version))
				if err == nil {
					successes.Add(1)
					p := make([]byte, sizeBytes)
					if _, err := f.ReadAt(p, 0); err != nil || string(p) != fmt.Sprintf(versionFormat, i, version) {
						t.Errorf("file %d, version %d: %q, %v", i, version, p, err)
					}
					held = append(held, f)
				} else if !errors.Is(err, wire.ReasonChanged) && !errors.Is(err, wire.ReasonLimit) {
					t.Error(err)
				}
				if len(held) == 2 || err != nil {
					for _, f := range held {
						f.Release()
					}
					held = held[:0]
				}
			}
			for _, f := range held {
				f.Release()
			}
		})
	}
	all.Wait()
	if n := successes.Load(); n < minimumSuccesses {
		t.Errorf("%d acquired, want %d or more", n, minimumSuccesses)
	}
	if got := s.Stats(); got.Open != got.Idle || got.Open > maxOpen || got.Open != openFilesIn(t, dir) {
		t.Errorf("%+v, %d really open", got, openFilesIn(t, dir))
	}
}
