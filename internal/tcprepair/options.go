package tcprepair

import (
	"math"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// ReadOptions fills NoDelay, TOS, MaxPacing, KeepAlive and Congestion of st, whose addresses are known, from the live connection on fd, and refuses with ErrNotPlainTCP
// what can never be extracted. It need not be part of the time in which a connection is frozen: what it read holds until the
// application changes an option. A string in st.Congestion is kept when it is right, so that a reused State costs no
// allocation. It changes nothing. The caller owns fd.
func ReadOptions(fd int, st *tcpstate.State) error {
	c := calls{fd: fd}
	protocol := c.get(unix.SOL_SOCKET, unix.SO_PROTOCOL)
	var n name
	if c.errno == 0 && protocol == unix.IPPROTO_TCP && len(c.getName(unix.TCP_ULP, &n)) == 0 {
		st.NoDelay = c.getTCP(unix.TCP_NODELAY) != 0
		st.TOS = uint8(c.get(tosOption(st.Local.Addr().Is6())))
		st.MaxPacing = c.maxPacing()
		if cc := c.getName(unix.TCP_CONGESTION, &n); string(cc) != st.Congestion {
			st.Congestion = string(cc)
		}
		st.KeepAlive = c.keepAlive()
	} else if c.errno == 0 {
		return &Error{Op: "read options", Left: LeftLive, Err: ErrNotPlainTCP}
	}
	if err := c.err(); err != nil {
		return &Error{Op: "read options", Left: LeftLive, Err: err}
	}
	return nil
}

// tosOption is the option for the type of service of a family. An IPv4 connection on an AF_INET6 socket has IPv4's.
func tosOption(ipv6 bool) (level, opt int) {
	if ipv6 {
		return unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	return unix.IPPROTO_IP, unix.IP_TOS
}

// noPacingLimit is what SO_MAX_PACING_RATE answers when nobody has set it (sock_init_data, net/core/sock.c).
const noPacingLimit = math.MaxUint64

// maxPacing reads SO_MAX_PACING_RATE.
func (c *calls) maxPacing() uint64 {
	if v := c.get64(unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE); v != noPacingLimit {
		return v
	}
	return 0
}

func (c *calls) setMaxPacing(v uint64) {
	if v == 0 {
		v = noPacingLimit
	}
	c.set64(unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, v)
}

// keepAlive reads the parameters only when the keepalive is on.
func (c *calls) keepAlive() (ka tcpstate.KeepAlive) {
	if ka.Enabled = c.get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0; ka.Enabled {
		ka.Idle = time.Duration(c.getTCP(unix.TCP_KEEPIDLE)) * time.Second
		ka.Interval = time.Duration(c.getTCP(unix.TCP_KEEPINTVL)) * time.Second
		ka.Count = int(c.getTCP(unix.TCP_KEEPCNT))
	}
	return ka
}

// usualOptions is what most connections that a Go server accepted from an Ethernet link have. NewTransparent sets it, and
// Restore only what differs from it: each call would cost about 1 µs of the handover.
func usualOptions(family int) tcpstate.State {
	usual := tcpstate.State{
		NoDelay:   true,
		KeepAlive: tcpstate.KeepAlive{Enabled: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 9},
		MSS:       1460, // 1500 less the headers of IPv4 and TCP
	}
	if family == unix.AF_INET6 {
		usual.MSS = 1440
	}
	return usual
}

// setOptions gives the closed socket the options of want, of which it has those of have. TCP_MAXSEG comes before connect:
// that computes the segment size from this clamp, and nothing does it again (tcp_connect_init, net/ipv4/tcp_output.c).
// Without it the connection would go on with segments of 524 bytes. The keepalive's timer, too, is started by connect.
func (c *calls) setOptions(have, want *tcpstate.State) {
	if want.MSS != have.MSS {
		c.setTCP(unix.TCP_MAXSEG, uint32(want.MSS))
	}
	if want.NoDelay != have.NoDelay {
		c.setTCP(unix.TCP_NODELAY, truth(want.NoDelay))
	}
	if want.TOS != have.TOS {
		level, opt := tosOption(want.Local.Addr().Is6())
		c.set(level, opt, uint32(want.TOS))
	}
	if want.MaxPacing != have.MaxPacing {
		c.setMaxPacing(want.MaxPacing)
	}
	if want.KeepAlive.Enabled != have.KeepAlive.Enabled {
		c.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, truth(want.KeepAlive.Enabled))
	}
	if !want.KeepAlive.Enabled {
		return // parameters of zero, or none of interest
	}
	if d := want.KeepAlive.Idle; d != have.KeepAlive.Idle && d > 0 {
		c.setTCP(unix.TCP_KEEPIDLE, wholeSeconds(d))
	}
	if d := want.KeepAlive.Interval; d != have.KeepAlive.Interval && d > 0 {
		c.setTCP(unix.TCP_KEEPINTVL, wholeSeconds(d))
	}
	if n := want.KeepAlive.Count; n != have.KeepAlive.Count && n > 0 {
		c.setTCP(unix.TCP_KEEPCNT, uint32(n))
	}
}

// setCongestion leaves the system's congestion control if the kernel has none of that name.
func (c *calls) setCongestion(name string) {
	if name == "" || c.errno != 0 {
		return
	}
	if c.setName(unix.TCP_CONGESTION, name); c.errno == unix.ENOENT {
		c.forget()
	}
}

// wholeSeconds rounds up: the kernel refuses 0.
func wholeSeconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

func truth(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
