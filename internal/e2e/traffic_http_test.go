package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// scenarios are what clients do with servers, by name. A scenario says what there was to see, and never which way it was.
var scenarios = map[string]func(*exchange){
	"pipelined":               pipelined,
	"mixed requests":          mixedRequests,
	"bodies that are no file": dynamicBodies,
	"uploads":                 uploads,
	"expect 100-continue":     expectContinue,
	"half-closed request":     halfClosedRequest,
	"early answer":            earlyAnswer,
	"answers while it reads":  answersWhileReading,
	"events":                  events,
	"trailers":                trailers,
	"hints": func(e *exchange) {
		c := e.connect()
		c.send(get("/hints"))
		e.sawAnswer(c, "GET")
		e.sawAnswer(c, "GET")
	},
	"parts":                   parts,
	"wrong length":            wrongLength,
	"panics":                  panics,
	"time-out handler":        timeoutHandler,
	"client leaves":           clientLeaves,
	"response deadlines":      responseDeadlines,
	"states":                  states,
	"websocket":               webSocketScenario,
	"HTTP/2":                  http2Scenario,
	"HTTP/2 after a response": http2LaterScenario,

	"half-closed echo":       halfClosedEcho,
	"server ends first":      serverEndsFirst,
	"ranges without HTTP":    rangesWithoutHTTP,
	"both ways at once":      bothWaysAtOnce,
	"a writer beside a copy": func(e *exchange) { c := e.raw("writer-beside-copy"); e.saw("%s", digest(c.r)); e.sawNotes(3) },
	"read deadlines":         readDeadlinesScenario,
	"write deadline":         writeDeadlineScenario,
	"closed":                 func(e *exchange) { c := e.raw("closed"); c.expectClosed(); e.sawNotes(12) },
	"close in read":          func(e *exchange) { c := e.raw("close-in-read"); c.expectClosed(); e.sawNotes(1) },
	"close in write":         func(e *exchange) { closeUnderWriter(e, "close-in-write", deadlineBytes) },
	"close in file":          func(e *exchange) { closeUnderWriter(e, "close-in-file", int64(bigBytes)) },
	"reset by client":        resetByClient,
	"options":                options,
	"reset by server": func(e *exchange) {
		c := e.raw("linger")
		c.send("x")
		_, err := c.r.ReadByte()
		e.saw("%s", kindOf(err))
		e.sawNotes(2)
	},
	"small pieces": func(e *exchange) {
		c := e.raw("small-pieces")
		e.saw("%x", c.exactly(500+5*43))
		c.send("x")
		e.sawNotes(1)
		c.expectClosed()
	},

	"shutdown": func(e *exchange) { stopServer(e, "shutdown") },
	"hasty":    func(e *exchange) { stopServer(e, "hasty shutdown") },
	"close":    func(e *exchange) { stopServer(e, "close") },
	"limits":   serverLimits,
}

func get(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n" }

func post(target string, size int64, lines ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n", target, size, strings.Join(append(lines, ""), "\r\n"))
}

// sendPattern writes an upload.
func (c *client) sendPattern(size int64) error {
	if err := c.SetWriteDeadline(time.Now().Add(2 * patience)); err != nil {
		return err
	}
	_, err := io.Copy(onlyWriter{c.TCPConn}, newPattern(size))
	return err
}

// exactly reads n bytes.
func (c *client) exactly(n int) []byte {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, n)
	if got, err := io.ReadFull(c.r, b); err != nil {
		c.t.Errorf("%d of %d bytes, %v", got, n, err)
	}
	return b
}

// pipelined sends requests of every kind in one write.
func pipelined(e *exchange) {
	c := e.connect()
	var all strings.Builder
	methods := []string{"GET", "GET", "HEAD", "GET", "GET", "POST", "GET", "GET", "GET"}
	for i, target := range []string{
		target("64k.m4s"), "/dynamic?how=chunked&n=300000", target("10m.mp4"), "/nothing", "/dynamic?how=length&n=100000", "/count", "/parts",
		target("4k.m4s"), "/dynamic?how=copy&n=70000",
	} {
		if methods[i] == "POST" {
			body := make([]byte, 20_000)
			_, _ = newPattern(20_000).Read(body)
			all.WriteString(post(target, 20_000) + string(body))
			continue
		}
		all.WriteString(methods[i] + strings.TrimPrefix(get(target), "GET"))
	}
	c.send(all.String())
	for _, m := range methods {
		e.sawAnswer(c, m)
	}
}

// mixedRequests are one after the other, so that a connection comes and goes where it can.
func mixedRequests(e *exchange) {
	c := e.connect()
	for i := range 30 {
		switch i % 6 {
		case 0, 3:
			c.send(get(target("64k.m4s")))
			e.sawAnswer(c, "GET")
		case 1:
			c.send(get("/dynamic?how=chunked&n=50000"))
			e.sawAnswer(c, "GET")
		case 2:
			c.send(post("/count", 150_000))
			e.saw("upload: %s", kindOf(c.sendPattern(150_000)))
			e.sawAnswer(c, "POST")
		case 4:
			c.send("GET " + target("10m.mp4") + " HTTP/1.1\r\nHost: x\r\nRange: bytes=100-200,5000-90000\r\n\r\n")
			resp, err := c.header("GET")
			if err != nil {
				e.saw("ranges: %s", endOf(err))
				continue
			}
			e.saw("%d: %s", resp.StatusCode, multiRange(resp))
		case 5:
			c.send("HEAD" + strings.TrimPrefix(get(target("10m.mp4")), "GET"))
			e.sawAnswer(c, "HEAD")
		}
	}
	c.send("GET /media/4k.m4s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	e.sawAnswer(c, "GET")
	c.expectClosed()
}

func dynamicBodies(e *exchange) {
	c := e.connect()
	for _, how := range []string{"chunked", "length", "copy", "chunked", "until close"} {
		c.send(get("/dynamic?n=5000003&how=" + how))
		resp, err := c.header("GET")
		if err != nil {
			e.saw("%s: %s", how, endOf(err))
			return
		}
		n, err := checkPattern(resp.Body)
		e.saw("%s: %d, %v, %d bytes, %s", how, resp.ContentLength, resp.TransferEncoding, n, endOf(err))
	}
}

func uploads(e *exchange) {
	c := e.connect()
	for _, size := range []int64{1, 5_000_003, 100, 300_000} {
		c.send(post("/count", size))
		e.saw("%d: %s", size, kindOf(c.sendPattern(size)))
		e.sawAnswer(c, "POST")
	}
	c.send("POST /count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	for body := newPattern(1_000_000); body.offset < body.size; {
		chunk := make([]byte, min(33_333, body.size-body.offset))
		_, _ = body.Read(chunk)
		c.send(fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk))
	}
	c.send("0\r\n\r\n")
	e.sawAnswer(c, "POST")
	c.send(post("/limited", 200_000))
	e.saw("limited: %s", kindOf(c.sendPattern(200_000)))
	e.sawAnswer(c, "POST")
}

// expectContinue sends bodies when it is told to, and none when it is not.
func expectContinue(e *exchange) {
	c := e.connect()
	for _, size := range []int64{1000, 2_000_000} {
		c.send(post("/count", size, "Expect: 100-continue"))
		resp, err := c.header("POST")
		if err != nil {
			e.saw("no answer: %s", endOf(err))
			return
		}
		e.saw("%s, and nothing more: %v", resp.Status, c.r.Buffered() == 0)
		e.saw("%s", kindOf(c.sendPattern(size)))
		e.sawAnswer(c, "POST")
		c.send(get(target("64k.m4s")))
		e.sawAnswer(c, "GET")
	}
	c.send(post("/refuse", 1000, "Expect: 100-continue"))
	e.sawAnswer(c, "POST") // and the server waits for the body, or for this end to close
}

// halfClosedRequest closes its direction behind the request.
func halfClosedRequest(e *exchange) {
	for _, target := range []string{target(bigFile), "/dynamic?how=chunked&n=3000000", "/dynamic?how=length&n=3000000", "/parts"} {
		c := e.connect()
		c.send(get(target))
		e.saw("close: %s", kindOf(c.CloseWrite()))
		e.sawAnswer(c, "GET")
		c.expectClosed()
	}
	c := e.connect()
	c.send(post("/count", 1_000_000))
	e.saw("upload: %s, %s", kindOf(c.sendPattern(1_000_000)), kindOf(c.CloseWrite()))
	e.sawAnswer(c, "POST")
	c.expectClosed()
	c = e.connect()
	c.send(post("/count", 1_000_000)) // a body that ends too early
	e.saw("part: %s, %s", kindOf(c.sendPattern(400_000)), kindOf(c.CloseWrite()))
	e.sawAnswer(c, "POST")
	c.expectClosed()
}

// earlyAnswer is refused before its body is sent, and sends it all the same.
func earlyAnswer(e *exchange) {
	c := e.connect()
	c.send(post("/refuse", 50_000_000))
	sent := make(chan struct{})
	go func() {
		_ = c.sendPattern(50_000_000) // fails, or not: the server closes
		close(sent)
	}()
	e.sawAnswer(c, "POST")
	c.expectClosed()
	c.Close()
	<-sent
}

// answersWhileReading gets each piece of its upload back before it sends the next one.
func answersWhileReading(e *exchange) {
	c := e.connect()
	const piece, pieces = 5000, 40
	c.send(post("/both-ways?note="+e.key, piece*pieces))
	var resp *http.Response
	for i := range pieces {
		c.send(strings.Repeat(string(rune('a'+i%26)), piece))
		if resp == nil {
			var err error
			if resp, err = c.header("POST"); err != nil {
				e.saw("no answer: %s", endOf(err))
				return
			}
		}
		b := make([]byte, piece)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(resp.Body, b); err != nil || b[0] != byte('a'+i%26) || b[piece-1] != b[0] {
			e.saw("piece %d: %s, %q", i, endOf(err), b[0])
			return
		}
	}
	e.saw("%s: %s", resp.Status, digest(resp.Body))
	c.send(get(target("64k.m4s")))
	e.sawAnswer(c, "GET")
}

// events reads an event before the server may go on with the next one.
func events(e *exchange) {
	c := e.connect()
	const n = 20
	c.send(get(fmt.Sprintf("/events?n=%d&note=%s", n, e.key)))
	resp, err := c.header("GET")
	if err != nil {
		e.saw("no answer: %s", endOf(err))
		return
	}
	e.saw("%s %v %v", resp.Status, resp.Header.Get("Content-Type"), resp.TransferEncoding)
	lines := bufio.NewReader(resp.Body)
	for i := range n {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		id, err := lines.ReadString('\n')
		data, err2 := lines.ReadString('\n')
		if err != nil || err2 != nil {
			e.saw("event %d: %s, %s", i, endOf(err), endOf(err2))
			return
		}
		e.saw("%q, %d bytes", id, len(data))
		if i%5 == 0 {
			time.Sleep(30 * time.Millisecond) // long enough for an idle connection to go home
		}
		e.open(e.key + fmt.Sprint(i))
	}
	e.saw("%s", digest(lines))
	c.send(get(target("64k.m4s")))
	e.sawAnswer(c, "GET")
}

func trailers(e *exchange) {
	c := e.connect()
	for range 3 {
		c.send("POST /trailers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Client\r\n\r\n5\r\nhello\r\n0\r\nX-Client: mine\r\n\r\n")
		e.sawAnswer(c, "POST")
		c.send(get(target("64k.m4s")))
		e.sawAnswer(c, "GET")
	}
}

// parts are ranges of a file with other bytes between them.
func parts(e *exchange) {
	c := e.connect()
	for range 3 {
		c.send(get("/parts?note=" + e.key))
		resp, err := c.header("GET")
		if err != nil {
			e.saw("no answer: %s", endOf(err))
			return
		}
		e.saw("%s, %d: %s", resp.Status, resp.ContentLength, multiRange(resp))
	}
	e.saw("notes: %v", e.notesOf(e.key, 0))
}

func clientLeaves(e *exchange) {
	for _, before := range []string{"0", "300000"} {
		for how, leave := range map[int]func(*client){0: func(c *client) { c.Close() }, 1: (*client).reset, 2: func(c *client) { _ = c.CloseWrite() }} {
			key := fmt.Sprintf("%s-%s-%d", e.key, before, how)
			c := e.connect()
			c.send(get("/wait?" + url.Values{"note": {key}, "n": {before}}.Encode()))
			if before != "0" {
				c.exactly(300_000)
			}
			e.notesOf(key, 1)
			leave(c)
			if notes := e.notesOf(key, 2); len(notes) != 2 || notes[1] != "the client is gone" {
				e.saw("%s: %v", key, notes)
			}
		}
	}
	e.saw("all have left")
}

// states is what http.Server.ConnState is told.
func states(e *exchange) {
	c := e.connect()
	for range 3 {
		c.send(get(target("64k.m4s")))
		e.sawAnswer(c, "GET")
	}
	n := 7
	if e.way.used {
		n = 9
	}
	e.sawStates(c, n)
	c.Close()
	e.sawStates(c, n+1)
	c = e.connect()
	c.send(get("/raw/echo"))
	_, _ = c.header("GET")
	e.sawStates(c, n-4)
}
