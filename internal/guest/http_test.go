package guest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serveHTTP runs a server of the standard library on the rig's listener until the test ends.
func (r *rig) serveHTTP(files map[string][]byte) {
	r.tb.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/file/", func(w http.ResponseWriter, req *http.Request) {
		name := strings.TrimPrefix(req.URL.Path, "/file/")
		content, ok := files[name]
		if !ok {
			http.NotFound(w, req)
			return
		}
		f := openFile(content)
		f.ref.Path = name
		w.Header().Set("Etag", `"1"`)
		http.ServeContent(w, req, "", time.Time{}, f)
	})
	mux.HandleFunc("/missing", func(w http.ResponseWriter, _ *http.Request) { // a file that the host does not have
		f := openFile(files["small"])
		f.ref.Path = "nowhere"
		http.ServeContent(w, &http.Request{Method: http.MethodGet}, "", time.Time{}, f)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			r.tb.Error("body:", err)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", "100004")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done() // the client leaves when it has the head
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			r.tb.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	})
	server := &http.Server{Handler: mux, ErrorLog: log.New(testWriter{r.tb}, "", 0)}
	done := make(chan error, 1)
	go func() { done <- server.Serve(r.listener) }()
	r.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			r.tb.Errorf("Shutdown: %v", err)
			server.Close()
		}
		<-done
	})
}

// exchange is one request over a connection.
type exchange struct {
	request string
	method  string
	status  int
	body    []byte
}

// TestHTTP runs net/http over local and leased connections: every answer must be the same, over one connection, request by request and pipelined.
func TestHTTP(t *testing.T) {
	_, big := newFile(1 << 20)
	files := map[string][]byte{"big": big, "small": big[:5000], "empty": nil}
	get := func(path string, lines ...string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: x\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
	}
	post := func(body []byte, lines ...string) string {
		return fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s", len(body), strings.Join(append(lines, ""), "\r\n"), body)
	}
	exchanges := []exchange{
		{get("/file/big"), "GET", 200, big},
		{get("/file/small"), "GET", 200, big[:5000]},
		{get("/file/big", "Range: bytes=1000-200999"), "GET", 206, big[1000:201000]},
		{"HEAD /file/big HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", 200, nil},
		{get("/file/big", `If-None-Match: "1"`), "GET", 304, nil},
		{get("/file/empty"), "GET", 200, nil},
		{get("/nothing"), "GET", 404, []byte("404 page not found\n")},
		{get("/file/big", "Range: bytes=9999999-"), "GET", 416, []byte("invalid range: failed to overlap\n")},
		{post(big[:300_000]), "POST", 200, big[:300_000]},
		{post(big[:3000], "Expect: 100-continue"), "POST", 200, big[:3000]},
		{get("/missing"), "GET", 200, big[:5000]},
		{get("/file/big"), "GET", 200, big},
	}
	run := func(t *testing.T, r *rig, pipelined bool) {
		client := r.dial()
		_ = client.SetDeadline(time.Now().Add(patience))
		answers := bufio.NewReader(client)
		if pipelined {
			go func() {
				for _, x := range exchanges {
					if _, err := io.WriteString(client, x.request); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		for i, x := range exchanges {
			if !pipelined {
				if _, err := io.WriteString(client, x.request); err != nil {
					t.Fatal(err)
				}
			}
			resp, err := http.ReadResponse(answers, &http.Request{Method: x.method})
			for err == nil && resp.StatusCode == http.StatusContinue {
				resp, err = http.ReadResponse(answers, &http.Request{Method: x.method})
			}
			if err != nil {
				t.Fatalf("exchange %d: %v", i, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != x.status || !bytes.Equal(body, x.body) {
				t.Fatalf("exchange %d, %.40q: %s with %d bytes, %v, want %d with %d", i, x.request, resp.Status, len(body), err, x.status, len(x.body))
			}
		}
		client.Close()
	}
	for _, policy := range []Policy{{Mode: Off}, {Mode: Lease}, {Mode: Lease, Threshold: DefaultThreshold}} {
		for name, pipelined := range map[string]bool{"one by one": false, "pipelined": true} {
			t.Run(fmt.Sprintf("%v from %d, %s", policy.Mode, policy.Threshold, name), func(t *testing.T) {
				r, h := newRelay(t, policy, files)
				r.serveHTTP(files)
				for range 3 {
					run(t, r, pipelined)
				}
				r.eventually("nothing is leased", func() bool { return r.agent.Snapshot().Leases == 0 })
				c := r.agent.Snapshot().Counts
				if policy.Mode == Off && c.Handovers != 0 || policy.Mode == Lease && (c.Handovers != 3 || c.Sends != 12) && !pipelined {
					t.Errorf("counts are %+v, fallbacks %v", c, r.agent.Snapshot().Fallbacks)
				}
				if c.Lost != 0 || c.Sessions > 1 {
					t.Errorf("counts are %+v", c)
				}
				_ = h
			})
		}
	}
}

// TestHTTPClients runs many clients of net/http at the same time.
func TestHTTPClients(t *testing.T) {
	_, big := newFile(300_000)
	files := map[string][]byte{"big": big}
	r, _ := newRelay(t, Policy{Mode: Lease}, files)
	r.serveHTTP(files)
	done := make(chan error)
	const clients = 8
	for range clients {
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return r.dial(), nil }}
		go func() {
			defer transport.CloseIdleConnections()
			c := http.Client{Transport: transport, Timeout: patience}
			for i := range 20 {
				resp, err := c.Get("http://guest/file/big")
				if err != nil {
					done <- err
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(body, big) {
					done <- fmt.Errorf("request %d: %d bytes, %v", i, len(body), err)
					return
				}
			}
			done <- nil
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.eventually("nothing is leased", func() bool { return r.agent.Snapshot().Leases == 0 })
	if c := r.agent.Snapshot().Counts; c.Sends != clients*20 || c.LocalBytes != 0 {
		t.Errorf("counts are %+v, fallbacks %v", c, r.agent.Snapshot().Fallbacks)
	}
}

// TestHTTPHeadAlone: a handler that flushes its head and then takes its time. The head must not wait for the body.
func TestHTTPHeadAlone(t *testing.T) {
	_, big := newFile(100_000)
	files := map[string][]byte{"big": big}
	r, _ := newRelay(t, Policy{Mode: Lease}, files)
	r.serveHTTP(files)
	for name, first := range map[string]string{"local": "", "leased": "GET /file/big HTTP/1.1\r\nHost: x\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			client := r.dial()
			_ = client.SetDeadline(time.Now().Add(patience))
			answers := bufio.NewReader(client)
			if first != "" {
				_, _ = io.WriteString(client, first)
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.WriteString(client, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(answers, nil)
			if err != nil || resp.ContentLength != 100004 {
				t.Fatalf("the head does not come: %v", err)
			}
			client.Close()
		})
	}
}

// TestHTTPHijack: a connection that net/http gives to its handler goes on, local or leased.
func TestHTTPHijack(t *testing.T) {
	_, big := newFile(100_000)
	files := map[string][]byte{"big": big}
	r, _ := newRelay(t, Policy{Mode: Lease}, files)
	r.serveHTTP(files)
	for name, leased := range map[string]bool{"local": false, "leased": true} {
		t.Run(name, func(t *testing.T) {
			client := r.dial()
			_ = client.SetDeadline(time.Now().Add(patience))
			answers := bufio.NewReader(client)
			if leased {
				_, _ = io.WriteString(client, "GET /file/big HTTP/1.1\r\nHost: x\r\n\r\n")
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
			}
			_, _ = io.WriteString(client, "GET /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			if resp, err := http.ReadResponse(answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp, err)
			}
			go func() {
				_, _ = client.Write(big)
				_ = client.CloseWrite()
			}()
			if got, err := io.ReadAll(answers); err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes come back, %v", len(got), err)
			}
		})
	}
}
