// Package tcpstate holds the snapshot of one established TCP connection: all that a second kernel needs to go on
// with it where the first one stopped.
//
// It is pure data. Package tcprepair fills it from a frozen socket and restores a socket from it; package wire gives it
// its byte layout (docs/wire.md). The snapshot never contains queued bytes: a connection changes hands only with an empty
// receive queue and with every sent byte acknowledged, so that its sequence numbers say everything.
package tcpstate

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Options that the two ends agreed on in the handshake; the bits of tcpi_options (include/uapi/linux/tcp.h).
const (
	OptTimestamps = 1 << 0 // TCPI_OPT_TIMESTAMPS
	OptSACK       = 1 << 1 // TCPI_OPT_SACK
	OptWScale     = 1 << 2 // TCPI_OPT_WSCALE
)

// Limits that the kernel itself puts on a socket's parameters.
const (
	MinMSS            = 88    // TCP_MIN_MSS, include/net/tcp.h
	MaxMSS            = 32767 // MAX_TCP_WINDOW, include/net/tcp.h, the limit of TCP_MAXSEG
	MaxWScale         = 14    // TCP_MAX_WSCALE, include/net/tcp.h; RFC 7323 section 2.3
	MaxCongestionName = 15    // TCP_CA_NAME_MAX less the NUL, include/net/tcp.h
	maxKeepAlive      = 32767 * time.Second
	maxKeepAliveCount = 127     // MAX_TCP_KEEPCNT, include/net/tcp.h
	MaxCwnd           = 1 << 16 // segments: 100 MB at an MSS of 1,460; nobody's path takes more at once
	maxRTT            = time.Hour
)

// Window is struct tcp_repair_window (include/uapi/linux/tcp.h): what the connection knows of both receive windows.
// SndWl1 and RcvWup are sequence numbers, the others bytes, after scaling.
type Window struct {
	SndWl1    uint32 // the segment that last updated SndWnd
	SndWnd    uint32 // the peer's receive window
	MaxWindow uint32 // the largest window the peer ever offered
	RcvWnd    uint32 // our receive window
	RcvWup    uint32 // rcv_nxt when the window was last advertised
}

// PeerWindow is what the peer's segments change of a Window, without a byte of data.
type PeerWindow struct {
	SndWl1, SndWnd, MaxWindow uint32
}

// Peer returns the peer's part of w.
func (w *Window) Peer() PeerWindow { return PeerWindow{w.SndWl1, w.SndWnd, w.MaxWindow} }

// SetPeer changes the peer's part of w.
func (w *Window) SetPeer(p PeerWindow) {
	w.SndWl1, w.SndWnd, w.MaxWindow = p.SndWl1, p.SndWnd, p.MaxWindow
}

// KeepAlive is the state of SO_KEEPALIVE and its parameters.
type KeepAlive struct {
	Enabled  bool
	Idle     time.Duration // TCP_KEEPIDLE, whole seconds
	Interval time.Duration // TCP_KEEPINTVL, whole seconds
	Count    int           // TCP_KEEPCNT, probes
}

// State is a connection between handover and restore.
type State struct {
	Local, Remote netip.AddrPort // both IPv4 or both IPv6, never IPv4-mapped, no zone

	SendSeq    uint32 // sequence number of the next byte that we send (write_seq)
	RecvSeq    uint32 // sequence number of the next byte that the peer sends (rcv_nxt)
	MSS        uint16 // bytes, as TCP_MAXSEG reports it
	Options    uint8  // Opt bits
	SendWScale uint8  // the peer's window shift
	RecvWScale uint8  // our window shift
	Timestamp  uint32 // our timestamp clock (TCP_TIMESTAMP); 0 without OptTimestamps
	Window     Window

	// What the path was found to be like; 0: not known.
	Cwnd     uint32        // our congestion window, segments
	Ssthresh uint32        // the window from which on it grows slowly (ssthresh, RFC 5681), segments
	RTT      time.Duration // smoothed round trip, whole µs

	NoDelay    bool   // TCP_NODELAY
	TOS        uint8  // IP_TOS or IPV6_TCLASS: DSCP and ECN bits
	MaxPacing  uint64 // SO_MAX_PACING_RATE, bytes a second; 0: no limit
	KeepAlive  KeepAlive
	Congestion string // TCP_CONGESTION, empty for the system's default
}

// ErrInvalid is matched by every error of Check.
var ErrInvalid = errors.New("invalid TCP state")

// Check tells whether s can be a live connection. It is the first thing done with a state that came from a guest: it bounds
// every field, so that a restore can fail but not do harm.
func (s *State) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	for _, a := range []struct {
		name string
		addr netip.AddrPort
	}{{"local", s.Local}, {"remote", s.Remote}} {
		ip := a.addr.Addr()
		switch {
		case !ip.IsValid() || a.addr.Port() == 0:
			return bad("%s address %v has no host or no port", a.name, a.addr)
		case ip.Is4In6() || ip.Zone() != "":
			return bad("%s address %v is IPv4-mapped or has a zone", a.name, a.addr)
		case ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback():
			return bad("%s address %v is not a unicast address of a network", a.name, a.addr)
		}
	}
	ka := s.KeepAlive
	switch {
	case s.Local.Addr().Is4() != s.Remote.Addr().Is4():
		return bad("local %v and remote %v are of different families", s.Local, s.Remote)
	case s.MSS < MinMSS || s.MSS > MaxMSS:
		return bad("MSS %d is outside %d…%d", s.MSS, MinMSS, MaxMSS)
	case s.Options&^(OptTimestamps|OptSACK|OptWScale) != 0:
		return bad("unknown options %#x", s.Options)
	case s.SendWScale > MaxWScale || s.RecvWScale > MaxWScale:
		return bad("window shifts %d/%d exceed %d", s.SendWScale, s.RecvWScale, MaxWScale)
	case s.Window.MaxWindow < s.Window.SndWnd:
		// tcp_repair_set_window, net/ipv4/tcp.c
		return bad("window %d exceeds its maximum %d", s.Window.SndWnd, s.Window.MaxWindow)
	case s.Cwnd > MaxCwnd || s.Ssthresh > MaxCwnd || s.RTT < 0 || s.RTT > maxRTT:
		return bad("window of %d segments, threshold of %d or round trip of %v out of range", s.Cwnd, s.Ssthresh, s.RTT)
	case len(s.Congestion) > MaxCongestionName:
		return bad("congestion control name of %d bytes", len(s.Congestion))
	case ka.Idle < 0 || ka.Idle > maxKeepAlive || ka.Interval < 0 || ka.Interval > maxKeepAlive ||
		ka.Count < 0 || ka.Count > maxKeepAliveCount:
		return bad("keepalive %v/%v/%d out of range", ka.Idle, ka.Interval, ka.Count)
	}
	for _, c := range []byte(s.Congestion) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return bad("congestion control name %q", s.Congestion)
		}
	}
	return nil
}
