package guest

import (
	"net"
	"time"

	"spillway/internal/lease"
)

// The options that servers set where they find the methods of *net.TCPConn, by a type assertion to an interface. They belong to the guest's own
// socket: the host hears of them with the next handover, and its socket sends at once whatever the guest's does.

// SetNoDelay is (*net.TCPConn).SetNoDelay.
func (c *Conn) SetNoDelay(noDelay bool) error {
	return c.setOption(func() error { return c.tcp.SetNoDelay(noDelay) })
}

// SetKeepAlive is (*net.TCPConn).SetKeepAlive. While the connection is leased the host's socket keeps the setting that it came with.
func (c *Conn) SetKeepAlive(on bool) error {
	return c.setOption(func() error {
		if c.end.Phase() == lease.Local {
			return c.tcp.SetKeepAlive(on)
		}
		c.socket.options.KeepAlive.Enabled = on // when our socket is back: a frozen one must not send probes
		return nil
	})
}

// SetKeepAlivePeriod is (*net.TCPConn).SetKeepAlivePeriod.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	return c.setOption(func() error { return c.tcp.SetKeepAlivePeriod(d) })
}

// SetKeepAliveConfig is (*net.TCPConn).SetKeepAliveConfig; see SetKeepAlive.
func (c *Conn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	return c.setOption(func() error {
		if c.end.Phase() != lease.Local {
			c.socket.options.KeepAlive.Enabled = config.Enable
			config.Enable = false
		}
		return c.tcp.SetKeepAliveConfig(config)
	})
}

// SetLinger is (*net.TCPConn).SetLinger: with 0, Close resets the connection. With more it changes nothing, as Close never waits here and the kernel
// goes on to send for as long as it takes.
func (c *Conn) SetLinger(seconds int) error {
	return c.setOption(func() error {
		c.resets = seconds == 0
		if seconds > 0 {
			seconds = -1
		}
		return c.tcp.SetLinger(seconds)
	})
}

// setOption runs set, which changes an option, with c.mu held.
func (c *Conn) setOption(set func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.socket.stale = true
	return set()
}
