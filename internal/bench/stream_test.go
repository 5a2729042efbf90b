package bench_test

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"spillway/internal/bench"
	"spillway/internal/dataset"
	"spillway/internal/media"
	"spillway/internal/mediafs"
)

// TestStreamsADataSet runs the arm "baremetal" in small: a generated data set, a directory, the media server, one connection.
func TestStreamsADataSet(t *testing.T) {
	dir := t.TempDir()
	manifest, err := dataset.Generate(t.Context(), dir, dataset.Spec{Set: "mobile", Segments: 30}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := mediafs.NewDir("vod", dir, mediafs.Options{AttributeTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := media.NewServer(media.Handler(files, media.Options{}), slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})

	var targets []bench.Target
	var want int64
	for _, f := range manifest.Files() {
		targets = append(targets, bench.Target{Path: "/" + f.Name, Bytes: f.Size, SHA256: f.SHA256})
		want += f.Size
	}
	c := bench.NewClient(ln.Addr().String(), bench.ClientOptions{})
	t.Cleanup(func() { c.Close() })
	for _, verify := range []bool{true, false} {
		var rec bench.Recorder
		if err := bench.Pass(t.Context(), c, targets, verify, &rec, nil); err != nil {
			t.Fatal(err)
		}
		row := rec.Row(bench.ArmBareMetal, "mobile")
		if row.Wrong != 0 || row.N != len(targets) || row.Bytes != want {
			t.Errorf("verify %v: %+v, errors %v; want %d bodies with %d bytes", verify, row, rec.Errors(), len(targets), want)
		}
		t.Logf("verify %v: %.0f MB/s, median %.0f us", verify, row.MBPerS, row.MedianUs)
	}
	if c.Dials() != 1 {
		t.Errorf("%d connections, want 1", c.Dials())
	}
	if got := files.Counters(); got.Opened != uint64(len(targets)) || got.Checked != uint64(len(targets)) {
		t.Errorf("two passes over %d files cost %+v", len(targets), got)
	}
}
