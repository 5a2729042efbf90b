package guest

import (
	"testing"

	"spillway/internal/wire"
)

// unmounted is a host's file that this side cannot open: it counts what is read of it here.
type unmounted struct {
	*file
	read int
}

func (f *unmounted) Read(p []byte) (int, error) {
	n, err := f.file.Read(p)
	f.read += n
	return n, err
}

// TestMoveInResponse: a response that begins while the VM moves is sent by the next host, header and all; nothing of it is read here.
func TestMoveInResponse(t *testing.T) {
	r := newRig(t, Policy{Mode: Lease})
	s := r.script()
	before := s.sessionID(r)
	first := r.leased(s) // keeps the session until it is over
	s.say(0, wire.FlagMove, wire.Drain{})
	r.eventually("the agent drains", func() bool { return r.agent.Snapshot().Host == hostDraining })

	h := &handing{script: s, tb: t, rig: r}
	h.client, h.server = r.connect()
	f, _ := newFile(bodySize)
	source := &unmounted{file: f}
	h.done = send(h.server, header(bodySize), source)
	s.silent()
	first.over(wire.ReasonClientGone)
	s.newSession(before)
	h.state, _ = hear[wire.Handover](s)
	order, head := hear[wire.Send](s)
	h.id = head.ID
	if order.Offset != 0 || order.Count != bodySize || source.read != 0 {
		t.Errorf("SEND of %d bytes from %d on, after %d were read here", order.Count, order.Offset, source.read)
	}
	if string(order.Header) != header(bodySize) {
		t.Errorf("the header did not wait for the next host: SEND has %q", order.Header)
	}
	h.say(h.id, 0, wire.Granted{})
	h.sent()
	h.over(wire.ReasonClientGone)
}
