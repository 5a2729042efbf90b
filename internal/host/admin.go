package host

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// adminMode lets only the daemon's own user speak to the admin socket: a recall is not for everybody.
const adminMode = 0o600

// adminTimeout bounds a client of the admin socket.
const adminTimeout = 10 * time.Second

// AdminHandler serves the daemon's state and orders: GET /status answers a Status, POST /recall?vm=NAME (all VMs without a name) calls
// connections back.
func (d *Daemon) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, d.Status()) })
	mux.HandleFunc("POST /recall", func(w http.ResponseWriter, r *http.Request) {
		leases, err := d.Recall(r.URL.Query().Get("vm"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		answerJSON(w, map[string]int{"leases": leases})
	})
	return mux
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone, and there is nobody to tell
}

// adminServer serves the admin socket.
type adminServer struct {
	server *http.Server
	done   sync.WaitGroup
}

// serveAdmin serves AdminHandler at the configured socket, if there is one.
func (d *Daemon) serveAdmin() (*adminServer, error) {
	a := &adminServer{}
	if d.cfg.Admin == "" {
		return a, nil
	}
	l, err := listenAdmin(d.cfg.Admin)
	if err != nil {
		return nil, err
	}
	a.server = &http.Server{Handler: d.AdminHandler(), ReadTimeout: adminTimeout, WriteTimeout: adminTimeout}
	a.done.Go(func() {
		if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("the admin socket fails", "error", err)
		}
	})
	return a, nil
}

// listenAdmin makes the socket, in place of one that a killed daemon has left. That no other daemon is alive is known: this one
// holds the redirect and the channels.
func listenAdmin(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// bind gives the file the mode of the socket, less the umask (unix_bind_bsd, net/unix/af_unix.c), so that it is never open to others.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var chmodErr error
		err := rc.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), adminMode) })
		return errors.Join(err, chmodErr)
	}}
	return lc.Listen(context.Background(), "unix", path)
}

func (a *adminServer) close() {
	if a.server != nil {
		_ = a.server.Close() // and removes the socket's file
		a.done.Wait()
	}
}
