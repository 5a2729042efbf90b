package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"spillway/internal/wire"
)

// segment is the largest of the seed paper's sizes, of which the last block is no whole one.
const segment = 10_500_000

func TestMissThenHit(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("d/seg 1.m4s", want, "1")
	r.web.put("empty", nil, "2")
	r.get("d/seg 1.m4s", want)
	r.get("d/seg 1.m4s", want)
	r.eventually("it is served as a complete file", func() bool { // its last bytes may be read before that is noted
		f := r.acquire(r.ref("d/seg 1.m4s"))
		defer f.Release()
		return f.Complete()
	})
	r.get("empty", nil)
	gets, heads := r.web.requests()
	if !slices.Equal(gets, []string{"d/seg 1.m4s bytes=0-10499999"}) || heads != 2 {
		t.Errorf("the origin saw %q and %d more", gets, heads)
	}
	if s := r.Stats(); s.Hits != 3 || s.Misses != 1 || s.Fills != 1 || s.OriginErrors != 0 || s.FillBytes != segment || s.Bytes != segment || s.Files != 2 {
		t.Errorf("%+v", s)
	}
	r.checkAccounts()
}

// TestSingleFlight: many clients at once, one request to the origin, no wrong byte.
func TestSingleFlight(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("f", want, "1")
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			f, err := r.Acquire(context.Background(), r.ref("f"), 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Release()
			off := int64(i%4) * 1000 // within what the first run brings first
			if got, err := r.read(f, off, segment-off); err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("client %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	all.Wait()
	if gets, heads := r.web.requests(); len(gets) != 1 || heads != 1 {
		t.Errorf("the origin saw %q and %d more", gets, heads)
	}
	r.checkAccounts()
}

// gate makes the origin stop after so many bytes of each GET that begins at off, until it is opened.
func gate(r *rig, data []byte, off, after int) (open func()) {
	opened := make(chan struct{})
	r.web.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasPrefix(req.Header.Get("Range"), fmt.Sprintf("bytes=%d-", off)) {
			return false
		}
		var first, last int
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[first : first+after])
		w.(http.Flusher).Flush()
		select {
		case <-opened:
		case <-req.Context().Done():
		}
		_, _ = w.Write(data[first+after : last+1])
		return true
	})
	return sync.OnceFunc(func() { close(opened) })
}

// TestStreamsWhileItFills: the origin's first bytes are there before its last ones.
func TestStreamsWhileItFills(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("f", want, "1")
	open := gate(r, want, 0, 1000)
	defer open()
	f := r.acquire(r.ref("f"))
	defer f.Release()
	if got, err := r.read(f, 0, 1000); err != nil || !bytes.Equal(got, want[:1000]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := r.Stats().Filling; n != 1 {
		t.Errorf("%d fills under way", n)
	}
	open()
	if got, err := r.read(f, 0, segment); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.settled()
	if n := r.Stats().Filling; n != 0 {
		t.Errorf("%d fills under way when all is there", n)
	}
}

// TestMiddleDoesNotWait: neither for a run that hangs at the file's start, nor beyond what it was going to bring.
func TestMiddleDoesNotWait(t *testing.T) {
	for _, middle := range []int64{10 << 20, 20<<20 + 5} {
		r := newRig(t)
		want := content(1, 24<<20)
		r.web.put("f", want, "1")
		open := gate(r, want, 0, 1000)
		defer open()
		f := r.acquire(r.ref("f"))
		defer f.Release()
		if _, err := r.read(f, 0, 1000); err != nil {
			t.Fatal(err)
		}
		n := int64(len(want)) - middle
		if got, err := r.read(f, middle, n); err != nil || !bytes.Equal(got, want[middle:]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		open()
		if got, err := r.read(f, 0, int64(len(want))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the whole: %d bytes, %v", len(got), err)
		}
		r.settled()
		if s := r.Stats(); s.FillBytes > 24<<20+pieceSlack || s.Bytes != 24<<20 {
			t.Errorf("fetched twice: %+v", s)
		}
	}
}

// pieceSlack is what a run that is cut may have read beyond its end.
const pieceSlack = 1 << 20

// TestSequentialReaderMeetsNoGap: the run after the present one is under way before a reader needs it.
func TestSequentialReaderMeetsNoGap(t *testing.T) {
	r := newRig(t)
	want := content(1, 40<<20)
	r.web.put("f", want, "1")
	f := r.acquire(r.ref("f"))
	defer f.Release()
	if _, err := r.read(f, 0, 7<<20); err != nil {
		t.Fatal(err)
	}
	r.settled()
	if gets, _ := r.web.requests(); len(gets) != 1 {
		t.Errorf("in the first half: %q", gets)
	}
	if _, err := r.read(f, 8<<20, 1); err != nil {
		t.Fatal(err)
	}
	r.settled()
	if gets, _ := r.web.requests(); len(gets) != 2 {
		t.Errorf("in the second half: %q", gets)
	}
}

// TestClientGoes: the one that started a fill goes away, another one waits on.
func TestClientGoes(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("f", want, "1")
	open := gate(r, want, 0, 0)
	defer open()
	ref := r.ref("f")
	first := r.acquire(ref)
	ctx, goes := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := first.Await(ctx, 0)
		left <- err
	}()
	r.eventually("the origin is asked", func() bool { gets, _ := r.web.requests(); return len(gets) == 1 })
	goes()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	first.Release()
	second := r.acquire(ref)
	defer second.Release()
	open()
	if got, err := r.read(second, 0, segment); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if gets, _ := r.web.requests(); len(gets) != 1 {
		t.Errorf("the origin saw %q", gets)
	}
}

// TestOriginFails: who waits is told, and the next one tries again.
func TestOriginFails(t *testing.T) {
	r := newRig(t)
	want := content(1, 3<<20)
	r.web.put("f", want, "1")
	f, err := r.Acquire(t.Context(), r.ref("f"), int64(len(want))) // no fill begins before the origin fails
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	r.web.setFault(func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 500); return true })
	if _, err := f.Await(t.Context(), 0); !errors.Is(err, wire.ReasonKernel) {
		t.Errorf("%v", err)
	}
	r.web.setFault(nil)
	if got, err := r.read(f, 0, int64(len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if s := r.Stats(); s.FillFailures != 1 || s.OriginErrors == 0 {
		t.Errorf("%+v", s)
	}
}

func TestReadAt(t *testing.T) {
	r := newRig(t)
	want := content(1, 2<<20+10)
	r.web.put("f", want, "1")
	for range 2 { // from the origin, and complete
		f := r.acquire(r.ref("f"))
		p := make([]byte, 100)
		if n, err := f.ReadAt(t.Context(), p, 1<<20-50); n != 100 || err != nil || !bytes.Equal(p, want[1<<20-50:][:100]) {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := f.ReadAt(t.Context(), p, 2<<20); n != 10 || err == nil || !bytes.Equal(p[:n], want[2<<20:]) {
			t.Errorf("at the end: %d, %v", n, err)
		}
		f.Release()
		r.settled()
	}
}

func TestMaxRunsIsBounded(t *testing.T) {
	r := newRig(t)
	want := content(1, 24<<20)
	r.web.put("f", want, "1")
	f := r.acquire(r.ref("f"))
	defer f.Release()
	var all sync.WaitGroup
	for i := range 24 { // from its end to its start
		all.Go(func() {
			off := int64(23-i) << 20
			if got, err := r.read(f, off, 1<<20); err != nil || !bytes.Equal(got, want[off:off+1<<20]) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	r.settled()
	if s := r.Stats(); s.Bytes != 24<<20 {
		t.Errorf("%+v", s)
	}
}

// TestWholeBlocks: a run that ends with its request is no failure of the origin's.
func TestWholeBlocks(t *testing.T) {
	r := newRig(t)
	want := content(1, (runBlocks+2)<<20)
	r.web.put("f", want, "1")
	r.get("f", want)
	r.settled()
	if s := r.Stats(); s.OriginErrors != 0 || s.FillBytes != uint64(len(want)) {
		t.Errorf("%+v", s)
	}
}

// TestFillBeginsAtAcquire: the origin is asked while the reader is still busy with what he does before he reads.
func TestFillBeginsAtAcquire(t *testing.T) {
	r := newRig(t)
	want := content(1, segment)
	r.web.put("f", want, "1")
	f, err := r.Acquire(t.Context(), r.ref("f"), 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	r.eventually("the origin is asked for what he came for", func() bool {
		gets, _ := r.web.requests()
		return len(gets) > 0
	})
	if got, err := r.read(f, 3<<20, segment-(3<<20)); err != nil || !bytes.Equal(got, want[3<<20:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if gets, _ := r.web.requests(); !slices.Equal(gets, []string{"f bytes=3145728-10499999"}) {
		t.Errorf("the origin saw %q", gets)
	}
}

// TestEvictedFilesGo: what the budget has no room for is removed from the disk too.
func TestEvictedFilesGo(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxBytes = 4 << 20 })
	want := content(1, 3<<20)
	for i := range 5 {
		name := fmt.Sprint(i)
		r.web.put(name, want, name)
		r.get(name, want)
	}
	r.eventually("one file is left", func() bool { return r.dataFiles() == 1 })
	r.checkAccounts()
}
