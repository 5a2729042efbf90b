package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"spillway/internal/origin"
)

var byValue = cmp.Options{cmp.AllowUnexported(record{}), cmpopts.EquateEmpty()}

func sampleRecords() []record {
	return []record{
		{kind: kindFile, id: 7, version: origin.Version{Size: 3 << 20, ModTime: time.Unix(5, 6), ETag: `"x"`}, checked: 99, path: "a/b"},
		{kind: kindBlocks, id: 7, first: 1, sums: []uint32{1, 1 << 31}},
		{kind: kindPin, path: "p"},
		{kind: kindUnpin, path: "p"},
		{kind: kindDrop, id: 7},
	}
}

func parseAll(b []byte) (all []record, damaged bool) {
	_, damaged = parseRecords(b, true, func(r *record) {
		c := *r
		c.sums = append([]uint32(nil), r.sums...)
		all = append(all, c)
	})
	return all, damaged
}

// TestRecords: what damage takes is the record that it hits.
func TestRecords(t *testing.T) {
	want := sampleRecords()
	var log []byte
	var starts []int
	for i := range want {
		starts = append(starts, len(log))
		log = appendRecord(log, &want[i])
	}
	if got, damaged := parseAll(log); damaged || !cmp.Equal(want, got, byValue) {
		t.Errorf("damaged %t:\n%s", damaged, cmp.Diff(want, got, byValue))
	}
	for at := range log {
		hit := 0
		for i, s := range starts {
			if s <= at {
				hit = i
			}
		}
		broken := append([]byte(nil), log...)
		broken[at] ^= 0x41
		rest := append(append([]record(nil), want[:hit]...), want[hit+1:]...)
		if got, damaged := parseAll(broken); !damaged || !cmp.Equal(rest, got, byValue) {
			t.Fatalf("byte %d: damaged %t\n%s", at, damaged, cmp.Diff(rest, got, byValue))
		}
		if got, _ := parseAll(log[:at]); !cmp.Equal(append([]record(nil), want[:hit]...), got, byValue) {
			t.Fatalf("torn at %d: %+v", at, got)
		}
	}
}

func FuzzRecords(f *testing.F) {
	var log []byte
	for _, r := range sampleRecords() {
		log = appendRecord(log, &r)
	}
	f.Add(log)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, last := range []bool{true, false} {
			if done, _ := parseRecords(b, last, func(*record) {}); done > len(b) {
				t.Errorf("%d of %d", done, len(b))
			}
		}
	})
}

// TestIndexIsRewritten: a log of what is over becomes short, and tells the same.
func TestIndexIsRewritten(t *testing.T) {
	r := newRig(t)
	r.web.put("f", []byte("abc"), "1")
	r.get("f", []byte("abc"))
	for range 500_000 {
		r.index.add(&record{kind: kindDrop, id: 1})
		r.index.add(&record{kind: kindDrop, id: 2})
	}
	r.eventually("the log is short", func() bool {
		info, err := os.Stat(filepath.Join(r.opts.Dir, indexName))
		return err == nil && info.Size() < 4<<20
	})
	r.reopen()
	r.web.forget()
	r.get("f", []byte("abc"))
	if gets, heads := r.web.requests(); len(gets)+heads != 0 {
		t.Errorf("%q, %d", gets, heads)
	}
}

// TestDamagedIndex: what the index has lost is fetched again, the rest is served.
func TestDamagedIndex(t *testing.T) {
	r := newRig(t)
	want := content(1, 1000)
	for i := range 20 {
		r.web.put(fmt.Sprint("f", i), want, "1")
		r.get(fmt.Sprint("f", i), want)
	}
	r.Close()
	path := filepath.Join(r.opts.Dir, indexName)
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(log[len(log)/2:], "damage")
	if err := os.WriteFile(path, log[:len(log)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	if n := r.Stats().Files; n < 17 || n > 20 {
		t.Errorf("%d files are left of 20", n)
	}
	for i := range 20 {
		r.get(fmt.Sprint("f", i), want)
	}
	if n := r.Stats().Fills; n == 0 || n > 5 {
		t.Errorf("%d files fetched again", n)
	}
	r.checkAccounts()
}

// BenchmarkRestart opens a cache of 1,000,000 files.
func BenchmarkRestart(b *testing.B) {
	r := newRig(b, func(o *Options) { o.MaxFiles, o.MaxBytes = 2_000_000, 1<<50 })
	r.Close()
	var log []byte
	for i := range uint64(1_000_000) {
		log = appendRecord(log, &record{kind: kindFile, id: i + 1, checked: time.Now().Unix(), path: fmt.Sprintf("vod/title-%06d/video/seg-%08d.m4s", i/500, i),
			version: origin.Version{Size: 1_400_000, ModTime: modified, ETag: `"0123456789abcdef0123456789abcdef"`}})
		log = appendRecord(log, &record{kind: kindBlocks, id: i + 1, sums: []uint32{1, 2}})
	}
	if err := os.WriteFile(filepath.Join(r.opts.Dir, indexName), log, 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r.open()
		if n := r.Stats().Files; n != 1_000_000 {
			b.Fatal(n)
		}
		r.Close()
	}
}

// TestPlantedIndex: a link in place of the index keeps the cache from opening, and one in place of the index that is being rewritten is replaced; what is behind it stays.
func TestPlantedIndex(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	untouched := func(name string) {
		if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
			t.Errorf("%s: the file behind it has become %q, %v", name, got, err)
		}
	}
	for _, name := range []string{lockName, indexName} {
		r := newRig(t)
		writeSecret(t, secret)
		r.Close()
		replaceByLink(t, secret, filepath.Join(r.opts.Dir, name))
		if c, err := Open("vod", testSource(t, r.web.URL), r.opts); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: a link was followed: %v, cache %v", name, err, c)
			if err == nil {
				c.Close()
			}
		}
		untouched(name)
	}

	r := newRig(t)
	writeSecret(t, secret)
	r.web.put("f", []byte("abc"), "1")
	r.get("f", []byte("abc"))
	r.Close()
	log := filepath.Join(r.opts.Dir, indexName)
	if err := os.WriteFile(log, []byte("damaged, so that it is rewritten at once"), 0o600); err != nil {
		t.Fatal(err)
	}
	planted := filepath.Join(r.opts.Dir, newIndex)
	replaceByLink(t, secret, planted)
	r.open()
	r.eventually("the index is rewritten", func() bool {
		_, err := os.Lstat(planted)
		return errors.Is(err, fs.ErrNotExist)
	})
	r.get("f", []byte("abc"))
	r.Close()
	if info, err := os.Lstat(log); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the index: %v, %v", info, err)
	}
	untouched(newIndex)
}

func writeSecret(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replaceByLink puts a symbolic link to target at path.
func replaceByLink(t *testing.T, target, path string) {
	t.Helper()
	_ = os.Remove(path) // maybe there is none
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
