package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// wrongLength: responses that are shorter or longer than they say. What comes behind the promised bytes is part of what there is to see.
func wrongLength(e *exchange) {
	for i, query := range []string{"promise=5000&n=2000", "promise=2000&n=5000", "promise=100000&file=1", "promise=30000&file=1", "promise=200000&n=100000"} {
		key := fmt.Sprintf("%s-%d", e.key, i)
		c := e.connect()
		c.send(get("/wrong-length?" + query + "&note=" + key))
		resp, err := c.header("GET")
		if err != nil {
			e.saw("%s: %s", query, endOf(err))
			continue
		}
		e.saw("%s: %d, %s", query, resp.ContentLength, digest(resp.Body))
		rest, err := io.Copy(io.Discard, c.r)
		e.saw("then %d bytes, %s; %v", rest, endOf(err), e.notesOf(key, 1))
	}
}

// panics: a handler that fails in the middle, with and without a length, before and behind what its connection has had.
func panics(e *exchange) {
	for _, query := range []string{"", "n=1000", "n=1000&length=5000", "n=500000", "n=500000&length=1000000", "length=100000"} {
		c := e.connect()
		c.send(get("/panic?" + query))
		e.sawAnswer(c, "GET")
		c.expectClosed()
	}
}

func timeoutHandler(e *exchange) {
	c := e.connect()
	for _, target := range []string{"/timeout?late=1", "/enough-time", "/timeout?late=1", target("64k.m4s")} {
		c.send(get(target))
		e.sawAnswer(c, "GET")
	}
}

// responseDeadlines pass while the server reads, writes, or lets a file be sent.
func responseDeadlines(e *exchange) {
	for _, which := range []string{"read", "write", "file"} {
		key := e.key + "-" + which
		c := e.connect(receiveBuffer(smallBuffer))
		if which == "read" {
			c.send(post("/deadline?which=read&note="+key, 1000))
			c.send("not all of it")
		} else {
			c.send(get("/deadline?which=" + which + "&note=" + key))
			e.saw("%v", e.notesOf(key, 1)) // and reads nothing before
		}
		resp, err := c.header("GET")
		if which == "read" {
			if err != nil {
				e.saw("read: %s", endOf(err))
				continue
			}
			text, err := io.ReadAll(resp.Body)
			e.saw("read: %s, %q, %s, %v", resp.Status, text, endOf(err), e.notesOf(key, 1))
			continue
		}
		if err == nil { // else the deadline has passed even before the header was sent
			_, err = io.Copy(io.Discard, resp.Body)
		}
		e.saw("%s: %s", which, endOf(err))
		c.expectClosed()
	}
}

// halfClosedEcho: the server hears everything and then the end, and has its own direction still.
func halfClosedEcho(e *exchange) {
	c := e.raw("count")
	e.saw("%s, %s", kindOf(c.sendPattern(3_000_000)), kindOf(c.CloseWrite()))
	text, err := io.ReadAll(c.r)
	e.saw("%q, %s", text, endOf(err))
	c = e.raw("count")
	e.saw("%s", kindOf(c.CloseWrite())) // nothing at all
	text, err = io.ReadAll(c.r)
	e.saw("%q, %s", text, endOf(err))
	c = e.raw("echo")
	sent := make(chan string, 1)
	go func() { sent <- kindOf(c.sendPattern(5_000_000)) + kindOf(c.CloseWrite()) }()
	n, err := checkPattern(c.r)
	e.saw("echo %d, %s, %s", n, endOf(err), <-sent)
}

// serverEndsFirst: what the client says after the server's end still reaches it.
func serverEndsFirst(e *exchange) {
	c := e.raw("end-first")
	text, err := io.ReadAll(c.r)
	e.saw("%q, %s", text, endOf(err))
	e.saw("%s, %s", kindOf(c.sendPattern(1_000_000)), kindOf(c.CloseWrite()))
	e.sawNotes(4)
}

func rangesWithoutHTTP(e *exchange) {
	c := e.raw("ranges")
	e.saw("%s", digest(c.r))
	e.sawNotes(len(partRanges))
}

func bothWaysAtOnce(e *exchange) {
	c := e.raw("both-ways")
	sent := make(chan string, 1)
	go func() { sent <- kindOf(c.sendPattern(bothWaysBytes)) + kindOf(c.CloseWrite()) }()
	n, err := checkPattern(c.r)
	e.saw("%d, %s, %s", n, endOf(err), <-sent)
	e.sawNotes(2)
}

func readDeadlinesScenario(e *exchange) {
	c := e.raw("read-deadlines")
	e.saw("%q", c.exactly(3))
	c.send("hello")
	e.saw("%q", c.exactly(3))
	c.send("again")
	e.sawNotes(9)
}

func writeDeadlineScenario(e *exchange) {
	c := e.raw("write-deadline", receiveBuffer(smallBuffer))
	first := c.exactly(1000)
	e.open(e.key)
	e.sawNotes(3) // and reads nothing before
	n, err := checkPattern(io.MultiReader(bytes.NewReader(first), io.LimitReader(c.r, deadlineBytes-1000)))
	e.saw("%d bytes, %s", n, endOf(err))
	e.sawNotes(1)
}

// closeUnderWriter: the writer is woken, and the client gets what was sent before, and not all.
func closeUnderWriter(e *exchange, service string, all int64) {
	c := e.raw(service, receiveBuffer(smallBuffer))
	c.exactly(1000)
	e.open(e.key)
	e.notesOf(e.key, 2)
	_ = c.SetReadDeadline(time.Now().Add(hangLimit))
	n, err := io.Copy(io.Discard, c.r)
	// Local connections end, leased ones are reset if the host was sending a file: a client must not take a part of it for the whole.
	e.saw("all of it: %v, %v", n >= all-1000, err == nil || endOf(err) == "cut")
	notes := e.notesOf(e.key, 2)
	if len(notes) == 2 && notes[0] > notes[1] { // in whatever order
		notes[0], notes[1] = notes[1], notes[0]
	}
	e.saw("%v", notes)
}

func resetByClient(e *exchange) {
	c := e.raw("write-to-gone")
	c.exactly(100_000)
	c.reset()
	e.sawNotes(1)
	for range 3 { // at any moment
		c = e.raw("read-from-gone")
		e.saw("%s", kindOf(c.sendPattern(1000)))
		time.Sleep(10 * time.Millisecond)
		c.reset()
		e.sawNotes(2)
	}
}

func options(e *exchange) {
	c := e.raw("options")
	e.sawNotes(1)
	c.send("hello")
	e.saw("%q", c.exactly(5))
	e.saw("%s", kindOf(c.CloseWrite()))
	c.expectClosed()
}

// stopServer stops a server with clients that have said nothing, are idle, wait for an answer, read a file, and upload.
func stopServer(e *exchange, how string) {
	host, _, _ := net.SplitHostPort(e.l.Addr(e.way.arm))
	port := e.ask("/start", nil)
	addr := net.JoinHostPort(host, port)
	key := e.key
	connect := func() *client { return e.connectTo(addr, receiveBuffer(smallBuffer)) }

	idle, waiting, reading, uploading := connect(), connect(), connect(), connect()
	idle.get("4k.m4s", e.files.files["4k.m4s"])
	waiting.send(get("/wait?note=" + key))
	e.notesOf(key, 1)
	reading.begin(bigFile, e.files.files[bigFile], readSome)
	uploading.send(post("/count?hold=1&note="+key+"-upload", 1_000_000))
	e.notesOf(key+"-upload", 1)

	var stopped sync.WaitGroup
	var result string
	stopped.Go(func() { result = e.ask("/stop", url.Values{"port": {port}, "how": {how}}) })
	idle.expectClosed() // whatever the others do
	if how == "shutdown" {
		e.open(key)
		e.open(key + "-upload")
		e.sawAnswer(waiting, "GET")
		e.saw("upload: %s", kindOf(uploading.sendPattern(1_000_000)))
		e.sawAnswer(uploading, "POST")
		reading.take(e.files.files[bigFile][readSome:])
		for _, c := range []*client{waiting, uploading, reading} {
			c.expectClosed()
		}
	}
	stopped.Wait()
	e.saw("%s: %s, %v", how, result, e.notesOf("server "+port, 1))
	if how == "hasty shutdown" {
		e.open(key)
		e.open(key + "-upload")
		e.sawAnswer(waiting, "GET")
		e.saw("upload: %s", kindOf(uploading.sendPattern(1_000_000)))
		e.sawAnswer(uploading, "POST")
		reading.take(e.files.files[bigFile][readSome:])
		reading.expectClosed()
	}
	if how == "close" {
		e.sawAnswer(waiting, "GET")
		_ = reading.SetReadDeadline(time.Now().Add(hangLimit))
		n, err := io.Copy(io.Discard, reading.r)
		e.saw("the rest of the file: all of it: %v, cut: %v", n >= int64(bigBytes-readSome), err == nil || closedByPeer(err))
		e.open(key + "-upload")
		uploading.expectClosed()
	}
	e.saw("waiting: %s", strings.Join(e.notesOf(key, 2), ", "))
	for _, c := range []*client{idle, waiting, reading, uploading} {
		e.notesOf(c.LocalAddr().String(), 1)
		c.Close()
	}
}

// serverLimits are http.Server's own time-outs.
func serverLimits(e *exchange) {
	host, _, _ := net.SplitHostPort(e.l.Addr(e.way.arm))
	start := func(limit string) string {
		return net.JoinHostPort(host, e.ask("/start", url.Values{limit: {"1s"}}))
	}
	idle := e.connectTo(start("idle"))
	idle.get("4k.m4s", e.files.files["4k.m4s"])
	write := e.connectTo(start("write"), receiveBuffer(smallBuffer))
	write.send(get("/dynamic?how=length&n=1000000000&note=" + e.key))
	read := e.connectTo(start("read"))
	read.send(post("/count", 1000)) // and no body
	e.sawAnswer(read, "POST")
	read.expectClosed()
	idle.expectClosed()
	e.sawNotes(1) // before anything is read
	resp, err := write.header(http.MethodGet)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	e.saw("write: %s", endOf(err))
}
