package lease

import (
	"fmt"

	"pgregory.net/rapid"

	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// world is one client's connection, the two kernels that it may be on, and the two processes that move it. Sequence numbers count bytes from
// 0, so that the byte with the number n is the one that the other end expects n-th: whatever is sent twice, left out or out of order is seen.
type world struct {
	t     *rapid.T
	trace []string

	// The client.
	asked    uint32 // bytes that it wants to send
	acked    uint32 // of them, acknowledged to it: it never sends them again
	received uint32 // bytes that it has from the server
	over     string // how the connection ended for it: "FIN" or "RST"

	hostKernel  *kernelSocket // the redirect gives every segment to this one while it exists
	guestKernel *kernelSocket
	guest       *guestProcess
	host        *hostProcess   // of the newest lease; nil before the first
	hosts       []*hostProcess // of all leases
	channel     *channelModel

	faults  bool   // calls to a socket may fail, segments may slip in
	excused string // why the client may be left without an end: a process has died, or the last call that could end it has failed
}

// channelModel is one session: two streams that break at one instant and whose ends learn of it one after the other.
type channelModel struct {
	broken             bool
	toHost, toGuest    []frame
	hostLost, guestEnd bool // told
}

// frame is a message with what the model needs to know of it.
type frame struct {
	kind  wire.Type
	state tcpstate.State
	at    uint32 // DATA: number of the first byte
	n     uint32 // DATA: bytes; HANDBACK: bytes of DATA that the host has taken
	abort bool   // CLOSE
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

// kernelSocket is a socket with the sequence numbers that matter.
type kernelSocket struct {
	w         *world
	name      string
	model     model
	closed    bool
	recvNext  uint32 // of the client's bytes
	sendNext  uint32
	unread    uint32 // bytes in the receive queue
	extracted uint32 // the receive sequence that went to the other side
}

// move is one call, which may fail and then leaves the socket as it was.
func (s *kernelSocket) move(op string) error {
	next, ok := s.model.transition(op)
	if !ok || s.closed {
		s.w.fatalf("%s: %s of a socket that is %v (closed %v)", s.name, op, s.model, s.closed)
	}
	if s.w.faults && rapid.IntRange(0, 11).Draw(s.w.t, op+" fails") == 0 {
		s.w.logf("%s: %s fails", s.name, op)
		if rapid.Bool().Draw(s.w.t, "half-way") {
			s.model.condition = halfWay(op, s.model.condition)
		}
		if op == "abort" {
			s.w.excused = "an abort failed"
		}
		return &injected{op, reasonOfCall[op]}
	}
	s.model = next
	s.w.logf("%s: %s", s.name, op)
	return nil
}

func (s *kernelSocket) Freeze() error { return s.move("freeze") }

func (s *kernelSocket) Extract(st *tcpstate.State) error {
	if s.unread > 0 {
		return fmt.Errorf("unread: %w", wire.ReasonUnreadInput)
	}
	if err := s.move("extract"); err != nil {
		return err
	}
	s.extracted = s.recvNext
	st.RecvSeq, st.SendSeq = s.recvNext, s.sendNext
	return nil
}

func (s *kernelSocket) Confirm() error {
	if err := s.move("confirm"); err != nil {
		return err
	}
	if s.recvNext != s.extracted {
		return fmt.Errorf("a segment slipped in: %w", wire.ReasonUnreadInput)
	}
	return nil
}

func (s *kernelSocket) Thaw() error    { return s.move("thaw") }
func (s *kernelSocket) Release() error { return s.move("release") }
func (s *kernelSocket) Abort() error   { return s.move("abort") }

// Halt is the host's. In this world a response is sent at once, so there is no middle of it.
func (s *kernelSocket) Halt() error { return s.move("halt") }

// Snapshot is the host's. What is in the receive queue counts as said later.
func (s *kernelSocket) Snapshot(st *tcpstate.State) error {
	if err := s.move("snapshot"); err != nil {
		return err
	}
	s.extracted = s.recvNext - s.unread
	st.RecvSeq, st.SendSeq = s.extracted, s.sendNext
	return nil
}

// Seal is the host's.
func (s *kernelSocket) Seal() ([]byte, bool, error) {
	if err := s.move("seal"); err != nil {
		return nil, false, err
	}
	return make([]byte, s.recvNext-s.extracted), false, nil
}

// Restore is the host's.
func (s *kernelSocket) Restore(st *tcpstate.State) error {
	if s.w.hostKernel != nil {
		return fmt.Errorf("the 4-tuple is taken: %w", wire.ReasonKernel)
	}
	if err := s.move("restore"); err != nil {
		return err
	}
	s.load(st)
	s.w.hostKernel = s
	return nil
}

func (s *kernelSocket) load(st *tcpstate.State) {
	s.recvNext, s.sendNext, s.unread = st.RecvSeq, st.SendSeq, 0
}

// guestKernelSocket is a kernelSocket that comes back to life in place.
type guestKernelSocket struct{ *kernelSocket }

func (s guestKernelSocket) Park() error { return s.move("park") }
func (s guestKernelSocket) Restore(st *tcpstate.State) error {
	if err := s.move("restore in place"); err != nil {
		return err
	}
	s.load(st)
	return nil
}

func (s guestKernelSocket) Update(tcpstate.PeerWindow) error { return nil }

func (s guestKernelSocket) TakeIn(p []byte) error {
	if err := s.move("take in"); err != nil {
		return err
	}
	s.recvNext += uint32(len(p))
	return nil
}

// send sends n bytes to the client.
func (s *kernelSocket) send(n uint32) {
	if s.model != (model{condition: live}) || s.closed {
		s.w.fatalf("%s sends on a socket that is %v", s.name, s.model)
	}
	s.w.logf("%s: sends %d from %d", s.name, n, s.sendNext)
	s.sendNext += n
	if s.w.over == "" {
		if s.sendNext-n != s.w.received {
			s.w.fatalf("%s sends from %d, the client expects %d", s.name, s.sendNext-n, s.w.received)
		}
		s.w.received = s.sendNext
	}
}

// close is close(2), or the end of the process that owned the socket. A FIN or RST that lies before what the client has received does
// nothing (RFC 9293 3.10.7.4, RFC 5961 3.2).
func (s *kernelSocket) close() {
	if s.closed {
		return
	}
	s.closed = true
	sends := s.model.closeSends()
	s.w.logf("%s: closes, sends %s", s.name, sends)
	if s.w.hostKernel == s {
		s.w.hostKernel = nil
	}
	if sends != "nothing" && s.sendNext == s.w.received && s.w.over == "" {
		s.w.over = sends
	}
}

// deliver brings one byte of the client's to whichever kernel gets it.
func (w *world) deliver() {
	s := w.hostKernel
	if s == nil {
		s = w.guestKernel
	}
	m := s.model
	switch {
	case s.closed, m.condition == parked || m.condition == fresh: // no socket for it
		w.logf("%s: RST, no socket", s.name)
		if s == w.guestKernel && w.host != nil && w.host.holds() {
			w.fatalf("a segment reached the guest's kernel although the host owns the connection")
		}
		w.over = "RST"
	case s.sendNext < w.received: // it acknowledges bytes that this kernel has not sent: dropped (RFC 9293 3.10.7.4)
	case (m.condition == live || m.condition == open) && m.ending == byState && s.recvNext == w.acked:
		w.acked++
		s.recvNext++
		s.unread++
	}
	// A frozen socket drops it, one with a gap cannot use it: the client sends it again.
}

// slip takes in a segment that was past the filter when the socket was frozen.
func (w *world) slip(s *kernelSocket) {
	w.logf("%s: a segment slips in", s.name)
	w.acked++
	s.recvNext++
	s.unread++
}

// holds tells whether the host's process owns the connection.
func (h *hostProcess) holds() bool {
	return !h.dead && (h.end.Phase() == Leased || h.end.Phase() == Returning)
}
