package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"spillway/internal/host"
	"spillway/internal/lab"
)

// slowOrigin is an HTTP server on the loopback of a lab's host that stops in the middle of each body until it is told to go on, and counts.
type slowOrigin struct {
	content []byte
	stopAt  int
	goOn    chan struct{}

	mu     sync.Mutex
	gets   []string // ranges
	heads  int
	served int // bytes
}

// originAddr is in the host's namespace of each lab.
const originAddr = "127.0.0.1:7080"

// start serves until the test ends.
func (o *slowOrigin) start(t *testing.T, l *lab.Lab) {
	t.Helper()
	var listener net.Listener
	must(t, l.Host.Do(func() (err error) {
		listener, err = net.Listen("tcp", originAddr)
		return err
	}))
	server := &http.Server{Handler: o}
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Close(); done.Wait() })
}

// ServeHTTP knows one file, under every name that ends in .m4s.
func (o *slowOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"1"`)
	o.mu.Lock()
	if r.Method == http.MethodGet {
		o.gets = append(o.gets, r.URL.Path+" "+r.Header.Get("Range"))
	} else {
		o.heads++
	}
	o.mu.Unlock()
	http.ServeContent(&stopping{ResponseWriter: w, origin: o, ended: r.Context().Done()}, r, "", time.Unix(1e9, 0), bytes.NewReader(o.content))
}

// stopping passes a body on up to where it is to stop.
type stopping struct {
	http.ResponseWriter
	origin *slowOrigin
	ended  <-chan struct{}
	sent   int
}

func (s *stopping) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if s.sent >= s.origin.stopAt {
			select {
			case <-s.origin.goOn:
			case <-s.ended:
				return n, context.Canceled
			}
		}
		part := p[n:]
		if s.sent < s.origin.stopAt {
			part = part[:min(len(part), s.origin.stopAt-s.sent)]
		}
		m, err := s.ResponseWriter.Write(part)
		n, s.sent = n+m, s.sent+m
		s.origin.mu.Lock()
		s.origin.served += m
		s.origin.mu.Unlock()
		if err != nil {
			return n, err
		}
		s.ResponseWriter.(http.Flusher).Flush()
	}
	return n, nil
}

// expect compares what the origin has been asked for.
func (o *slowOrigin) expect(t *testing.T, gets, heads, bytes int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.gets) != gets || o.heads != heads || o.served != bytes {
		t.Errorf("the origin was asked for %q and %d versions, and sent %d bytes; want %d, %d and %d", o.gets, o.heads, o.served, gets, heads, bytes)
	}
}

// cacheStats is what the daemon tells of the lab's cache.
func cacheStats(t *testing.T, l *lab.Lab) (s host.ShareStatus) {
	t.Helper()
	var all host.Status
	must(t, l.HostAdmin(context.Background(), http.MethodGet, "/status", &all))
	if len(all.Shares) != 1 || all.Shares[0].Cache == nil {
		t.Fatalf("shares %+v, want one cache", all.Shares)
	}
	return all.Shares[0]
}

// TestCacheColdCrowd: many clients of a VM ask for a segment that nobody has asked for before. It is fetched once, each has its first byte before the origin has
// sent its last, and for the next VM it is there.
func TestCacheColdCrowd(t *testing.T) {
	const clients, sentAtFirst = 200, 1_000_000
	files := newMedia(t)
	want := files.files["10m.mp4"]
	o := &slowOrigin{content: want, stopAt: sentAtFirst, goOn: make(chan struct{})}
	l := newLab(t, files, func(opts *lab.Options) { opts.Origin, opts.SecondGuest = "http://"+originAddr+"/vod/", true })
	o.start(t, l)

	var began, done sync.WaitGroup
	began.Add(clients)
	for i := range clients {
		c := dial(t, l, lab.Lease)
		c.patience = patience
		done.Go(func() {
			const first = 1000
			ok := c.begin("seg-1.m4s", want, first)
			began.Done()
			if !ok {
				return
			}
			if !c.take(want[first:]) {
				t.Errorf("client %d has not got all", i)
			}
		})
	}
	began.Wait()
	o.expect(t, 1, 1, sentAtFirst)
	if s := cacheStats(t, l).Cache; s.Filling != 1 {
		t.Errorf("%+v; want one fill under way", s)
	}
	close(o.goOn)
	done.Wait()
	o.expect(t, 1, 1, len(want))
	expectSends(t, l, lab.Lease, clients)

	before := cacheStats(t, l).Cache
	fetch(t, l, lab.Second, "seg-1.m4s", want)
	expectSends(t, l, lab.Second, 1)
	fetch(t, l, lab.Offload, "seg-1.m4s", want)
	expectSends(t, l, lab.Offload, 1)
	after := cacheStats(t, l).Cache
	if after.Hits != before.Hits+2 || after.Misses != before.Misses || after.Fills != 1 || after.FillBytes != uint64(len(want)) {
		t.Errorf("before %+v\nafter %+v; want two hits, and no fill", before, after)
	}
	o.expect(t, 1, 1, len(want))
	fetchRange(t, l, lab.Second, want)
}

// TestCacheRecall: the connection of a client that waits for the origin, with the daemon, goes back to the VM, whose server reads on through the channel.
func TestCacheRecall(t *testing.T) {
	for name, sentAtFirst := range map[string]int{"before the first byte": 0, "in the middle": 1_000_000} {
		t.Run(name, func(t *testing.T) {
			files := newMedia(t)
			want := files.files["10m.mp4"]
			o := &slowOrigin{content: want, stopAt: sentAtFirst, goOn: make(chan struct{})}
			l := newLab(t, files, func(opts *lab.Options) { opts.Origin = "http://" + originAddr + "/vod/" })
			o.start(t, l)
			check := watchResets(t, l)
			c := dial(t, l, lab.Lease)
			if !c.ask("seg-1.m4s") {
				return
			}
			if sentAtFirst > 0 {
				_, err := c.header(http.MethodGet)
				must(t, err)
				c.take(want[:sentAtFirst])
			}
			eventually(t, "the daemon waits for the origin", func() bool {
				s := hostStatus(t, l)
				return s.Leases == 1 && cacheStats(t, l).Cache.Filling == 1
			})
			recall(t, l)
			eventually(t, "the connection is back", func() bool { return hostStatus(t, l).Handbacks == 1 })
			close(o.goOn)
			if sentAtFirst == 0 {
				resp, err := c.header(http.MethodGet)
				must(t, err)
				if resp.ContentLength != int64(len(want)) {
					t.Errorf("%+v", resp)
				}
			}
			c.take(want[sentAtFirst:])
			o.expect(t, 1, 1, len(want))
			eventually(t, fmt.Sprintf("%d bytes were sent by the host, and the rest by the guest", sentAtFirst), func() bool {
				s := serverStats(t, l, lab.Lease).Counts
				return s.SentBytes == uint64(sentAtFirst) && s.LocalBytes >= uint64(len(want)-sentAtFirst) && s.Lost == 0
			})
			c.get("seg-1.m4s", want) // the same connection, leased again
			expectSends(t, l, lab.Lease, 2)
			must(t, c.Close())
			noLeases(t, l)
			check()
		})
	}
}

// fetchRange gets the middle of the file as a 206.
func fetchRange(t *testing.T, l *lab.Lab, arm lab.Arm, want []byte) {
	t.Helper()
	c := dial(t, l, arm)
	const first, last = 3_000_000, 4_999_999
	if !c.send(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%d-%d\r\n\r\n", target("seg-1.m4s"), c.addr, first, last)) {
		return
	}
	resp, err := c.header(http.MethodGet)
	if err != nil || resp.StatusCode != http.StatusPartialContent {
		t.Errorf("a range: %+v, %v", resp, err)
		return
	}
	c.take(want[first : last+1])
	must(t, c.Close())
}
