package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"spillway/internal/wire"
)

// polled is a session of a host whose Poll asks for limit, and the guest's end of its channel, a socket.
func polled(t *testing.T, limit time.Duration) (*recorder, *peer) {
	t.Helper()
	a, b := unixPair(t)
	s := start(t, a, func(ctx context.Context, c Conn, o Options, begin func(*Session) Handler) error {
		o.BusyPoll = limit
		return Host(ctx, c, testHello, o, begin)
	})
	p := byHand(t, b)
	p.say(ready(p.await(wire.TypeHello).Session))
	return s.session(), p
}

// TestPoll: frames are handled once and in order, whoever reads them.
func TestPoll(t *testing.T) {
	r, p := polled(t, long)
	const frames, pollers = 2000, 4
	var heard sync.WaitGroup
	heard.Add(frames)
	r.side.frame = func(*recorder, wire.Header, []byte) error { heard.Done(); return nil }
	all := make(chan struct{})
	go func() { heard.Wait(); close(all) }()
	var polling sync.WaitGroup
	for range pollers {
		polling.Go(func() {
			var e Expectation
			for {
				select {
				case <-all:
					return
				default:
					r.session.Poll(&e, func() bool {
						select {
						case <-all:
							return true
						default:
							return false
						}
					})
				}
			}
		})
	}
	for i := range frames {
		p.say(data(r.session.ID, 16, fmt.Sprint(i)))
	}
	polling.Wait()
	for i := range frames {
		if got := next(t, "a frame", r.got); got != frameText(16, fmt.Sprint(i)) {
			t.Fatalf("frame %d is %s", i, got)
		}
	}
}

// TestPollReads: the caller of Poll reads, even if the session's own goroutine never gets to run.
func TestPollReads(t *testing.T) {
	a, b := unixPair(t)
	s := newSession(a, 7, testHello, nil)
	r := &recorder{side: &side{t: t}, session: s, got: make(chan string, 10)}
	s.intake, s.busyPoll = newIntake(a, wire.NewHostReader(a), r), long
	frames := append(data(7, 16, "first"), data(7, 16, "second")...)
	for _, part := range [][]byte{frames[:5], frames[5:30], frames[30:]} { // frames need not come whole
		if _, err := b.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	s.Poll(&Expectation{}, func() bool { return len(r.got) == 2 })
	if first, second := next(t, "a frame", r.got), next(t, "a frame", r.got); first != frameText(16, "first") || second != frameText(16, "second") {
		t.Errorf("heard %s and %s", first, second)
	}
}

// TestPollBeforeHandler: who learns of a session from begin may poll it before begin has returned, with frames of the host there already.
func TestPollBeforeHandler(t *testing.T) {
	a, b := unixPair(t)
	p := byHand(t, b)
	p.say(append(hello(9), data(9, 16, "early")...))
	var poll error
	s := start(t, a, func(ctx context.Context, c Conn, o Options, begin func(*Session) Handler) error {
		o.BusyPoll = 20 * time.Millisecond
		return Guest(ctx, c, o, func(session *Session) Handler {
			polled := make(chan error)
			go func() {
				defer close(polled)
				defer func() {
					if r := recover(); r != nil {
						polled <- fmt.Errorf("panic: %v", r)
					}
				}()
				session.Poll(&Expectation{}, func() bool { return false })
			}()
			poll = <-polled
			return begin(session)
		})
	})
	r := s.session()
	if poll != nil {
		t.Errorf("Poll: %v", poll)
	}
	if got := next(t, "the frame", r.got); got != frameText(16, "early") {
		t.Errorf("heard %s", got)
	}
}

// TestPollInVain: silence is not waited for longer than the limit, and ever more rarely.
func TestPollInVain(t *testing.T) {
	r, _ := polled(t, time.Millisecond)
	var e Expectation
	asked := 0
	never := func() bool { asked++; return false }
	var times []int // the calls that asked
	for i := range 300 {
		before := asked
		began := time.Now()
		r.session.Poll(&e, never)
		if took := time.Since(began); took > long/10 {
			t.Fatalf("call %d took %v", i, took)
		}
		if asked > before {
			times = append(times, i)
		}
	}
	if got, want := fmt.Sprint(times), "[0 2 6 14 30 62 126 190 254]"; got != want {
		t.Errorf("asked in the calls %s, want %s", got, want)
	}
	r.session.Poll(&Expectation{}, func() bool { return true })
	e.learn(true)
	before := asked
	r.session.Poll(&e, never)
	if asked == before {
		t.Error("not asked after a success")
	}
}

// TestPollOff: without a limit, or on a Conn without a descriptor, nothing is asked.
func TestPollOff(t *testing.T) {
	unexpected := func() bool { t.Error("asked"); return true }
	r, _ := polled(t, 0)
	r.session.Poll(&Expectation{}, unexpected)

	a, b := net.Pipe()
	defer b.Close()
	s := startHost(t, a)
	p := byHand(t, b)
	p.say(ready(p.await(wire.TypeHello).Session))
	piped := s.session().session
	piped.busyPoll = long
	piped.Poll(&Expectation{}, unexpected)
	s.stop()
}

// TestPollEnds: a breach that Poll meets ends the session, and the session's own goroutine tells.
func TestPollEnds(t *testing.T) {
	for name, say := range map[string]func(r *recorder, p *peer){
		"another session's frame": func(r *recorder, p *peer) { p.say(data(r.session.ID+2, 16, "x")) },
		"a new guest":             func(_ *recorder, p *peer) { p.say(greet()) },
		"what the handler refuses": func(r *recorder, p *peer) {
			p.say(data(r.session.ID, 16, "refused"))
		},
		"the end of the channel": func(_ *recorder, p *peer) { _ = p.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			r, p := polled(t, long)
			refused := errors.New("refused")
			r.side.frame = func(*recorder, wire.Header, []byte) error { return refused }
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.session.Poll(&Expectation{}, func() bool { return len(r.end) > 0 })
			}()
			say(r, p)
			next(t, "the end of the session", r.end)
			next(t, "the end of Poll", ended)
		})
	}
}

// TestLastWords: what the other side has said before it closed the channel is heard, also when a write is the first to notice the end.
func TestLastWords(t *testing.T) {
	r, p := polled(t, 0)
	busy, goOn := make(chan struct{}), make(chan struct{})
	first := true
	r.side.frame = func(*recorder, wire.Header, []byte) error {
		if first {
			first = false
			close(busy)
			<-goOn
		}
		return nil
	}
	p.say(data(r.session.ID, 16, "first"))
	<-busy // it has been read alone
	p.say(data(r.session.ID, 16, "last"))
	if err := p.conn.Close(); err != nil {
		t.Fatal(err)
	}
	for r.session.Write(data(r.session.ID, 16, "to nobody")) == nil {
	}
	close(goOn)
	for _, want := range []string{"first", "last"} {
		if got := next(t, "a frame", r.got); got != frameText(16, want) {
			t.Errorf("heard %s, want %s", got, want)
		}
	}
	if err := next(t, "the end", r.end); err == nil {
		t.Error("no error")
	}
}
