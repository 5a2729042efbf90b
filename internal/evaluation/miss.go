package evaluation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"spillway/internal/bench"
	"spillway/internal/cache"
	"spillway/internal/origin"
	"spillway/internal/wire"
)

// missSizes are those of the seed paper's Table I, in bytes.
var missSizes = []int{288_600, 1_400_000, 4_300_000, 10_500_000}

// MissRow is what a miss of the cache costs beside a plain HTTP client's GET from the same origin, for files of one size. Medians.
type MissRow struct {
	Bytes  int `json:"bytes"`
	Rounds int `json:"rounds"`

	PlainFirstUs float64 `json:"plain_first_us"` // from the request to the first byte of the body
	CacheFirstUs float64 `json:"cache_first_us"` // from the question for attributes, which the origin is asked too, to the first byte that can be sent
	PlainMBPerS  float64 `json:"plain_mb_per_s"`
	CacheMBPerS  float64 `json:"cache_mb_per_s"` // written to disk, with checksums, and read again
}

// arms of Miss.
const (
	missPlain = "plain"
	missCache = "cache"
)

// missCacheBytes is the budget: more than a round brings, less than all of them.
const missCacheBytes = 256 << 20

// Miss fetches files that the cache, in a directory below dir, has never seen from an HTTP origin on the loopback, and the same bytes with net/http. Every body is
// compared, after the clock has stopped.
func Miss(ctx context.Context, dir string, rounds int, progress *bench.Progress) ([]MissRow, error) {
	m, err := newMissRig(dir)
	if err != nil {
		return nil, err
	}
	defer m.close()
	var rows []MissRow
	for _, size := range missSizes {
		progress.Step("files of %d bytes", size)
		first, whole := map[string][]time.Duration{}, map[string][]time.Duration{}
		err := bench.Interleave(ctx, []string{missPlain, missCache}, rounds+1, func(ctx context.Context, arm string, round int) error {
			get := m.plain
			if arm == missCache {
				get = m.cached
			}
			firstTook, took, err := get(ctx, fmt.Sprintf("%d/%d.m4s", size, round), m.buf[:size])
			if err == nil && !bytes.Equal(m.buf[:size], m.content[:size]) {
				err = errors.New("the body is wrong")
			}
			if err == nil && round > 0 { // the first one opens connections
				first[arm], whole[arm] = append(first[arm], firstTook), append(whole[arm], took)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
		rate := func(arm string) float64 { return float64(size) / us(bench.Summarize(whole[arm]).Median) }
		rows = append(rows, MissRow{
			Bytes: size, Rounds: rounds, PlainFirstUs: us(bench.Summarize(first[missPlain]).Median), CacheFirstUs: us(bench.Summarize(first[missCache]).Median),
			PlainMBPerS: rate(missPlain), CacheMBPerS: rate(missCache),
		})
		progress.Done("done")
	}
	return rows, nil
}

// missRig is an origin with both its clients.
type missRig struct {
	content, buf []byte
	server       *http.Server
	serving      sync.WaitGroup
	url          string
	client       http.Client
	cache        *cache.Cache
}

func newMissRig(dir string) (*missRig, error) {
	largest := missSizes[len(missSizes)-1]
	m := &missRig{content: make([]byte, largest), buf: make([]byte, largest)}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(m.content) // it never fails
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m.url = "http://" + listener.Addr().String() + "/"
	m.server = &http.Server{Handler: http.HandlerFunc(m.serve)}
	m.serving.Go(func() { _ = m.server.Serve(listener) })
	m.client.Transport = &http.Transport{DisableCompression: true}
	o, err := origin.Open(context.Background(), m.url, origin.HTTPOptions{})
	if err == nil {
		m.cache, err = cache.Open("bench", origin.NewSource(o, origin.Options{}), cache.Options{
			Dir: filepath.Join(dir, "cache"), MaxBytes: missCacheBytes, MaxFiles: 1000, TTL: time.Hour,
		})
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *missRig) close() {
	if m.cache != nil {
		m.cache.Close()
	}
	m.client.CloseIdleConnections()
	_ = m.server.Close() // nobody asks any more
	m.serving.Wait()
}

// serve answers any name SIZE/…
func (m *missRig) serve(w http.ResponseWriter, r *http.Request) {
	var size int
	if _, err := fmt.Sscanf(strings.TrimPrefix(r.URL.Path, "/"), "%d/", &size); err != nil || size < 0 || size > len(m.content) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"1"`)
	http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(m.content[:size]))
}

// plain is a GET with net/http.
func (m *missRig) plain(ctx context.Context, name string, p []byte) (first, whole time.Duration, err error) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+name, nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(p)) {
		return 0, 0, fmt.Errorf("GET %s: %s, %d bytes", name, resp.Status, resp.ContentLength)
	}
	n, err := resp.Body.Read(p)
	first = time.Since(began)
	if err == nil {
		_, err = io.ReadFull(resp.Body, p[n:])
	}
	return first, time.Since(began), err
}

// cached is what the host does for a guest that sends a file nobody has asked for: STAT, and a SEND that follows the fill.
func (m *missRig) cached(ctx context.Context, name string, p []byte) (first, whole time.Duration, err error) {
	began := time.Now()
	size, mtime, err := m.cache.Stat(ctx, name)
	if err != nil {
		return 0, 0, err
	}
	f, err := m.cache.Acquire(ctx, wire.FileRef{Share: "bench", Path: name, Size: size, MTime: mtime}, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Release()
	if _, err := f.Await(ctx, 0); err != nil {
		return 0, 0, err
	}
	first = time.Since(began)
	_, err = f.ReadAt(ctx, p, 0)
	return first, time.Since(began), err
}
