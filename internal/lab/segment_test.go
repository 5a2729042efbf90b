package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"spillway/internal/migrate"
)

// TestSegment: the guest moves there and back, and serves its client at both places on one connection.
func TestSegment(t *testing.T) {
	files := t.TempDir()
	content := make([]byte, 8<<20)
	rand.Read(content)
	if err := os.WriteFile(filepath.Join(files, "f.mp4"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s, err := UpSegment(ctx, Options{Name: labName(), Binary: buildBinary(t), Cache: "../../build/cache", Files: files, Threshold: 64 << 10,
		Progress: func(step string) { t.Log(step) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(s.LogTails())
		}
		if err := s.Down(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Dir); err == nil {
			t.Error("the lab's directory is left")
		}
	}()
	client := s.HTTPClient()
	defer client.CloseIdleConnections()
	get := func() {
		t.Helper()
		resp, err := client.Get(s.URL(Lease, "f.mp4"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != string(content) {
			t.Fatalf("%d of %d bytes: %v", len(body), len(content), err)
		}
	}
	get()
	carried := uint64(0) // sessions that went along with the VM
	for range 2 {
		plan := s.MovePlan()
		plan.Progress = func(e migrate.Event) { t.Logf("%s %+v", e.Phase, e.Copied) }
		report, err := s.Move(ctx, plan)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(report)
		t.Logf("%s", text)
		if report.Carried > 0 {
			carried++
		}
		get()
	}
	stats, err := s.ServerStats(ctx, Lease)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Counts.Sessions != 3-carried || stats.Host != "up" || stats.Counts.Lost > 0 || stats.Counts.Sends < 3 {
		t.Errorf("%+v", stats)
	}
}
