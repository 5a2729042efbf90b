package guest

import (
	"errors"
	"net/netip"
	"syscall"

	"spillway/internal/tcprepair"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// socket is the guest's own socket as package lease moves it (lease.GuestSocket).
type socket struct {
	raw     syscall.RawConn
	local   netip.AddrPort
	freezer *tcprepair.Freezer
	start   *tcprepair.StartWindow
	stays   bool                // a handover is for long, and so is a handback: the window may grow
	window  tcpstate.PeerWindow // as Restore got it
	next    uint32              // sequence number of the next byte of the client's, as Restore got it, and TakeIn
	began   uint32              // the congestion window that Restore gave it; 0: the kernel's own
	frozen  *tcpstate.State     // as Extract found it, for Confirm
	options *tcpstate.State     // what ReadOptions reads, before the first handover; the same as frozen after it
	stale   bool                // options were changed since
}

// control runs f with the file descriptor.
func (s *socket) control(f func(fd int) error) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// keepAlive is what Freeze has switched off.
func (s *socket) keepAlive() tcpstate.KeepAlive {
	if s.options == nil {
		return tcpstate.KeepAlive{}
	}
	return s.options.KeepAlive
}

func (s *socket) Freeze() error {
	return s.control(func(fd int) error {
		if s.options == nil || s.stale {
			options := tcpstate.State{Local: s.local}
			if err := tcprepair.ReadOptions(fd, &options); err != nil {
				return withReason(err)
			}
			s.options, s.stale = &options, false
		}
		return withReason(s.freezer.Freeze(fd))
	})
}

func (s *socket) Extract(st *tcpstate.State) error {
	return s.control(func(fd int) error {
		st.NoDelay, st.KeepAlive, st.Congestion = s.options.NoDelay, s.options.KeepAlive, s.options.Congestion
		st.TOS, st.MaxPacing, st.Cwnd = s.options.TOS, s.options.MaxPacing, s.began
		err := tcprepair.Extract(fd, st)
		if s.stays {
			st.Ssthresh = 0
		}
		s.frozen, s.options = st, st // one of them is enough: there are thousands of sockets
		return withReason(err)
	})
}

func (s *socket) Thaw() error {
	return s.control(func(fd int) error { return tcprepair.Thaw(fd, s.keepAlive()) })
}

func (s *socket) Confirm() error {
	return s.control(func(fd int) error { return tcprepair.Confirm(fd, s.frozen) })
}

func (s *socket) Park() error {
	return s.control(tcprepair.Park)
}

func (s *socket) Restore(st *tcpstate.State) error {
	s.window, s.next, s.began = st.Window.Peer(), st.RecvSeq, st.Cwnd
	if s.stays {
		st.Ssthresh = 0
	}
	return s.control(func(fd int) error {
		_ = s.start.Set(fd, st) // without it, the connection is slower to begin with
		return tcprepair.RestoreInPlace(fd, st, s.keepAlive())
	})
}

func (s *socket) TakeIn(p []byte) error {
	seq := s.next
	s.next += uint32(len(p))
	return s.control(func(fd int) error { return s.freezer.TakeIn(fd, seq, p) })
}

func (s *socket) Update(now tcpstate.PeerWindow) error {
	if now == s.window { // as mostly: the client has said nothing
		return nil
	}
	return s.control(func(fd int) error { return tcprepair.UpdateWindow(fd, s.window, now) })
}

// Probe makes the client say where it is, after our socket is closed.
func (s *socket) Probe() error { return tcprepair.Probe(s.frozen) }

func (s *socket) Release() error { return s.control(tcprepair.Release) }

func (s *socket) Abort() error { return s.control(tcprepair.Abort) }

// refused is an error with the reason that the protocol has for it.
type refused struct {
	reason wire.Reason
	err    error
}

func (r *refused) Error() string   { return r.reason.String() + ": " + r.err.Error() }
func (r *refused) Unwrap() []error { return []error{r.reason, r.err} }

// withReason adds the reason to an error of package tcprepair.
func withReason(err error) error {
	if err == nil {
		return nil
	}
	reason := wire.ReasonKernel
	switch {
	case errors.Is(err, tcprepair.ErrNotPlainTCP):
		reason = wire.ReasonMPTCP
	case errors.Is(err, tcprepair.ErrNotEstablished):
		reason = wire.ReasonNotEstablished
	case errors.Is(err, tcprepair.ErrUnread):
		reason = wire.ReasonUnreadInput
	case errors.Is(err, tcprepair.ErrUnacked):
		reason = wire.ReasonUnacked
	case errors.Is(err, tcprepair.ErrWindowShrunk), errors.Is(err, tcprepair.ErrPeerWindow):
		reason = wire.ReasonWindow
	}
	return &refused{reason, err}
}
