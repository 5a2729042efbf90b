package migrate

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"spillway/internal/qemu"
)

// adminSocket serves a daemon's admin socket.
func adminSocket(t *testing.T, h http.Handler) Side {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { s.Close(); <-done })
	return Side{Name: "host-x", Admin: path, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
}

// TestDaemon: what is asked, and what becomes of the answers.
func TestDaemon(t *testing.T) {
	var asked []string
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		switch r.URL.Path {
		case "/vm":
			w.Write([]byte(`{"name": "vm0", "sessions": 2, "carries": 1, "new": [1]}`))
		case "/admit":
			w.Write([]byte(`{"problems": ["no room", "no share"]}`))
		case "/hold":
			w.Write([]byte(`{"leases": 9, "closed": 1, "longest_ms": 12.5, "returns": [{"client": "192.0.2.9:80", "took_ms": 3, "guest_ms": 1}]}`))
		case "/halt":
			http.Error(w, "no session", http.StatusNotImplemented)
		case "/export":
			w.Write([]byte(`{"version": 7}`))
		case "/import":
			if body, err := io.ReadAll(r.Body); err != nil || string(body) != `{"version": 7}` {
				t.Errorf("imported: %s, %v", body, err)
			}
			w.Write([]byte(`{}`))
		case "/depart":
			http.Error(w, "no route", http.StatusConflict)
		default:
			w.Write([]byte(`{}`))
		}
	})
	side := adminSocket(t, mux)
	d := newDaemon(side, "vm0")
	ctx := t.Context()
	description, known, err := d.describe(ctx)
	if err != nil || known != (described{Sessions: 2, Carries: 1}) || !strings.Contains(string(description), `"new": [1]`) { // what we do not know goes on to the other daemon
		t.Errorf("describe: %s, %+v, %v", description, known, err)
	}
	if err := d.admit(ctx, description); err == nil || !strings.Contains(err.Error(), "host-x cannot take it: no room; no share") {
		t.Errorf("admit: %v", err)
	}
	if h, err := d.hold(ctx, 2*time.Second); err != nil || !reflect.DeepEqual(h, held{9, 1, 12.5, []Returned{{Client: netip.MustParseAddrPort("192.0.2.9:80"), TookMs: 3, GuestMs: 1}}}) {
		t.Errorf("hold: %+v, %v", h, err)
	}
	if err := d.arrive(ctx, side); err != nil {
		t.Errorf("arrive: %v", err)
	}
	if err := d.depart(ctx, side); err == nil || !strings.Contains(err.Error(), "409 Conflict: no route") {
		t.Errorf("depart: %v", err)
	}
	if _, err := d.halt(ctx, side, time.Second); !errors.Is(err, errNoCarry) {
		t.Errorf("halt: %v", err)
	}
	carried, err := d.export(ctx)
	if err := errors.Join(err, d.expect(ctx, nil), d.take(ctx, carried), d.silent(ctx), d.commit(ctx, side), d.leave(ctx, side), d.resume(ctx, true)); err != nil {
		t.Error(err)
	}
	want := "GET /vm?vm=vm0, POST /admit?vm=vm0, POST /hold?timeout=2s&vm=vm0, POST /arrive?peer=192.0.2.1&peer=2001%3Adb8%3A%3A1&vm=vm0, " +
		"POST /depart?peer=192.0.2.1&peer=2001%3Adb8%3A%3A1&vm=vm0, POST /halt?peer=192.0.2.1&peer=2001%3Adb8%3A%3A1&timeout=1s&vm=vm0, " +
		"POST /export?vm=vm0, POST /expect?vm=vm0, POST /import?vm=vm0, POST /silent?vm=vm0, POST /commit?peer=192.0.2.1&peer=2001%3Adb8%3A%3A1&vm=vm0, " +
		"POST /leave?peer=192.0.2.1&peer=2001%3Adb8%3A%3A1&vm=vm0, POST /resume?moved=true&vm=vm0"
	if got := strings.Join(asked, ", "); got != want {
		t.Errorf("asked\n%s, want\n%s", got, want)
	}
}

// TestNoVM: a move that cannot begin changes nothing, and says where the VM is.
func TestNoVM(t *testing.T) {
	fail := func(context.Context) error { t.Error("the destination was touched"); return nil }
	plan := Plan{VM: "vm0", From: Side{Name: "a", QMP: filepath.Join(t.TempDir(), "none.sock")}, To: Side{Name: "b"}, Start: fail, Stop: fail}
	_, err := Run(t.Context(), plan)
	var failed *Error
	if !errors.As(err, &failed) || failed.Phase != Check || failed.Runs != AtSource || failed.Advice != "" {
		t.Fatalf("%+v", err)
	}
	if !strings.Contains(err.Error(), "move of VM vm0 failed in phase check") || !strings.Contains(err.Error(), "it runs at the source") {
		t.Error(err)
	}
	if errors.Is(err, qemu.ErrTimeout) {
		t.Error(err)
	}
}
