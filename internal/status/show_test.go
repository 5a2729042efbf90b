package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway/internal/config"
	"spillway/internal/host"
)

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

// daemon is a host daemon with one VM that does not run: its admin socket's handler is all that is needed of it.
func daemon(t *testing.T) http.Handler {
	t.Helper()
	cfg := config.DefaultHost()
	cfg.Shares = []config.HostShare{{Name: "media", Path: t.TempDir()}}
	v := config.DefaultVM()
	v.Name, v.Shares, v.Channels = "vm0", []string{"media"}, []string{"unix:" + filepath.Join(t.TempDir(), "vm0.sock")}
	v.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
	cfg.VMs = []config.VM{v}
	d, err := host.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d.AdminHandler()
}

// served is a unix socket that h answers at, until the test ends or stop is called.
func served(t *testing.T, h http.Handler) (socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "admin.sock")
	return socket, serveAt(t, socket, h)
}

func serveAt(t *testing.T, socket string, h http.Handler) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(l) })
	stop = sync.OnceFunc(func() { s.Close(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

func show(t *testing.T, o Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := Show(t.Context(), &out, o)
	return out.String(), err
}

// TestShow: each form, once, of a real daemon.
func TestShow(t *testing.T) {
	socket, _ := served(t, daemon(t))
	text, err := show(t, Options{Socket: socket})
	if err != nil || !strings.HasPrefix(text, "spillway host, up 0s  [") || !strings.Contains(text, "\nvm0: NO SESSION YET") ||
		!strings.Contains(text, ", 0 of 4,096 leases\n") || !strings.Contains(text, "\nshare media: 0 files open") {
		t.Errorf("%v: %s", err, text)
	}
	text, err = show(t, Options{Socket: socket, Leases: true})
	if err != nil || !strings.Contains(text, "\nvm0: 0 leases\n") {
		t.Errorf("%v: %s", err, text)
	}
	text, err = show(t, Options{Socket: socket, JSON: true})
	var s host.Status
	if jsonErr := json.Unmarshal([]byte(text), &s); err != nil || jsonErr != nil || len(s.VMs) != 1 || s.VMs[0].Name != "vm0" {
		t.Errorf("%v, %v: %s", err, jsonErr, text)
	}
	text, err = show(t, Options{Socket: socket, JSON: true, Leases: true})
	var l host.Leases
	if jsonErr := json.Unmarshal([]byte(text), &l); err != nil || jsonErr != nil || len(l.VMs) != 1 || l.VMs[0].Name != "vm0" {
		t.Errorf("%v, %v: %s", err, jsonErr, text)
	}
}

// TestJSONAsItIs: also what this program does not know yet.
func TestJSONAsItIs(t *testing.T) {
	const said = "{\n  \"of the future\": [1, 2]\n}\n"
	socket, _ := served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, said) }))
	if text, err := show(t, Options{Socket: socket, JSON: true}); text != said || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestErrors: each says what to do.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock") // by a daemon that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	answering := func(status int, body string) string {
		socket, _ := served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
		return socket
	}
	for name, c := range map[string]struct {
		socket string
		cause  error // nil: any
		words  []string
	}{
		"no socket":     {filepath.Join(dir, "none.sock"), fs.ErrNotExist, []string{"no daemon", "none.sock", "systemctl start", "--admin"}},
		"killed":        {left, syscall.ECONNREFUSED, []string{"no daemon", left, "systemctl start"}},
		"older":         {answering(http.StatusNotFound, ""), nil, []string{"/status", "older", "restart"}},
		"in trouble":    {answering(http.StatusInternalServerError, ""), nil, []string{"500"}},
		"somebody else": {answering(http.StatusOK, "hello"), nil, []string{"not the admin socket"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := show(t, Options{Socket: c.socket})
			if err == nil || text != "" || c.cause != nil && !errors.Is(err, c.cause) {
				t.Fatalf("%q, %v", text, err)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error lacks %q: %v", w, err)
				}
			}
		})
	}
}

// TestForeignSocket: what another user gets to know. The tests run as root, to whom no socket is closed; spillway's own test tries it as
// another user.
func TestForeignSocket(t *testing.T) {
	socket, _ := served(t, daemon(t))
	denied := &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}
	for file, word := range map[string]string{socket: "is of user ", filepath.Join(socket, "beneath"): "in a directory of another user"} {
		err := newClient(file).explain(denied)
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "sudo") {
			t.Error(err)
		}
	}
	if err := os.Chown(socket, 4_000_000, -1); err != nil {
		t.Skip("needs root:", err)
	}
	if err := newClient(socket).explain(denied); !strings.Contains(err.Error(), "user id 4000000") {
		t.Error(err)
	}
}

// TestSilentDaemon: one that is stopped (SIGSTOP) still has its connections accepted by the kernel.
func TestSilentDaemon(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v := newView(Options{Socket: l.Addr().String()})
	v.client.http.Timeout = 100 * time.Millisecond
	if _, err := v.next(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
}

// watching is a watch whose ticks the test makes.
type watching struct {
	tick chan time.Time
	text chan string // what was drawn
	done chan error
	stop context.CancelFunc
}

// drawn is a writer that hands on what is written, one write a view.
type drawn chan string

func (d drawn) Write(p []byte) (int, error) {
	d <- string(p)
	return len(p), nil
}

func watch(t *testing.T, o Options) *watching {
	t.Helper()
	o.Watch = true
	ctx, stop := context.WithCancel(t.Context())
	w := &watching{tick: make(chan time.Time), text: make(chan string, 1), done: make(chan error, 1), stop: stop}
	go func() { w.done <- newView(o).watch(ctx, newScreen(drawn(w.text)), w.tick) }()
	t.Cleanup(func() { stop(); <-w.done })
	return w
}

func (w *watching) next(t *testing.T) string {
	t.Helper()
	select {
	case text := <-w.text:
		return text
	case err := <-w.done:
		w.done <- err
		t.Fatalf("the watch has ended: %v", err)
	case <-time.After(patience):
		t.Fatal("nothing is drawn")
	}
	return ""
}

// ends checks that the watch ends with an error that has a word in it, or without one.
func (w *watching) ends(t *testing.T, word string) {
	t.Helper()
	select {
	case err := <-w.done:
		if word == "" && err != nil || word != "" && (err == nil || !strings.Contains(err.Error(), word)) {
			t.Errorf("the watch ends with %v, want %q", err, word)
		}
		w.done <- err
	case <-time.After(patience):
		t.Fatal("the watch does not end")
	}
}

// TestWatch: rates come with the second view; a daemon that goes and comes again is waited for; the end is no error.
func TestWatch(t *testing.T) {
	handler := daemon(t)
	socket, stop := served(t, handler)
	w := watch(t, Options{Socket: socket, Leases: true})
	if text := w.next(t); !strings.HasPrefix(text, "spillway host, live leases") {
		t.Errorf("first: %q", text)
	}
	w.tick <- time.Time{}
	if text := w.next(t); !strings.HasPrefix(text, "\nspillway host, live leases") { // a block of its own
		t.Errorf("second: %q", text)
	}
	stop()
	w.tick <- time.Time{}
	if text := w.next(t); !strings.Contains(text, "no daemon") || strings.Count(text, "\n") != 1 {
		t.Errorf("without a daemon: %q", text)
	}
	serveAt(t, socket, handler)
	w.tick <- time.Time{}
	if text := w.next(t); !strings.Contains(text, "vm0: 0 leases") {
		t.Errorf("again: %q", text)
	}
	w.stop()
	w.ends(t, "")
}

func TestWatchRates(t *testing.T) {
	now, before := busy()
	answers := make(chan host.Status, 2)
	answers <- before
	answers <- now
	socket, _ := served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(<-answers) }))
	w := watch(t, Options{Socket: socket})
	if text := w.next(t); strings.Contains(text, "/s") {
		t.Errorf("rates of nothing: %s", text)
	}
	w.tick <- time.Time{}
	if text := w.next(t); !strings.Contains(text, " 112 MB/s\n") {
		t.Errorf("no rates: %s", text)
	}
}

// TestWatchJSON: one line each, and an error ends it: who reads it is a program.
func TestWatchJSON(t *testing.T) {
	socket, stop := served(t, daemon(t))
	w := watch(t, Options{Socket: socket, JSON: true})
	for range 2 {
		var s host.Status
		text := w.next(t)
		if err := json.Unmarshal([]byte(text), &s); err != nil || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "}\n") {
			t.Errorf("%v: %q", err, text)
		}
		w.tick <- time.Time{}
	}
	w.next(t)
	stop()
	w.tick <- time.Time{}
	w.ends(t, "no daemon")
}

// TestWatchNothing: a watch that never saw a daemon is a mistake.
func TestWatchNothing(t *testing.T) {
	w := watch(t, Options{Socket: filepath.Join(t.TempDir(), "none.sock")})
	w.ends(t, "no daemon")
}

// TestWatchInterrupted: Ctrl-C while the daemon is being asked is no error either.
func TestWatchInterrupted(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	socket, _ := served(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(asked); <-over }))
	defer close(over)
	w := watch(t, Options{Socket: socket})
	<-asked
	w.stop()
	w.ends(t, "")
}
