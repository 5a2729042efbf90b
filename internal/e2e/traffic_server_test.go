package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"spillway/internal/channel"
	"spillway/internal/guest"
	"spillway/internal/mediafs"
)

// trafficEnv makes the test binary a traffic server, with a trafficConfig as JSON: a server like any other, whose listener is the only thing that
// it has of Spillway, or has not.
const trafficEnv = "SPILLWAY_E2E_TRAFFIC"

// trafficConfig says where a traffic server stands.
type trafficConfig struct {
	Mode    string // plain (net.Listen), lease or offload
	Channel string // of lease and offload
	Files   string // the shared directory
	Port    int    // of net/http; the others are at a fixed distance
}

// Distances of the ports of a traffic server from its first.
const (
	rawPort   = 100  // servers that are not net/http: serviceFor reads the first line
	laterPort = 200  // net/http on connections that have had something before
	adminPort = 1000 // as the lab's servers have it
)

// trafficServer is the process.
type trafficServer struct {
	cfg   trafficConfig
	agent *guest.Agent // nil: plain
	files *mediafs.Dir

	mu       sync.Mutex
	notes    map[string][]string      // what handlers have to tell, by key
	gates    map[string]chan struct{} // closed when open
	stopping map[string]*http.Server  // by the address of their listener
}

// runTraffic is the main function of the process: it serves until SIGTERM.
func runTraffic(text string) error {
	s := &trafficServer{notes: map[string][]string{}, gates: map[string]chan struct{}{}, stopping: map[string]*http.Server{}}
	if err := json.Unmarshal([]byte(text), &s.cfg); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	var err error
	if s.files, err = mediafs.NewDir("media", s.cfg.Files, mediafs.Options{}); err != nil {
		return err
	}
	defer s.files.Close()
	if s.cfg.Mode != "plain" {
		agent, stop, err := keepAgent(s.cfg.Mode, s.cfg.Channel, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}
		defer stop()
		s.agent = agent
	}
	server := &http.Server{Handler: s.handler(), ConnState: s.noteState, Protocols: bothProtocols()}
	failed := make(chan error, 4)
	for distance, serve := range map[int]func(net.Listener) error{
		0:         server.Serve,
		rawPort:   s.serveRaw,
		laterPort: func(l net.Listener) error { return server.Serve(laterListener{l, s}) },
	} {
		l, err := s.listen(fmt.Sprintf(":%d", s.cfg.Port+distance))
		if err != nil {
			return err
		}
		defer l.Close()
		go func() { failed <- serve(l) }()
	}
	go func() { failed <- http.ListenAndServe(fmt.Sprintf(":%d", s.cfg.Port+adminPort), s.control()) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// bothProtocols are HTTP/1.1 and HTTP/2 without TLS, which a client begins with.
func bothProtocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// keepAgent makes an agent and keeps its channel until stop is called.
func keepAgent(mode, address string, log *slog.Logger) (agent *guest.Agent, stop func(), err error) {
	m, err := guest.ParseMode(mode)
	if err != nil {
		return nil, nil, err
	}
	agent, err = guest.NewAgent(guest.Options{Policy: guest.Policy{Mode: m}, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	addr, err := channel.ParseAddress(address)
	if err != nil {
		return nil, nil, errors.Join(err, agent.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It returns when ctx is done, and there is nothing to say of that.
		_ = channel.Keep(ctx, addr, func(ctx context.Context, conn channel.Conn) error { return agent.Serve(ctx, conn) }, channel.KeepOptions{Logger: log})
	}()
	return agent, func() {
		cancel()
		<-done
		_ = agent.Close()
	}, nil
}

// listen is all that a server needs to know of Spillway.
func (s *trafficServer) listen(addr string) (net.Listener, error) {
	if s.agent == nil {
		return net.Listen("tcp", addr)
	}
	return guest.Listen(context.Background(), addr, s.agent)
}

// firstFile is what a connection gets, by preamble, before anything else: a range of a shared file, with which it is handed over.
const firstFile = "64k.m4s"

// preamble sends firstFile on a connection that is not HTTP's yet.
func (s *trafficServer) preamble(conn net.Conn) error {
	f, err := s.files.Open(firstFile)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(conn, f)
	return err
}

// laterListener gives connections to their server when they have had their preamble.
type laterListener struct {
	net.Listener
	server *trafficServer
}

func (l laterListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if err := l.server.preamble(conn); err != nil {
		_ = conn.Close() // its client will tell
	}
	return conn, nil
}

// note writes something down for the test; the client names the key.
func (s *trafficServer) note(key, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes[key] = append(s.notes[key], fmt.Sprintf(format, args...))
}

// noteState is http.Server.ConnState.
func (s *trafficServer) noteState(c net.Conn, state http.ConnState) {
	key := c.RemoteAddr().String()
	if state == http.StateNew { // another connection may have had this port before
		s.mu.Lock()
		delete(s.notes, key)
		s.mu.Unlock()
	}
	s.note(key, "%v", state)
}

// gate waits until the test opens the gate of this name.
func (s *trafficServer) gate(key string) {
	select {
	case <-s.gateChannel(key):
	case <-time.After(2 * patience):
		s.note(key, "the gate was not opened")
	}
}

func (s *trafficServer) gateChannel(key string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gates[key] == nil {
		s.gates[key] = make(chan struct{})
	}
	return s.gates[key]
}

// control serves the test, on connections that are nobody's subject.
func (s *trafficServer) control() http.Handler {
	mux := http.NewServeMux()
	if s.agent != nil {
		mux.Handle("/stats", s.agent.AdminHandler())
	} else {
		mux.HandleFunc("/stats", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	}
	mux.HandleFunc("/notes", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.notes[r.FormValue("key")]) // the test notices
	})
	mux.HandleFunc("/open", func(_ http.ResponseWriter, r *http.Request) { close(s.gateChannel(r.FormValue("key"))) })
	mux.HandleFunc("/start", s.start)
	mux.HandleFunc("/stop", s.stop)
	return mux
}

// start starts a server that the test will stop, and answers with its port.
func (s *trafficServer) start(w http.ResponseWriter, r *http.Request) {
	l, err := s.listen(":0")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	server := &http.Server{Handler: s.handler(), ConnState: s.noteState}
	for name, limit := range map[string]*time.Duration{"idle": &server.IdleTimeout, "write": &server.WriteTimeout, "read": &server.ReadTimeout} {
		if d, err := time.ParseDuration(r.FormValue(name)); err == nil {
			*limit = d
		}
	}
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	s.mu.Lock()
	s.stopping[port] = server
	s.mu.Unlock()
	go func() {
		err := server.Serve(l)
		s.note("server "+port, "Serve: %s", kindOf(err))
	}()
	fmt.Fprint(w, port)
}

// stop stops a server in the way that the request names, and answers when that has returned.
func (s *trafficServer) stop(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	server := s.stopping[r.FormValue("port")]
	s.mu.Unlock()
	var err error
	switch r.FormValue("how") {
	case "shutdown":
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		err = server.Shutdown(ctx)
	case "hasty shutdown": // nothing that is busy has the time to end
		ctx, cancel := context.WithTimeout(r.Context(), 50*time.Millisecond)
		defer cancel()
		err = server.Shutdown(ctx)
	case "close":
		err = server.Close()
	}
	fmt.Fprint(w, kindOf(err))
}

// kindOf is an error in words that do not depend on addresses, on the moment or on who reports it.
func kindOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, net.ErrClosed):
		return "closed here"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "end"
	}
	return err.Error()
}
