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
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/bench"
	"spillway/internal/cache"
	"spillway/internal/origin"
	"spillway/internal/wire"
)

// missSizes are those of the seed paper's Table I, in bytes.
var missSizes = []int{288_600, 1_400_000, 4_300_000, 10_500_000}

// Arms of Miss.
const (
	missPlain = "plain" // net/http in this process
	missCurl  = "curl"  // the program, into a file; its connection is a new one, which its times leave out
	missCache = "cache" // the cache: HEAD, GET, written to disk with checksums, and read again
)

// missCacheBytes is the budget: more than a round brings, less than all of them.
const missCacheBytes = 256 << 20

// Miss fetches files that the cache, in a directory below dir, has never seen from an HTTP origin on the loopback, and the same bytes with plain HTTP clients. Its
// rows have a size and an arm each; the first byte is that of the body, for the cache one that can be sent. Every body is compared, after the clock has stopped.
func Miss(ctx context.Context, dir string, rounds int, progress *bench.Progress) (*bench.Report, error) {
	m, err := newMissRig(dir)
	if err != nil {
		return nil, err
	}
	defer m.close()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	report := bench.NewReport("miss", bench.Env{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Link: "loopback"})
	gets := map[string]func(context.Context, string, []byte) (first, whole time.Duration, err error){missPlain: m.plain, missCurl: m.curl, missCache: m.cached}
	arms := []string{missPlain, missCurl, missCache}
	for _, size := range missSizes {
		progress.Step("files of %d bytes", size)
		recorders, passes := map[string]*bench.Recorder{}, map[string][]bench.Round{}
		for _, arm := range arms {
			recorders[arm] = &bench.Recorder{}
		}
		err := bench.Interleave(ctx, arms, rounds+1, func(ctx context.Context, arm string, round int) error {
			first, whole, err := gets[arm](ctx, fmt.Sprintf("%d/%d.m4s", size, round), m.buf[:size])
			if err == nil && !bytes.Equal(m.buf[:size], m.content[:size]) {
				err = errors.New("the body is wrong")
			}
			if err == nil && round > 0 { // the first one opens connections
				recorders[arm].Add(bench.Result{Bytes: int64(size), FirstByte: first, Elapsed: whole})
				recorders[arm].AddElapsed(whole)
				passes[arm] = append(passes[arm], bench.Round{Bytes: int64(size), Elapsed: whole})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, arm := range arms {
			row := recorders[arm].Row(arm, SizeName(int64(size)))
			row.CaseBytes, row.Spread = int64(size), recorders[arm].SpreadOf(passes[arm])
			report.Rows = append(report.Rows, row)
		}
		progress.Done("done")
	}
	return report, nil
}

// MissRatio compares the cache with the plain clients, by medians: times to the first byte, and throughputs.
type MissRatio struct {
	Case                                               string
	FirstToPlain, FirstToCurl, RateToPlain, RateToCurl float64
}

// MissRatios are those of a report of Miss.
func MissRatios(report *bench.Report) (ratios []MissRatio) {
	rows := map[[2]string]bench.Row{}
	for _, r := range report.Rows {
		rows[[2]string{r.Case, r.Arm}] = r
	}
	for _, c := range report.Rows {
		if c.Arm != missCache {
			continue
		}
		plain, curl := rows[[2]string{c.Case, missPlain}], rows[[2]string{c.Case, missCurl}]
		ratios = append(ratios, MissRatio{
			c.Case, c.FirstByteUs / plain.FirstByteUs, c.FirstByteUs / curl.FirstByteUs, plain.MedianUs / c.MedianUs, curl.MedianUs / c.MedianUs,
		})
	}
	return ratios
}

// missRig is an origin with both its clients.
type missRig struct {
	content, buf []byte
	server       *http.Server
	serving      sync.WaitGroup
	url          string
	client       http.Client
	cache        *cache.Cache
	download     string // curl's file
}

func newMissRig(dir string) (*missRig, error) {
	largest := missSizes[len(missSizes)-1]
	m := &missRig{content: make([]byte, largest), buf: make([]byte, largest), download: filepath.Join(dir, "download")}
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

// curl is the program. What it tells as its times is without its own start, and without the connection's.
func (m *missRig) curl(ctx context.Context, name string, p []byte) (first, whole time.Duration, err error) {
	defer os.Remove(m.download) // the cache's file is a new one too
	cmd := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", m.download,
		"--write-out", "%{time_pretransfer} %{time_starttransfer} %{time_total}", m.url+name)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("curl: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var ready, start, total float64 // s
	if _, err := fmt.Sscan(string(out), &ready, &start, &total); err != nil {
		return 0, 0, fmt.Errorf("curl says %q: %w", out, err)
	}
	f, err := os.Open(m.download)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	_, err = io.ReadFull(f, p)
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return seconds(start - ready), seconds(total - ready), err
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
