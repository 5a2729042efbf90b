package tcprepair

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ConnState is the state of a TCP connection (include/net/tcp_states.h).
type ConnState uint8

// The states that callers tell apart.
const (
	Established ConnState = 1 // TCP_ESTABLISHED
	Closed      ConnState = 7 // TCP_CLOSE
	CloseWait   ConnState = 8 // TCP_CLOSE_WAIT: the peer has sent its FIN
)

func (s ConnState) String() string {
	names := [...]string{
		1: "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK",
		"LISTEN", "CLOSING", "NEW_SYN_RECV",
	}
	if int(s) < len(names) && s != 0 {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// TCPState returns the state of the connection on fd. It changes nothing.
func TCPState(fd int) (ConnState, error) {
	c := calls{fd: fd}
	state := ConnState(c.info().state)
	return state, inspectError(&c)
}

// UnackedBytes returns how many bytes were written to fd and not yet acknowledged by the peer (SIOCOUTQ), sent or not. A
// connection can be extracted when there are none. It changes nothing.
func UnackedBytes(fd int) (int, error) {
	c := calls{fd: fd}
	n := c.ioctl(unix.SIOCOUTQ, "ioctl SIOCOUTQ")
	return n, inspectError(&c)
}

// UnsentBytes returns how many bytes were written to fd and have not been on the wire yet (SIOCOUTQNSD). It changes nothing.
func UnsentBytes(fd int) (int, error) {
	c := calls{fd: fd}
	n := c.ioctl(siocOutqNSD, "ioctl SIOCOUTQNSD")
	return n, inspectError(&c)
}

// siocOutqNSD is SIOCOUTQNSD (include/uapi/linux/sockios.h).
const siocOutqNSD = 0x894B

// UnreadBytes returns how many bytes wait in order in the receive queue of fd (SIOCINQ). It changes nothing.
func UnreadBytes(fd int) (int, error) {
	c := calls{fd: fd}
	n := c.ioctl(unix.SIOCINQ, "ioctl SIOCINQ")
	return n, inspectError(&c)
}

// inspectError wraps a failure of a call that cannot have changed the socket, whatever state that is in.
func inspectError(c *calls) error {
	if err := c.err(); err != nil {
		return fmt.Errorf("tcprepair: inspect: %w", err)
	}
	return nil
}

// CongestionControls returns the congestion controls that the kernel has loaded. Empty State.Congestion before Restore when
// the state came from an untrusted guest and names another one: the kernel would try to load a module of that name.
func CongestionControls() ([]string, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return nil, fmt.Errorf("tcprepair: list congestion controls: %w", err)
	}
	return strings.Fields(string(text)), nil
}
