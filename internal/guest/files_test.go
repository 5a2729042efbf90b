package guest

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"spillway/internal/wire"
)

func TestFileRequests(t *testing.T) {
	r := newRig(t, Policy{Mode: Off})
	if _, _, err := r.agent.Stat("media", "f"); !errors.Is(err, wire.ReasonHostAway) {
		t.Errorf("without a host Stat says %v", err)
	}
	s := r.script()
	answer := func(m wire.Message) {
		go func() {
			got := <-s.frames
			s.say(got.head.ID, 0, m)
		}()
	}
	answer(wire.Attr{Size: 77, MTime: 5})
	if size, mtime, err := r.agent.Stat("media", "f"); size != 77 || mtime != 5 || err != nil {
		t.Errorf("Stat = %d, %d, %v", size, mtime, err)
	}
	answer(wire.Attr{Reason: wire.ReasonNotFound})
	if _, _, err := r.agent.Stat("media", "f"); !errors.Is(err, wire.ReasonNotFound) {
		t.Errorf("Stat says %v", err)
	}
	ref := wire.FileRef{Share: "media", Path: "f", Size: 10, MTime: 5}
	p := make([]byte, 100)
	answer(wire.Bytes{Data: []byte("56789")})
	if n, err := r.agent.ReadFileAt(ref, p, 5); n != 5 || err != nil || string(p[:5]) != "56789" {
		t.Errorf("ReadFileAt = %d, %v, %q", n, err, p[:n])
	}
	answer(wire.Bytes{Data: []byte("01")}) // the file has shrunk
	if n, err := r.agent.ReadFileAt(ref, p, 0); n != 2 || !errors.Is(err, wire.ReasonTruncated) {
		t.Errorf("ReadFileAt = %d, %v", n, err)
	}
	answer(wire.Bytes{Reason: wire.ReasonChanged})
	if n, err := r.agent.ReadFileAt(ref, p, 0); n != 0 || !errors.Is(err, wire.ReasonChanged) {
		t.Errorf("ReadFileAt = %d, %v", n, err)
	}
	for _, off := range []int64{10, 11} {
		if n, err := r.agent.ReadFileAt(ref, p, off); n != 0 || err != io.EOF {
			t.Errorf("ReadFileAt at %d = %d, %v", off, n, err)
		}
	}
	s.say(4711, 0, wire.Attr{}) // of nobody: it came too late
	s.silent()
	s.lives()
}

// TestFileRequestsEnd: with the session every waiting request ends, and no more than some wait at a time.
func TestFileRequestsEnd(t *testing.T) {
	r := newRig(t, Policy{Mode: Off})
	s := r.script()
	var wait sync.WaitGroup
	for range maxRequests {
		wait.Go(func() {
			if _, _, err := r.agent.Stat("media", "f"); !errors.Is(err, wire.ReasonSession) {
				t.Errorf("Stat says %v", err)
			}
		})
	}
	ids := map[uint32]bool{}
	for range maxRequests {
		_, head := hear[wire.Stat](s)
		ids[head.ID] = true
	}
	if len(ids) != maxRequests {
		t.Errorf("%d requests have %d ids", maxRequests, len(ids))
	}
	if _, _, err := r.agent.Stat("media", "f"); !errors.Is(err, wire.ReasonLimit) {
		t.Errorf("one more Stat says %v", err)
	}
	s.stop()
	wait.Wait()
}

// TestForget: whoever keeps something of a share hears what the host says of its files.
func TestForget(t *testing.T) {
	r := newRig(t, Policy{Mode: Off})
	told := make(chan string, 8)
	for _, share := range []string{"media", "vod"} {
		r.agent.OnForget(share, func(path string) { told <- share + " " + path })
	}
	s := r.script()
	s.say(0, 0, wire.Forget{Share: "vod", Path: "a/b"})
	s.say(0, 0, wire.Forget{Share: "unknown", Path: "c"})
	s.say(0, 0, wire.Forget{Share: "media", Path: "d"})
	for _, want := range []string{"vod a/b", "media d"} {
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("not told %q", want)
		}
	}
	s.lives()
}

func TestAdmin(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	r.agent.Stats().count(func(c *Counts) { c.Sends = 7 })
	r.agent.Stats().fallback(wire.ReasonSmall)
	r.agent.Stats().step(StepFreeze, 150*time.Microsecond)
	h := r.agent.AdminHandler()
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w
	}
	var got Snapshot
	w := ask(http.MethodGet, "/stats")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatal(err, w.Header())
	}
	freeze := got.Steps[StepFreeze]
	if got.Mode != "lease" || got.Host != "away" || got.Counts.Sends != 7 || got.Fallbacks["small"] != 1 || freeze.N != 1 ||
		freeze.Median < 149 || freeze.Median > 151 {
		t.Errorf("snapshot is %+v", got)
	}
	if w := ask(http.MethodPost, "/stats/reset"); w.Code != http.StatusNoContent {
		t.Errorf("reset answers %d", w.Code)
	}
	if s := r.agent.Snapshot(); s.Counts != (Counts{}) || len(s.Fallbacks) != 0 || len(s.Steps) != 0 {
		t.Errorf("after a reset: %+v", s)
	}
	for _, c := range [][2]string{{http.MethodPost, "/stats"}, {http.MethodPost, "/metrics"}, {http.MethodGet, "/stats/reset"}, {http.MethodGet, "/"}} {
		if w := ask(c[0], c[1]); w.Code/100 != 4 {
			t.Errorf("%s %s answers %d", c[0], c[1], w.Code)
		}
	}
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{Off, Offload, Lease} {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("ParseMode(%s) = %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("fast"); err == nil {
		t.Error("any mode will do")
	}
}
