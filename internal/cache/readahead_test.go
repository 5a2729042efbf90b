package cache

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway/internal/origin"
	"spillway/internal/wire"
)

func TestNextName(t *testing.T) {
	for name, want := range map[string]string{
		"segment-12.m4s":              "segment-13.m4s",
		"a/b9/chunk-0-00099.m4s":      "a/b9/chunk-0-00100.m4s",
		"99.ts":                       "100.ts",
		"a/seg_9_v.mp4":               "a/seg_10_v.mp4",
		"seg7":                        "seg8",
		"a.1/seg.m4s":                 "", // the number is the directory's
		"1080p/init.mp4":              "",
		"live.m3u8":                   "",
		"":                            "",
		".5":                          "", // an extension
		"f" + strings.Repeat("9", 19): "",
		"f" + strings.Repeat("9", 18): "f1" + strings.Repeat("0", 18),
	} {
		if got, ok := nextName(name); got != want || ok != (want != "") {
			t.Errorf("behind %q comes %q, %t, want %q", name, got, ok, want)
		}
	}
}

// series puts files seg-1.m4s to seg-n.m4s and returns their content.
func (r *rig) series(n, size int) (content_ map[string][]byte) {
	r.tb.Helper()
	content_ = map[string][]byte{}
	for i := range n {
		name := fmt.Sprintf("seg-%d.m4s", i+1)
		content_[name] = content(byte(i+1), size)
		r.web.put(name, content_[name], "1")
	}
	return content_
}

// cached tells whether all of a file is there.
func (r *rig) cached(name string) bool {
	s, ok := r.File(name)
	return ok && s.Complete
}

func readAhead(n int) func(*Options) { return func(o *Options) { o.ReadAhead = n } }

// TestReadAhead: the next files are there when they are asked for, and no more of them than was said.
func TestReadAhead(t *testing.T) {
	r := newRig(t, readAhead(2))
	files := r.series(9, 3<<20+5)
	r.get("seg-3.m4s", files["seg-3.m4s"])
	r.eventually("the next two are there", func() bool { return r.cached("seg-4.m4s") && r.cached("seg-5.m4s") })
	r.idle()
	if gets, heads := r.web.requests(); len(gets) != 3 || heads != 3 {
		t.Errorf("the origin saw %q and %d more", gets, heads)
	}
	r.get("seg-4.m4s", files["seg-4.m4s"])
	r.eventually("the next one is there", func() bool { return r.cached("seg-6.m4s") })
	r.idle()
	if gets, heads := r.web.requests(); len(gets) != 4 || heads != 4 {
		t.Errorf("the origin saw %q and %d more", gets, heads)
	}
	if s := r.Stats(); s.Hits != 1 || s.Misses != 1 || s.ReadAhead != 3 {
		t.Errorf("%+v", s)
	}
	r.checkAccounts()
}

// TestNoReadAhead: it is off unless somebody asks for it.
func TestNoReadAhead(t *testing.T) {
	r := newRig(t)
	files := r.series(2, 10)
	r.get("seg-1.m4s", files["seg-1.m4s"])
	r.idle()
	if r.cached("seg-2.m4s") {
		t.Error("read ahead")
	}
}

// idle waits until the read-ahead has nothing to do.
func (r *rig) idle() {
	r.tb.Helper()
	r.eventually("nothing is fetched ahead", func() bool {
		r.lock()
		defer r.unlock()
		return r.ahead.running == 0 && len(r.ahead.waiting) == 0 && len(r.ahead.known) == 0
	})
}

// TestReadAheadEnd: a file that is not there yet is not kept from whoever asks for it a moment later, and is not looked for again each time.
func TestReadAheadEnd(t *testing.T) {
	r := newRig(t, readAhead(3))
	files := r.series(2, 1000)
	for range 5 {
		r.get("seg-2.m4s", files["seg-2.m4s"])
		r.idle()
	}
	if _, heads := r.web.requests(); heads != 2 {
		t.Errorf("%d questions, want one for seg-2 and one for seg-3", heads)
	}
	r.web.put("seg-3.m4s", []byte("new"), "1")
	r.get("seg-3.m4s", []byte("new"))
	if _, _, err := r.Stat(t.Context(), "seg-7.m4s"); !errors.Is(err, wire.ReasonNotFound) {
		t.Error(err)
	}
}

// TestReadAheadUnfinished: the next segment of a live stream was still being written when it was read ahead.
func TestReadAheadUnfinished(t *testing.T) {
	r := newRig(t, readAhead(1))
	r.clock.mu.Lock()
	r.clock.now = modified.Add(time.Minute)
	r.clock.mu.Unlock()
	half, whole := content(2, 2<<20), content(2, 3<<20)
	r.web.put("seg-1.m4s", content(1, 1000), "1")
	r.web.put("seg-2.m4s", half, "half")
	r.get("seg-1.m4s", content(1, 1000))
	r.eventually("the half segment is there", func() bool { return r.cached("seg-2.m4s") })
	r.idle()
	r.reopen() // which is no reason to believe it
	r.web.put("seg-2.m4s", whole, "whole")
	r.get("seg-2.m4s", whole)
	r.get("seg-2.m4s", whole)
	if s := r.Stats(); s.Replaced != 1 || s.Lookups != 2 { // seg-3 too, which is not there
		t.Errorf("%+v", s)
	}
}

// narrow is a rig whose origin takes so many requests at a time.
func narrow(t *testing.T, requests, ahead int) *rig {
	t.Helper()
	r := newRig(t, readAhead(ahead))
	r.Close()
	o, err := origin.Open(t.Context(), r.web.URL, origin.HTTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.Cache, err = Open("vod", origin.NewSource(o, origin.Options{Timeout: patience, MaxRequests: requests}), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReadAheadIsBounded: whatever is to be read ahead, one request to the origin is left for who asks.
func TestReadAheadIsBounded(t *testing.T) {
	const requests = 4
	r := narrow(t, requests, 8)
	var mu sync.Mutex
	opened := make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	defer open()
	defer time.AfterFunc(patience, open).Stop() // who asks would wait for ever where the bound is none
	early, most := 0, 0
	r.web.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "2.m4s") {
			return false
		}
		mu.Lock()
		early++
		most = max(most, early)
		mu.Unlock()
		<-opened
		mu.Lock()
		early--
		mu.Unlock()
		return false
	})
	const series = 10
	for i := range series {
		for _, n := range []int{1, 2} {
			r.web.put(fmt.Sprintf("%c-%d.m4s", 'a'+i, n), content(byte(i), 1000), "1")
		}
	}
	for i := range series {
		r.get(fmt.Sprintf("%c-1.m4s", 'a'+i), content(byte(i), 1000)) // it always finds a request free
	}
	r.eventually("the origin is asked for as many as it may be", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return early == requests-1
	})
	open()
	r.idle()
	if most != requests-1 {
		t.Errorf("%d at a time, want %d", most, requests-1)
	}
	for i := range series {
		if name := fmt.Sprintf("%c-2.m4s", 'a'+i); !r.cached(name) {
			t.Errorf("%s was forgotten", name)
		}
	}
	r.checkAccounts()
}

// TestReadAheadMakesWay: where somebody waits for his turn, what nobody has asked for ends at the next block, and goes on later.
func TestReadAheadMakesWay(t *testing.T) {
	r := narrow(t, 2, 1)
	const size = 8 << 20
	files := r.series(2, size)
	aheadOpened, firstOpened := make(chan struct{}), make(chan struct{})
	openAhead, openFirst := sync.OnceFunc(func() { close(aheadOpened) }), sync.OnceFunc(func() { close(firstOpened) })
	var both sync.WaitGroup
	defer both.Wait()
	defer openAhead()
	defer openFirst()
	release := func(w http.ResponseWriter, data []byte, first, last, after int, opened chan struct{}) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[first : first+after])
		w.(http.Flusher).Flush()
		<-opened
		_, _ = w.Write(data[first+after : last+1])
	}
	r.web.put("one", content(21, 1000), "1")
	r.web.put("two", content(22, 1000), "1")
	r.web.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet {
			return false
		}
		var first, last int
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		switch {
		case req.URL.Path == "/seg-2.m4s" && first == 0:
			release(w, files["seg-2.m4s"], first, last, 1<<20+1<<19, aheadOpened)
			return true
		case req.URL.Path == "/one":
			release(w, content(21, 1000), first, last, 1, firstOpened)
			return true
		}
		return false
	})
	r.get("seg-1.m4s", files["seg-1.m4s"])
	r.eventually("the next one has begun", func() bool { s, ok := r.File("seg-2.m4s"); return ok && s.CachedBytes == 1<<20 })
	both.Go(func() { r.get("one", content(21, 1000)) })
	r.eventually("all requests are taken", func() bool { return r.Stats().Filling == 2 })
	both.Go(func() { r.get("two", content(22, 1000)) })
	r.eventually("one more waits", func() bool { return r.Stats().Filling == 3 })
	openAhead()
	r.eventually("it has had its turn", func() bool { return r.cached("two") })
	if r.cached("seg-2.m4s") {
		t.Error("what nobody has asked for was fetched first")
	}
	openFirst()
	r.eventually("the rest is fetched when there is time", func() bool { return r.cached("seg-2.m4s") })
	r.idle()
	r.get("seg-2.m4s", files["seg-2.m4s"])
	r.checkAccounts()
}

// TestReadAheadOfWhatIsAskedFor: who asks for a file that is being read ahead gets it from the same request, which makes way for nobody any more.
func TestReadAheadOfWhatIsAskedFor(t *testing.T) {
	r := newRig(t, readAhead(1))
	files := r.series(2, 8<<20)
	opened := make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	r.web.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/seg-2.m4s" && req.Method == http.MethodGet {
			<-opened
		}
		return false
	})
	r.get("seg-1.m4s", files["seg-1.m4s"])
	r.eventually("the next one is asked for", func() bool { gets, _ := r.web.requests(); return len(gets) == 2 })
	f := r.acquire(r.ref("seg-2.m4s"))
	defer f.Release()
	var reading sync.WaitGroup
	defer reading.Wait()
	defer open()
	reading.Go(func() {
		if _, err := r.read(f, 0, 8<<20); err != nil {
			t.Error(err)
		}
	})
	r.eventually("the reader waits for its run", func() bool {
		r.lock()
		defer r.unlock()
		e := r.entries["seg-2.m4s"]
		return len(e.runs) == 1 && !e.runs[0].early
	})
	open()
	reading.Wait()
	r.idle()
	if gets, _ := r.web.requests(); len(gets) != 2 {
		t.Errorf("the origin saw %q", gets)
	}
}
