package guest

import (
	"bytes"
	"io"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/loglimit"
	"spillway/internal/wire"
)

// logBuffer keeps what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// brokenSocket is one whose kernel lacks something.
type brokenSocket struct{ *socket }

func (brokenSocket) Freeze() error { return &refused{wire.ReasonKernel, unix.EINVAL} }

// TestBrokenKernelIsLoggedOnce: where no handover can work, every request is served, and the log says so at once but not for each of them.
func TestBrokenKernelIsLoggedOnce(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	var log logBuffer
	r.agent.log = slog.New(slog.NewTextHandler(&log, nil))
	r.script()
	const requests = 30
	began := time.Now()
	client, server := r.connect()
	server.end.Socket = brokenSocket{server.socket}
	for i := range requests {
		f, content := newFile(10_000)
		done := send(server, header(10_000), f)
		got := make([]byte, len(header(10_000))+len(content))
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		await(t, done, 10_000, nil)
		if i == 0 && !strings.Contains(log.String(), "handover failed; serving locally") {
			t.Error("the first failure is not in the log")
		}
	}
	lines := regexp.MustCompile(`msg="handover failed; serving locally" client=\S+ error=.* not_logged=(\d+)\n`).FindAllStringSubmatch(log.String(), -1)
	if most := 1 + int(time.Since(began)/loglimit.Interval); len(lines) == 0 || len(lines) > most {
		t.Errorf("%d lines of %d failures, want 1 to %d:\n%s", len(lines), requests, most, log.String())
	}
	told := 0
	for _, l := range lines {
		skipped, err := strconv.Atoi(l[1])
		if err != nil {
			t.Error(err)
		}
		told += 1 + skipped
	}
	if told > requests || told == 0 {
		t.Errorf("the log tells of %d failures of %d", told, requests)
	}
	if n := r.agent.Snapshot().Fallbacks[wire.ReasonKernel.String()]; n != requests {
		t.Errorf("%d failures are counted, want %d", n, requests)
	}
}
