package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// http2Scenario speaks HTTP/2 from its first byte.
func http2Scenario(e *exchange) {
	http2Requests(e, dialAddr(e.t, e.l, e.addr(0)))
}

// http2LaterScenario speaks HTTP/2 on a connection that was handed over before.
func http2LaterScenario(e *exchange) {
	before := serverStats(e.t, e.l, e.way.arm).Counts.Handovers
	c := dialAddr(e.t, e.l, e.addr(laterPort))
	c.take(e.files.files[firstFile])
	e.checkHandedOver(before)
	http2Requests(e, c)
}

// http2Requests are many streams on one connection: files, bodies that are none, uploads, trailers.
func http2Requests(e *exchange, c *client) {
	dials := 0
	transport := &http.Transport{
		Protocols: new(http.Protocols), DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, fmt.Errorf("the connection is lost")
			}
			return c.TCPConn, nil
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	browser := &http.Client{Transport: transport, Timeout: 2 * patience}
	var mu sync.Mutex
	var lines []string
	var all sync.WaitGroup
	stream := func(name string, do func() (*http.Response, error)) {
		line := name + ": "
		if resp, err := do(); err != nil {
			line += kindOf(err)
		} else {
			body := digest(resp.Body)
			resp.Body.Close()
			line += fmt.Sprintf("%s %s, %s, %v", resp.Proto, resp.Status, body, resp.Trailer)
		}
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}
	url := "http://" + c.addr
	stream("first", func() (*http.Response, error) { return browser.Get(url + target("4k.m4s")) })
	for i := range 20 {
		all.Go(func() {
			switch i % 4 {
			case 0:
				stream("file", func() (*http.Response, error) { return browser.Get(url + target("smarttv/seg-1.m4s")) })
			case 1:
				stream("dynamic", func() (*http.Response, error) { return browser.Get(url + "/dynamic?how=chunked&n=1000003") })
			case 2:
				stream("upload", func() (*http.Response, error) {
					return browser.Post(url+"/count", "application/octet-stream", io.NopCloser(newPattern(1_000_003)))
				})
			case 3:
				stream("trailers", func() (*http.Response, error) {
					return browser.Post(url+"/trailers", "text/plain", bytes.NewReader(bytes.Repeat([]byte("x"), 100_000)))
				})
			}
		})
	}
	all.Wait()
	stream("last", func() (*http.Response, error) { return browser.Get(url + "/parts") })
	slices.Sort(lines)
	e.saw("%s", strings.Join(lines, "\n"))
}
