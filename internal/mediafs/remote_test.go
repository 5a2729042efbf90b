package mediafs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"spillway/internal/wire"
)

// hostFiles is a Source over a map.
type hostFiles struct {
	mu           sync.Mutex
	files        map[string][]byte
	mtime        int64
	fails        error // of every call
	stats, reads int
	short        int           // bytes that one READ gives at most; 0: all
	gate         chan struct{} // STAT waits for it, unless it is nil
}

func newHostFiles(files map[string][]byte) *hostFiles { return &hostFiles{files: files, mtime: 1e18} }

func (h *hostFiles) Stat(share, path string) (size, mtimeNs int64, err error) {
	h.mu.Lock()
	h.stats++
	gate := h.gate
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	content, ok := h.files[path]
	switch {
	case h.fails != nil:
		return 0, 0, h.fails
	case share != "vod":
		return 0, 0, wire.ReasonShareUnknown
	case !ok:
		return 0, 0, wire.ReasonNotFound
	}
	return int64(len(content)), h.mtime, nil
}

func (h *hostFiles) ReadFileAt(file wire.FileRef, p []byte, off int64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	content, ok := h.files[file.Path]
	switch {
	case h.fails != nil:
		return 0, h.fails
	case !ok:
		return 0, wire.ReasonNotFound
	case int64(len(content)) != file.Size || h.mtime != file.MTime:
		return 0, wire.ReasonChanged
	case len(p) > wire.MaxRead:
		return 0, wire.ReasonInvalid
	}
	if h.short > 0 {
		p = p[:min(len(p), h.short)]
	}
	return copy(p, content[off:]), nil
}

// replace puts another content in the place of a file.
func (h *hostFiles) replace(path string, content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files[path] = content
	h.mtime++
}

func (h *hostFiles) calls() (stats, reads int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stats, h.reads
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7 / 3)
	}
	return p
}

func openRemote(t *testing.T, r *Remote, name string) *RemoteFile {
	t.Helper()
	f, err := r.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f.(*RemoteFile)
}

func TestRemoteReads(t *testing.T) {
	for _, size := range []int{0, 1, 5000, wire.MaxRead - 1, wire.MaxRead, wire.MaxRead + 1, 300_000} {
		for _, short := range []int{0, 1000} {
			t.Run(fmt.Sprintf("%d bytes, %d at a time", size, short), func(t *testing.T) {
				h := newHostFiles(map[string][]byte{"dir/f.mp4": pattern(size)})
				h.short = short
				r := NewRemote("vod", h, RemoteOptions{})
				if err := iotest.TestReader(openRemote(t, r, "dir/f.mp4"), pattern(size)); err != nil {
					t.Error(err)
				}
				info, err := r.Stat("dir/f.mp4")
				if err != nil || info.Size() != int64(size) || info.Name() != "f.mp4" || !info.Mode().IsRegular() || info.IsDir() ||
					!info.ModTime().Equal(time.Unix(0, h.mtime)) || info.Sys() != nil {
					t.Errorf("Stat = %v, %v", info, err)
				}
				if info, err := openRemote(t, r, "dir/f.mp4").Stat(); err != nil || info.Size() != int64(size) {
					t.Errorf("Stat of the file = %v, %v", info, err)
				}
			})
		}
	}
}

// TestRemoteRoundTrips: what is asked for again within the time to live costs nothing.
func TestRemoteRoundTrips(t *testing.T) {
	h := newHostFiles(map[string][]byte{"small.mpd": pattern(3000), "big.m4s": pattern(200_000)})
	c := &clock{now: time.Unix(1000, 0)}
	r := NewRemote("vod", h, RemoteOptions{AttributeTTL: time.Second, Now: c.Now})
	want := func(what string, stats, reads int) {
		t.Helper()
		if s, n := h.calls(); s != stats || n != reads {
			t.Errorf("%s: %d STAT and %d READ, want %d and %d", what, s, n, stats, reads)
		}
	}
	read := func(name string) {
		t.Helper()
		if got, err := io.ReadAll(openRemote(t, r, name)); err != nil || !bytes.Equal(got, h.files[name]) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	read("small.mpd")
	want("first", 1, 1)
	read("small.mpd")
	want("again", 1, 1)
	c.now = c.now.Add(time.Second)
	read("small.mpd")
	want("after the time to live", 2, 1) // it has not changed, so its bytes are right
	h.replace("small.mpd", []byte("new"))
	read2, _ := io.ReadAll(openRemote(t, r, "small.mpd"))
	if string(read2) != string(pattern(3000)) {
		t.Errorf("within the time to live: %d bytes", len(read2)) // the attributes and the bytes of one version
	}
	c.now = c.now.Add(time.Second)
	read("small.mpd")
	want("after a change", 3, 2)
	if _, _, ok := openRemote(t, r, "big.m4s").HostFile(); !ok {
		t.Error("not a host file")
	}
	want("opened only", 4, 2)
	read("big.m4s")
	read("big.m4s")
	if _, n := h.calls(); n != 2+2*4 {
		t.Errorf("%d READ: a large file must not be kept", n)
	}
}

// TestRemoteChanges: bytes are never those of another version than the attributes.
func TestRemoteChanges(t *testing.T) {
	h := newHostFiles(map[string][]byte{"f": pattern(200_000)})
	r := NewRemote("vod", h, RemoteOptions{AttributeTTL: time.Hour})
	f := openRemote(t, r, "f")
	if _, err := io.ReadFull(f, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	h.replace("f", pattern(10))
	if _, err := io.Copy(io.Discard, f); !errors.Is(err, ErrChanged) {
		t.Errorf("reading on says %v", err)
	}
	// The next request must not meet the old attributes again.
	if got, err := io.ReadAll(openRemote(t, r, "f")); err != nil || !bytes.Equal(got, pattern(10)) {
		t.Errorf("then: %d bytes, %v", len(got), err)
	}
}

// TestRemoteForget: what the host says is not true any more is not believed for the rest of its time, nor is an answer that was on its way.
func TestRemoteForget(t *testing.T) {
	h := newHostFiles(map[string][]byte{"f": pattern(100), "g": pattern(100)})
	r := NewRemote("vod", h, RemoteOptions{AttributeTTL: time.Hour})
	for _, name := range []string{"f", "g"} {
		if got, err := io.ReadAll(openRemote(t, r, name)); err != nil || len(got) != 100 {
			t.Fatal(len(got), err)
		}
	}
	h.replace("f", pattern(10))
	r.Forget("f")
	r.Forget("unknown")
	if got, err := io.ReadAll(openRemote(t, r, "f")); err != nil || !bytes.Equal(got, pattern(10)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	openRemote(t, r, "g")
	if stats, _ := h.calls(); stats != 3 {
		t.Errorf("%d STAT, want 3: of the other file nothing was said", stats)
	}

	r.Forget("f")
	h.mu.Lock()
	h.gate = make(chan struct{})
	h.mu.Unlock()
	opened := make(chan error)
	go func() {
		_, err := r.Open("f")
		opened <- err
	}()
	deadline := time.Now().Add(20 * time.Second)
	for stats := 0; stats < 4; stats, _ = h.calls() {
		if time.Now().After(deadline) {
			t.Fatal("what was forgotten is not asked for again")
		}
		time.Sleep(time.Millisecond)
	}
	r.Forget("f") // while the answer is on its way
	close(h.gate)
	if err := <-opened; err != nil {
		t.Error(err)
	}
	openRemote(t, r, "f")
	if stats, _ := h.calls(); stats != 5 {
		t.Errorf("%d STAT, want 5: an answer that may be an old one was kept", stats)
	}
}

func TestRemoteErrors(t *testing.T) {
	for reason, want := range map[error]error{
		wire.ReasonNotFound: fs.ErrNotExist, wire.ReasonNotRegular: ErrNotRegular, wire.ReasonForbidden: ErrEscapes,
		wire.ReasonShareUnknown: wire.ReasonShareUnknown, wire.ReasonHostAway: wire.ReasonHostAway, wire.ReasonChanged: ErrChanged,
	} {
		h := newHostFiles(nil)
		h.fails = reason
		r := NewRemote("vod", h, RemoteOptions{})
		for range 2 { // a failure is not remembered
			_, err := r.Open("f")
			var pe *fs.PathError
			if !errors.Is(err, want) || !errors.As(err, &pe) || pe.Path != "f" || pe.Op != "open" {
				t.Errorf("%v: Open says %v, want %v", reason, err, want)
			}
		}
		if _, err := r.Stat("f"); !errors.Is(err, want) {
			t.Errorf("%v: Stat says %v, want %v", reason, err, want)
		}
		if stats, _ := h.calls(); stats != 3 {
			t.Errorf("%v: %d STAT, want 3", reason, stats)
		}
	}
	h := newHostFiles(map[string][]byte{"f": pattern(10)})
	r := NewRemote("vod", h, RemoteOptions{})
	for _, name := range []string{"", ".", "..", "/f", "f/", "a//b", "a/../f", "f\x00", "../f"} {
		if _, err := r.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q) says %v", name, err)
		}
	}
	if stats, _ := h.calls(); stats != 0 {
		t.Errorf("%d bad names went to the host", stats)
	}
	// A host that goes away after Open.
	f := openRemote(t, r, "f")
	h.fails = wire.ReasonHostAway
	var pe *fs.PathError
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, wire.ReasonHostAway) || !errors.As(err, &pe) || pe.Op != "read" {
		t.Errorf("Read says %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close says %v", err)
	}
	if _, _, ok := f.HostFile(); ok {
		t.Error("a closed file is a host file")
	}
	if err := f.Close(); err != nil {
		t.Errorf("the second Close says %v", err)
	}
}

// TestRemotePosition: HostFile tells where Seek and Read have left the position, and a range read stays in its range.
func TestRemotePosition(t *testing.T) {
	h := newHostFiles(map[string][]byte{"f": pattern(1000)})
	r := NewRemote("vod", h, RemoteOptions{})
	f := openRemote(t, r, "f")
	at := func(want int64) {
		t.Helper()
		if ref, offset, ok := f.HostFile(); !ok || offset != want || ref.Share != "vod" || ref.Path != "f" || ref.Size != 1000 || ref.MTime != h.mtime {
			t.Errorf("HostFile = %+v, %d, %v, want position %d", ref, offset, ok, want)
		}
	}
	at(0)
	for _, c := range []struct {
		offset int64
		whence int
		want   int64
		bad    bool
	}{
		{10, io.SeekStart, 10, false}, {5, io.SeekCurrent, 15, false}, {-15, io.SeekCurrent, 0, false}, {-1, io.SeekCurrent, 0, true},
		{0, io.SeekEnd, 1000, false}, {-10, io.SeekEnd, 990, false}, {7, io.SeekEnd, 1007, false}, {0, 3, 1007, true}, {0, -1, 1007, true},
	} {
		n, err := f.Seek(c.offset, c.whence)
		if (err != nil) != c.bad || err == nil && n != c.want || c.bad && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Seek(%d, %d) = %d, %v", c.offset, c.whence, n, err)
		}
		at(c.want)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read beyond the end = %d, %v", n, err)
	}
	_, _ = f.Seek(400, io.SeekStart)
	p := make([]byte, 100)
	if _, err := io.ReadFull(f, p); err != nil || !bytes.Equal(p, pattern(1000)[400:500]) {
		t.Errorf("a range: %v", err)
	}
	at(500)
}

// TestRemoteOneQuestion: many requests for one name at the same time are one STAT.
func TestRemoteOneQuestion(t *testing.T) {
	h := newHostFiles(map[string][]byte{"f": pattern(10)})
	h.gate = make(chan struct{})
	r := NewRemote("vod", h, RemoteOptions{})
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := r.Open("f"); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(h.gate)
	wait.Wait()
	if stats, _ := h.calls(); stats > 2 { // one more for whoever came too late to wait, and too early to know
		t.Errorf("%d STAT", stats)
	}
}

// TestRemoteBounds: neither names nor bytes are kept without end.
func TestRemoteBounds(t *testing.T) {
	files := map[string][]byte{"large": pattern(700)}
	for i := range 100 {
		files[fmt.Sprint(i)] = pattern(90)
	}
	h := newHostFiles(files)
	r := NewRemote("vod", h, RemoteOptions{MaxPaths: 20, MaxCachedFile: 1000, MaxCached: 500, AttributeTTL: time.Hour})
	check := func() {
		t.Helper()
		r.mu.Lock()
		defer r.mu.Unlock()
		sum := int64(0)
		for _, e := range r.files {
			sum += int64(len(e.content))
		}
		if len(r.files) > 20 || sum > 500 || sum != r.cachedBytes {
			t.Errorf("%d names and %d bytes are kept, %d are counted", len(r.files), sum, r.cachedBytes)
		}
	}
	for round := range 3 {
		for name, content := range files {
			if got, err := io.ReadAll(openRemote(t, r, name)); err != nil || !bytes.Equal(got, content) {
				t.Fatalf("round %d, %s: %d bytes, %v", round, name, len(got), err)
			}
			check()
		}
	}
}

// TestRemoteConcurrent reads files that change, are evicted and are read by others: what is read is always one version.
func TestRemoteConcurrent(t *testing.T) {
	h := newHostFiles(map[string][]byte{})
	for i := range 8 {
		h.files[fmt.Sprint(i)] = bytes.Repeat([]byte{0}, 500)
	}
	r := NewRemote("vod", h, RemoteOptions{MaxPaths: 5, MaxCached: 1000, AttributeTTL: time.Nanosecond})
	var wait sync.WaitGroup
	for g := range 4 {
		wait.Go(func() {
			for i := range 500 {
				name := fmt.Sprint((i + g) % 8)
				if g == 0 && i%10 == 0 {
					h.replace(name, bytes.Repeat([]byte{byte(i)}, 500+i))
				}
				f, err := r.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(f)
				f.Close()
				if errors.Is(err, ErrChanged) {
					continue
				}
				if err != nil || bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("%s: %d bytes of several versions, %v", name, len(got), err)
				}
			}
		})
	}
	wait.Wait()
}
