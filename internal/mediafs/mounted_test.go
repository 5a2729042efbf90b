package mediafs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"spillway/internal/wire"
)

// mountedRig is a share that the host and the mount show; the test decides what each of them shows.
type mountedRig struct {
	*Mounted
	t     *testing.T
	host  *hostFiles
	dir   string
	clock *clock
}

func newMounted(t *testing.T) *mountedRig {
	t.Helper()
	r := &mountedRig{t: t, host: newHostFiles(map[string][]byte{}), dir: t.TempDir(), clock: &clock{now: time.Unix(1000, 0)}}
	d, err := NewDir("vod", r.dir, Options{Now: r.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r.Mounted = NewMounted(NewRemote("vod", r.host, RemoteOptions{MediaTTL: time.Minute, Now: r.clock.Now}), d)
	return r
}

// put makes a file that both show alike.
func (r *mountedRig) put(name string, content []byte) {
	r.t.Helper()
	r.host.replace(name, content)
	r.mount(name, content)
}

// mount makes the mount show what the host has now.
func (r *mountedRig) mount(name string, content []byte) {
	r.t.Helper()
	path := filepath.Join(r.dir, "new")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		r.t.Fatal(err)
	}
	when := time.Unix(0, r.host.mtime)
	if err := os.Chtimes(path, when, when); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// shows holds a file against its content and where it must come from, and its attributes.
func (r *mountedRig) shows(name string, want []byte, fromMount bool) {
	r.t.Helper()
	f, err := r.Open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	ref, _, ok := f.(interface {
		HostFile() (wire.FileRef, int64, bool)
	}).HostFile()
	if !ok || ref.Size != int64(len(want)) {
		r.t.Errorf("%s is %+v, %v to the host, want %d bytes", name, ref, ok, len(want))
	}
	if err := iotest.TestReader(f, want); err != nil {
		r.t.Errorf("%s: %v", name, err)
	}
	here := true // a *File, without a host
	if m, ok := f.(*MountedFile); ok {
		here = m.Here()
		if _, err := m.SyscallConn(); (err == nil) != here {
			r.t.Errorf("%s: SyscallConn says %v", name, err)
		}
	}
	if here != fromMount {
		r.t.Errorf("%s comes from the mount: %v", name, here)
	}
}

// TestMountedStale: a mount that goes on to show a file that was replaced, as 9p does with cache=loose, is not believed.
func TestMountedStale(t *testing.T) {
	for _, c := range []struct {
		name string
		ttl  time.Duration
	}{{"live.mpd", DefaultAttributeTTL}, {"list.m3u8", DefaultAttributeTTL}, {"a.m4s", time.Minute}} {
		r := newMounted(t)
		old, new := pattern(5000), pattern(6000)
		r.put(c.name, old)
		r.shows(c.name, old, true)
		r.host.replace(c.name, new) // the mount knows nothing of it
		r.clock.now = r.clock.now.Add(c.ttl - time.Nanosecond)
		r.shows(c.name, old, true)
		r.clock.now = r.clock.now.Add(time.Nanosecond)
		r.shows(c.name, new, false)
		before, _ := r.host.calls()
		r.shows(c.name, new, false)
		if now, _ := r.host.calls(); now != before {
			t.Errorf("%s: the host was asked again for what it had just said", c.name)
		}
		r.mount(c.name, new)
		r.clock.now = r.clock.now.Add(DefaultAttributeTTL)
		r.shows(c.name, new, true)
	}
}

// TestMountedNewer: a file that is replaced between the host's answer and the first read is not taken for the one that was promised; the next request gets it.
func TestMountedNewer(t *testing.T) {
	r := newMounted(t)
	old, new := pattern(5000), pattern(6000)
	r.put("a.m4s", old)
	r.shows("a.m4s", old, true)
	r.put("a.m4s", new)
	r.clock.now = r.clock.now.Add(DefaultAttributeTTL)
	f, err := r.Open("a.m4s")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrChanged) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	r.shows("a.m4s", new, true)
}

// TestMountedUnread: what the host sends costs the mount nothing, and the read position is right before and after the first read.
func TestMountedUnread(t *testing.T) {
	r := newMounted(t)
	want := pattern(5000)
	r.put("a.m4s", want)
	f, err := r.Open("a.m4s")
	if err != nil {
		t.Fatal(err)
	}
	m := f.(*MountedFile)
	at := func(offset int64) {
		t.Helper()
		if _, got, ok := m.HostFile(); !ok || got != offset {
			t.Errorf("the read position is %d, %v, want %d", got, ok, offset)
		}
	}
	if n, err := m.Seek(-1000, io.SeekEnd); n != 4000 || err != nil {
		t.Errorf("Seek = %d, %v", n, err)
	}
	at(4000)
	if c := r.Mounted.dir.Counters(); c != (Counters{}) {
		t.Errorf("the mount was asked: %+v", c)
	}
	got := make([]byte, 100)
	if _, err := io.ReadFull(m, got); err != nil || !bytes.Equal(got, want[4000:4100]) {
		t.Errorf("read other bytes, %v", err)
	}
	at(4100)
	if n, err := m.Seek(-4000, io.SeekCurrent); n != 100 || err != nil {
		t.Errorf("Seek = %d, %v", n, err)
	}
	at(100)
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, _, ok := m.HostFile(); ok {
		t.Error("a closed file is one of the host's")
	}
	if _, err := m.Read(got); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// TestMountedGone: what the host does not have is not there, whatever the mount shows, and the other way round.
func TestMountedGone(t *testing.T) {
	r := newMounted(t)
	r.put("a.mpd", pattern(10))
	r.shows("a.mpd", pattern(10), true)
	delete(r.host.files, "a.mpd")
	r.clock.now = r.clock.now.Add(DefaultAttributeTTL)
	if f, err := r.Open("a.mpd"); err == nil || f != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, %v", f, err)
	}
	if _, err := r.Stat("a.mpd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat: %v", err)
	}
	r.host.replace("b.mpd", pattern(20))
	r.shows("b.mpd", pattern(20), false)
}

// TestMountedAlone: without a host, and where it refuses to follow a link, there is the mount.
func TestMountedAlone(t *testing.T) {
	for _, reason := range []wire.Reason{wire.ReasonSession, wire.ReasonForbidden} {
		t.Run(reason.String(), func(t *testing.T) { mountedAlone(t, reason) })
	}
}

func mountedAlone(t *testing.T, reason wire.Reason) {
	r := newMounted(t)
	r.put("a.m4s", pattern(10))
	r.host.fails = reason
	r.shows("a.m4s", pattern(10), true)
	if info, err := r.Stat("a.m4s"); err != nil || info.Size() != 10 {
		t.Errorf("Stat = %v, %v", info, err)
	}
	if f, err := r.Open("b.m4s"); f != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, %v", f, err)
	}
}
