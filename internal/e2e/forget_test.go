package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"spillway/internal/lab"
	"spillway/internal/mediafs"
)

// versions is an HTTP server of files whose content a test replaces.
type versions struct {
	mu    sync.Mutex
	files map[string][]byte
	tag   int
}

// start serves on the loopback of a lab's host until the test ends.
func (v *versions) start(t *testing.T, l *lab.Lab) {
	t.Helper()
	var listener net.Listener
	must(t, l.Host.Do(func() (err error) {
		listener, err = net.Listen("tcp", originAddr)
		return err
	}))
	server := &http.Server{Handler: v}
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Close(); done.Wait() })
}

// ServeHTTP answers with the version that there is now.
func (v *versions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	content, ok := v.files[r.URL.Path]
	tag := v.tag
	v.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, tag))
	http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(content))
}

func (v *versions) put(path string, content []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.files[path] = content
	v.tag++
}

// forgetRounds is how often a file is replaced: one of these times the machine must be fast enough to show that a guest has not waited.
const forgetRounds = 20

// TestForget: a file of a cache's origin is replaced, and the cache learns of it, as somebody asks when its time is over, or evicts the file. Both guests, which have
// just asked for the old version, serve the new one before the time is over for which they keep attributes, and cut nobody; and never a blend.
func TestForget(t *testing.T) {
	files := newMedia(t)
	v := &versions{files: map[string][]byte{}}
	l := newLab(t, files, func(o *lab.Options) {
		o.Origin, o.SecondGuest, o.Threshold = "http://"+originAddr+"/", true, 64<<10
		o.CacheConfig = "[[share.cache.rule]]\npattern = \"brief-*\"\nttl = \"1ms\"\n"
	})
	v.start(t, l)
	for name, c := range map[string]struct {
		file  string
		size  int // 30,000: the guest keeps the bytes and sends them; 300,000: the host sends
		learn string
	}{
		"small, its time is over": {"brief-small.m4s", 30_000, "/cache/warm"},
		"small, evicted":          {"small.m4s", 30_000, "/cache/evict"},
		"large, its time is over": {"brief-large.m4s", 300_000, "/cache/warm"},
		"large, evicted":          {"large.m4s", 300_000, "/cache/evict"},
	} {
		t.Run(name, func(t *testing.T) {
			arms := []lab.Arm{lab.Lease, lab.Second}
			current := files.fresh(c.size)
			v.put("/"+c.file, current)
			began := time.Now() // the guests ask for the present version after this
			for _, arm := range arms {
				fetch(t, l, arm, c.file, current)
			}
			shown := map[lab.Arm]bool{}
			for round := 0; round < forgetRounds && len(shown) < len(arms); round++ {
				next := files.fresh(c.size - round) // of another size, or in the first round not
				begins := time.Now()
				v.put("/"+c.file, next)
				learns(t, l, c.learn, c.file)
				for _, arm := range arms {
					cut := serves(t, l, arm, c.file, current, next)
					if took := time.Since(began); cut == 0 && took < mediafs.DefaultAttributeTTL {
						shown[arm] = true
					}
				}
				current, began = next, begins
			}
			for _, arm := range arms {
				if !shown[arm] {
					t.Errorf("%s: in %d rounds the new version never came within %v of the question about the old one, without a cut", arm, forgetRounds, mediafs.DefaultAttributeTTL)
				}
			}
		})
	}
}

// learns makes the cache learn that a file was replaced. A file that is still being sent is not evicted: the clients have its last byte before the host is through with it.
func learns(t *testing.T, l *lab.Lab, how, file string) {
	t.Helper()
	query := how + "?share=media&path=" + url.QueryEscape(file)
	if how != "/cache/evict" {
		must(t, l.HostAdmin(context.Background(), http.MethodPost, query, nil))
		return
	}
	eventually(t, "nobody uses the file", func() bool {
		var done struct {
			InUse int `json:"in_use"`
		}
		must(t, l.HostAdmin(context.Background(), http.MethodPost, query, &done))
		return done.InUse == 0
	})
}

// serves asks an arm for a file until it has the new version, and returns how often the connection was cut meanwhile.
func serves(t *testing.T, l *lab.Lab, arm lab.Arm, name string, older, newer []byte) (cut int) {
	t.Helper()
	const pause = 20 * time.Millisecond // in which news may come
	eventually(t, string(arm)+" serves the new version", func() bool {
		c := dial(t, l, arm)
		defer c.Close()
		resp, got, err := c.fetchAny(name)
		switch {
		case err != nil || resp.StatusCode == http.StatusServiceUnavailable:
			cut++
			if err == nil || bytes.HasPrefix(older, got) || bytes.HasPrefix(newer, got) {
				return false
			}
		case bytes.Equal(got, newer):
			return true
		case bytes.Equal(got, older):
			time.Sleep(pause)
			return false
		}
		t.Fatalf("%d bytes, which are of neither version; %v", len(got), err)
		return false
	})
	return cut
}

// TestForgetOfDirectory: a segment of a directory is replaced, whose attributes a guest that mounts it keeps for a minute. A client gets the old version, which the
// host finds to be replaced meanwhile, and the next one the new version; nobody is cut.
func TestForgetOfDirectory(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			const name, size, rounds = "smarttv/seg-1.m4s", 300_000, 10
			file := filepath.Join(files.dir, name)
			shown := false
			for round := 0; round < rounds && !shown; round++ { // the news may come behind the next request
				current, err := os.ReadFile(file)
				must(t, err)
				fetch(t, l, arm, name, current)
				next := files.fresh(size - round)
				must(t, os.WriteFile(file+".new", next, 0o644))
				must(t, os.Rename(file+".new", file))
				shown = serves(t, l, arm, name, current, next) == 0
			}
			if !shown {
				t.Errorf("in %d rounds some client was cut each time", rounds)
			}
		})
	}
}
