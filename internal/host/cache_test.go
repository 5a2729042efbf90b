package host

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway/internal/config"
	"spillway/internal/wire"
)

// originServer serves "big" and, after a gate is opened, "slow", the rest of "half", and what is asked about "late" behind the first question.
type originServer struct {
	*httptest.Server
	gate chan struct{}
	gets atomic.Int64
	late atomic.Int64 // questions about "late"
	etag atomic.Int64
}

// halfway is how many bytes of "half" come at first.
const halfway = 300_000

// halting writes so many bytes, and waits before the next ones.
type halting struct {
	http.ResponseWriter
	left int
	wait func()
}

func (h *halting) Write(p []byte) (int, error) {
	first := min(h.left, len(p))
	n, err := h.ResponseWriter.Write(p[:first])
	if h.left -= n; err != nil || n == len(p) {
		return n, err
	}
	_ = http.NewResponseController(h.ResponseWriter).Flush()
	h.wait()
	m, err := h.ResponseWriter.Write(p[n:])
	h.left = len(p) // no more waits
	return n + m, err
}

// newCacheRig is a rig whose share "vod" comes from a real HTTP server.
func newCacheRig(t *testing.T) (*rig, *originServer) {
	o := &originServer{gate: make(chan struct{})}
	var r *rig
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			o.gets.Add(1)
		}
		switch {
		case req.URL.Path == "/slow" && req.Method == http.MethodGet, req.URL.Path == "/slowstat", req.URL.Path == "/late" && o.late.Add(1) > 1:
			select {
			case <-o.gate:
			case <-req.Context().Done():
			}
		case req.URL.Path == "/half" && req.Method == http.MethodGet:
			w = &halting{w, halfway, func() {
				select {
				case <-o.gate:
				case <-req.Context().Done():
				}
			}}
		case req.URL.Path != "/big" && req.URL.Path != "/slow" && req.URL.Path != "/half" && req.URL.Path != "/brief" && req.URL.Path != "/late":
			http.NotFound(w, req)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, o.etag.Load()))
		http.ServeContent(w, req, "", time.Unix(1e9, 0), bytes.NewReader(r.big))
	}))
	t.Cleanup(o.Close)
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-o.gate:
		default:
			close(o.gate)
		}
	}))
	newRig(t, func(made *rig) {
		r = made
		made.cfg.Shares = append(made.cfg.Shares, config.HostShare{Name: "vod", Origin: o.URL, Cache: config.ShareCache{
			Dir: filepath.Join(t.TempDir(), "vod"), MaxSize: 64 << 20, MaxLookups: 50,
			Rules: []config.CacheRule{{Pattern: "brief", TTL: config.Duration(time.Nanosecond)}},
		}})
		for i := range made.cfg.VMs {
			made.cfg.VMs[i].Shares = append(made.cfg.VMs[i].Shares, "vod")
		}
	})
	return r, o
}

// vod asks the host for a file of the cache, as a guest does.
func vod(g *fakeGuest, id uint32, name string) wire.FileRef {
	g.send(id, 0, wire.Stat{Share: "vod", Path: name})
	m, _ := expect[wire.Attr](g, id)
	if m.Reason != wire.ReasonOK {
		g.tb.Fatalf("STAT %s: %v", name, m.Reason)
	}
	return wire.FileRef{Share: "vod", Path: name, Size: m.Size, MTime: m.MTime}
}

// TestCacheShare sends a file of an origin, twice, and reads of it through the channel.
func TestCacheShare(t *testing.T) {
	r, o := newCacheRig(t)
	g := r.guest(0)
	ref := vod(g, 20, "big")
	if ref.Size != int64(len(r.big)) {
		t.Errorf("%+v", ref)
	}
	c := r.lease(g, 1)
	for range 2 {
		g.send(1, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
		c.clientReads([]byte("head\n"))
		c.clientReads(r.big)
		if m, _ := expect[wire.Sent](g, 1); m.Reason != wire.ReasonOK || m.Bytes != ref.Size {
			t.Errorf("SENT %+v", m)
		}
	}
	g.send(21, 0, wire.Read{File: ref, Offset: 100, Count: 1000})
	if m, _ := expect[wire.Bytes](g, 21); m.Reason != wire.ReasonOK || !bytes.Equal(m.Data, r.big[100:1100]) {
		t.Errorf("BYTES %v, %d", m.Reason, len(m.Data))
	}
	if n := o.gets.Load(); n != 1 {
		t.Errorf("the origin was asked for bytes %d times", n)
	}
	wrong := ref
	wrong.MTime++
	g.send(1, 0, wire.Send{File: wrong, Count: 1, Header: []byte("never\n")})
	if m, flags := expect[wire.Sent](g, 1); m.Reason != wire.ReasonChanged || flags != 0 {
		t.Errorf("SENT %+v, flags %v", m, flags)
	}
}

// TestSlowOriginBlocksNobody: a lease and STATs that wait for the origin, while others are served.
func TestSlowOriginBlocksNobody(t *testing.T) {
	r, o := newCacheRig(t)
	g := r.guest(0)
	ref := vod(g, 20, "slow")
	waits := r.lease(g, 1)
	g.send(1, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
	for id := range uint32(10) {
		g.send(100+id, 0, wire.Stat{Share: "vod", Path: "slowstat"})
	}
	r.eventually("the origin is asked", func() bool { return o.gets.Load() == 1 })
	other := r.lease(g, 2)
	g.send(2, 0, r.whole("small", ""))
	other.clientReads(r.big[:4096])
	expect[wire.Sent](g, 2)
	g.send(30, 0, wire.Stat{Share: "media", Path: "small"})
	if m, _ := expect[wire.Attr](g, 30); m.Reason != wire.ReasonOK {
		t.Errorf("STAT of another share: %v", m.Reason)
	}
	close(o.gate)
	waits.clientReads([]byte("head\n"))
	waits.clientReads(r.big)
	if m, _ := expect[wire.Sent](g, 1); m.Reason != wire.ReasonOK {
		t.Errorf("SENT %+v", m)
	}
}

// TestGuestAsksForManyNames: the origin does not pay for it.
func TestGuestAsksForManyNames(t *testing.T) {
	r, _ := newCacheRig(t)
	g := r.guest(0)
	limited := 0
	for i := range 200 {
		g.send(uint32(20+i), 0, wire.Stat{Share: "vod", Path: strings.Repeat("x", i+1)})
		m, _ := expect[wire.Attr](g, uint32(20+i))
		if m.Reason == wire.ReasonLimit {
			limited++
		} else if m.Reason != wire.ReasonNotFound {
			t.Fatalf("%v", m.Reason)
		}
	}
	if limited == 0 {
		t.Error("every question was passed on")
	}
}

// TestForgetReplaced: all guests hear of a file that one of them has found to be replaced.
func TestForgetReplaced(t *testing.T) {
	r, o := newCacheRig(t)
	one, two := r.guest(0), r.guest(1)
	older := vod(one, 20, "brief")
	if again := vod(two, 20, "brief"); again != older {
		t.Errorf("%+v and %+v", older, again)
	}
	o.etag.Add(1)
	if newer := vod(one, 21, "brief"); newer == older {
		t.Error("the origin has replaced it, and the cache does not see it")
	}
	for _, g := range []*fakeGuest{one, two} {
		if m, _ := expect[wire.Forget](g, 0); m.Share != "vod" || m.Path != "brief" {
			t.Errorf("FORGET %+v", m)
		}
	}
	vod(two, 21, "big")
	select {
	case got := <-two.of(0):
		t.Errorf("%+v too", got.message)
	default:
	}
}

// TestForgetIsForThoseWhoMayKnow: a guest that may not name the share hears nothing of its files.
func TestForgetIsForThoseWhoMayKnow(t *testing.T) {
	r, _ := newCacheRig(t)
	delete(r.daemon.vms[1].shares, "vod") // before its guest comes
	one, two := r.guest(0), r.guest(1)
	for _, g := range []*fakeGuest{one, two} { // an answer tells that the session has begun
		g.send(20, 0, wire.Stat{Share: "media", Path: "small"})
		expect[wire.Attr](g, 20)
	}
	r.daemon.forget("vod", "f")
	if m, _ := expect[wire.Forget](one, 0); m.Path != "f" {
		t.Errorf("FORGET %+v", m)
	}
	r.daemon.forget("media", "g") // comes behind whatever there is
	if m, _ := expect[wire.Forget](two, 0); m.Share != "media" || m.Path != "g" {
		t.Errorf("FORGET %+v", m)
	}
}

// TestManyForgets: they take neither memory without end, nor the place of what the guest asks.
func TestManyForgets(t *testing.T) {
	d := &desk{workers: maxRequests} // of which none is there
	d.work.L = &d.mu
	for range 10 * maxDeskEntries {
		d.forget("vod", "f")
	}
	if len(d.entries) != maxForgets {
		t.Errorf("%d wait, want %d", len(d.entries), maxForgets)
	}
	if err := d.add(entry{kind: wire.TypeStat}); err != nil || d.entries[maxForgets].reason != wire.ReasonOK {
		t.Errorf("a STAT: %v", err)
	}
}

// TestStopWhileOriginIsSilent: a lease that waits for an origin does not keep the daemon from stopping, nor a session from ending.
func TestStopWhileOriginIsSilent(t *testing.T) {
	r, o := newCacheRig(t)
	r.daemon.cfg.Limits.DrainTimeout = config.Duration(100 * time.Millisecond)
	g := r.guest(0)
	ref := vod(g, 20, "slow")
	r.lease(g, 1)
	g.send(1, 0, wire.Send{File: ref, Count: ref.Size, Header: []byte("head\n")})
	r.eventually("the origin is asked", func() bool { return o.gets.Load() == 1 })
	r.stop() // checkStop, at the test's end, has little patience
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("the daemon does not stop")
	}
}

// TestCacheOrders asks the daemon as spillway cache does.
func TestCacheOrders(t *testing.T) {
	r, o := newCacheRig(t)
	h := r.daemon.AdminHandler()
	ask := func(method, url string) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, url, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", url, w.Code, w.Body)
		}
		return w.Body.String()
	}
	if got := ask("POST", "/cache/warm?share=vod&path=big"); !strings.Contains(got, `"complete":true`) || o.gets.Load() != 1 {
		t.Errorf("warm: %s", got)
	}
	if got := ask("GET", "/cache/files?share=vod"); !strings.Contains(got, `"path": "big"`) {
		t.Errorf("files: %s", got)
	}
	ask("POST", "/cache/pin?share=vod&path=big")
	if got := ask("POST", "/cache/evict?share=vod&path=big"); !strings.Contains(got, `"pinned": 1`) {
		t.Errorf("evict: %s", got)
	}
	ask("POST", "/cache/unpin?share=vod&path=big")
	if got := ask("POST", "/cache/verify?share=vod&prefix="); !strings.Contains(got, `"damaged":[]`) {
		t.Errorf("verify: %s", got)
	}
	r.eventually("the fill has put the file down", func() bool { return strings.Contains(ask("GET", "/cache/files?share=vod"), `"users": 0`) })
	if got := ask("POST", "/cache/evict?share=vod&prefix=b"); !strings.Contains(got, `"files": 1`) {
		t.Errorf("evict: %s", got)
	}
	if got := ask("POST", "/cache/warm?share=vod&path=none"); !strings.Contains(got, `"error"`) {
		t.Errorf("warm: %s", got)
	}
	if got := ask("GET", "/metrics"); !strings.Contains(got, `spillway_host_cache_misses_total{share="vod"} 1`) {
		t.Errorf("metrics: %s", got)
	}
	if s := r.daemon.Status().Shares; s[len(s)-1].Cache == nil || s[len(s)-1].Cache.Fills != 1 {
		t.Errorf("status: %+v", s)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/cache/evict?share=media&path=big", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("a share that is no cache: %d", w.Code)
	}
}
