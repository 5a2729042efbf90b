package e2e

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"

	"golang.org/x/net/nettest"

	"spillway/internal/guest"
	"spillway/internal/lab"
	"spillway/internal/mediafs"
)

// pairs makes connections between the lab's client and a server in this process, which is the guest's: its agent has the channel of an arm to the lab's
// real daemon.
type pairs struct {
	t        *testing.T
	l        *lab.Lab
	agent    *guest.Agent
	listener net.Listener
	files    *mediafs.Dir
}

func newPairs(t *testing.T, l *lab.Lab, arm lab.Arm) *pairs {
	t.Helper()
	killServer(t, l, arm)
	agent, stop, err := keepAgent(string(arm), "unix:"+channelSocket(l, arm), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(stop)
	p := &pairs{t: t, l: l, agent: agent}
	p.files, err = mediafs.NewDir("media", l.Files, mediafs.Options{})
	must(t, err)
	t.Cleanup(func() { p.files.Close() })
	must(t, l.Guest.Do(func() (err error) {
		p.listener, err = guest.Listen(context.Background(), l.Addr(arm), agent)
		return err
	}))
	t.Cleanup(func() { p.listener.Close() })
	eventually(t, "a session", func() bool { return agent.Snapshot().Host == "up" })
	return p
}

// make is a nettest.MakePipe, of connections that have been handed over. c1 is the client.
func (p *pairs) make() (c1, c2 net.Conn, stop func(), err error) {
	before := p.agent.Snapshot().Counts.Sends
	var d net.Dialer
	d.SetMultipathTCP(false)
	if c1, err = p.l.Client.Dial(&d, "tcp", p.listener.Addr().String()); err != nil {
		return nil, nil, nil, err
	}
	if c2, err = p.listener.Accept(); err != nil {
		c1.Close()
		return nil, nil, nil, err
	}
	stop = func() {
		c1.Close()
		c2.Close()
	}
	f, err := p.files.Open(firstFile)
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	defer f.Close()
	taken := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, c1, int64(smallSizes[firstFile]))
		taken <- err
	}()
	_, err = io.Copy(c2, f)
	if err = errors.Join(err, <-taken); err == nil && p.agent.Snapshot().Counts.Sends == before {
		err = errors.New("the connection was not handed over")
	}
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return c1, c2, stop, nil
}

// TestNetConn holds a leased connection, and one that comes and goes, against the rules of net.Conn, with the client's and with the server's end as
// the one that is looked at.
func TestNetConn(t *testing.T) {
	for _, w := range otherUsed {
		t.Run(w.name, func(t *testing.T) {
			files := newMedia(t)
			l := newLab(t, files)
			p := newPairs(t, l, w.arm)
			if w.storm {
				e := &exchange{l: l}
				defer e.recallAllTheTime()()
			}
			t.Run("client", func(t *testing.T) { nettest.TestConn(t, p.make) })
			t.Run("server", func(t *testing.T) {
				nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
					c1, c2, stop, err = p.make()
					return c2, c1, stop, err
				})
			})
			eventually(t, "no lease is left", func() bool { return p.agent.Snapshot().Leases == 0 && hostStatus(t, l).Leases == 0 })
			if c := p.agent.Snapshot().Counts; c.Lost != 0 || c.Sessions != 1 {
				t.Errorf("%+v", c)
			}
			if s := hostStatus(t, l); s.Breaches != 0 || s.Closed["kernel"] != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}
