package host

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

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

// TestSessionLog: the sessions of both channels of a VM are logged although they begin together, under the names that the guest logs, and
// a stop is not logged as a failure.
func TestSessionLog(t *testing.T) {
	var log logBuffer
	var second string
	r := newRig(t, func(r *rig) {
		one := &r.cfg.VMs[0]
		second = one.Channels[0] + "2"
		one.Channels = append(one.Channels, second)
		var err error
		if r.daemon, err = newDaemon(r.cfg, slog.New(slog.NewTextHandler(&log, nil)), r.environment()); err != nil {
			t.Fatal(err)
		}
	})
	for _, g := range []*fakeGuest{r.guest(0), r.guestAt(second)} {
		g.send(1, 0, wire.Stat{Share: "media", Path: "big"})
		expect[wire.Attr](g, 1)
		if want := fmt.Sprintf(`msg="session begins" vm=one session=%08x `, g.id); !strings.Contains(log.String(), want) {
			t.Errorf("not logged: %s", want)
		}
	}
	r.stop()
	<-r.done
	if strings.Contains(log.String(), "session ended") {
		t.Error("the stop is logged as the failure of a session")
	}
	if t.Failed() {
		t.Log(log.String())
	}
}
