package tcprepair

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// TestRoundTrip hands a connection to the host and back, three times on the same fd, with bytes in both directions at each
// place.
func TestRoundTrip(t *testing.T) {
	for _, l := range lanes() {
		t.Run(l.name, func(t *testing.T) {
			r := newRig(t, l)
			r.net.CheckNoResets(t)
			const toClient, toServer = 3 << 20, 5000
			for range 3 {
				r.bothWays(t)
				st := r.extractGuest(t)
				must(t, st.Check())
				host := r.restoreOnHost(t, &st)
				control(t, r.guest, func(fd int) error { return Confirm(fd, &st) })
				wantMSS(t, host.fd, l.mss)
				transfer(t, host, r.client, toClient)
				transfer(t, r.client, host, toServer)

				back := r.handBack(t, host, st, toServer, func() {})
				if sent, received := back.SendSeq-st.SendSeq, back.RecvSeq-st.RecvSeq; sent != toClient || received != toServer {
					t.Errorf("sequence numbers moved by %d and %d, want %d and %d", sent, received, toClient, toServer)
				}
				// All else is the same connection's.
				st.SendSeq, st.RecvSeq = back.SendSeq, back.RecvSeq
				st.Timestamp, st.Window, st.Cwnd, st.Ssthresh, st.RTT = back.Timestamp, back.Window, back.Cwnd, back.Ssthresh, back.RTT
				if diff := cmp.Diff(st, back, cmp.Comparer(func(a, b tcpstate.State) bool { return a == b })); diff != "" {
					t.Errorf("the state changed at the host (-guest +host):\n%s", diff)
				}
				control(t, r.guest, func(fd int) error { wantMSS(t, fd, l.mss); return nil })
				if diff := cmp.Diff(r.guest.RemoteAddr().String(), net.TCPAddrFromAddrPort(r.remote).String()); diff != "" {
					t.Error(diff)
				}
			}
			r.bothWays(t)
			must(t, r.client.CloseWrite())
			if n, err := r.guest.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the client's FIN: read %d, %v, want EOF", n, err)
			}
		})
	}
}

// wantMSS checks the segment size in use.
func wantMSS(t *testing.T, fd, mss int) {
	t.Helper()
	if got := sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG); got != mss {
		t.Errorf("TCP_MAXSEG is %d, want %d", got, mss)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	must(t, err)
	if int(info.Snd_mss) != mss {
		t.Errorf("tcpi_snd_mss is %d, want %d", info.Snd_mss, mss)
	}
}

// TestWithoutOptions: a connection without timestamps, SACK and window scaling.
func TestWithoutOptions(t *testing.T) {
	for _, option := range []string{"tcp_timestamps", "tcp_sack", "tcp_window_scaling"} {
		t.Run(option, func(t *testing.T) {
			r := newRig(t, lanes()[0])
			r.net.CheckNoResets(t)
			r.net.Guest.Sysctl(t, "net/ipv4/"+option, "0")
			r.client = r.net.Client.Dial(t, "tcp", r.local.String())
			r.guest = accept(t, r.listener)
			r.remote = unmapped(t, r.guest.RemoteAddr())
			r.bothWays(t)
			st := r.extractGuest(t)
			all := uint8(tcpstate.OptTimestamps | tcpstate.OptSACK | tcpstate.OptWScale)
			missing := map[string]uint8{
				"tcp_timestamps": tcpstate.OptTimestamps, "tcp_sack": tcpstate.OptSACK, "tcp_window_scaling": tcpstate.OptWScale,
			}[option]
			if st.Options != all&^missing {
				t.Errorf("options %#x, want %#x", st.Options, all&^missing)
			}
			host := r.restoreOnHost(t, &st)
			transfer(t, host, r.client, 1<<20)
			transfer(t, r.client, host, 1<<20)
			back := r.handBack(t, host, st, 1<<20, func() {})
			// Restore makes window scaling with shifts of 0 from none, which is the same on the wire.
			if back.Options|tcpstate.OptWScale != st.Options|tcpstate.OptWScale {
				t.Errorf("options %#x at the host, want %#x", back.Options, st.Options)
			}
			if back.SendWScale != st.SendWScale || back.RecvWScale != st.RecvWScale {
				t.Errorf("window shifts %d/%d at the host, want %d/%d", back.SendWScale, back.RecvWScale, st.SendWScale, st.RecvWScale)
			}
			r.bothWays(t)
		})
	}
}

// TestSocketOptions: what the guest set on its socket holds at the host, and on the same fd afterwards.
func TestSocketOptions(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	type options struct {
		Congestion            string
		NoDelay, KeepAlive    int
		Idle, Interval, Count int
		TOS                   int
		MaxPacing             uint64
	}
	read := func(fd int) (o options) {
		t.Helper()
		var err error
		o.Congestion, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		must(t, err)
		o.NoDelay = sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		o.KeepAlive = sockopt(t, fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if o.KeepAlive != 0 {
			o.Idle = sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			o.Interval = sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)
			o.Count = sockopt(t, fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
		}
		o.TOS = sockopt(t, fd, unix.IPPROTO_IP, unix.IP_TOS)
		c := calls{fd: fd}
		o.MaxPacing = c.maxPacing()
		must(t, c.err())
		return o
	}
	for i, want := range []options{
		{"cubic", 1, 1, 33, 7, 5, 0xb8, 1 << 33},
		{"reno", 0, 0, 0, 0, 0, 0, 0},
		{"bbr", 0, 1, 7200, 75, 9, 0x20, 125_000_000},
		{"cubic", 1, 0, 0, 0, 0, 0, 0},
	} {
		t.Run(strconv.Itoa(i)+" "+want.Congestion, func(t *testing.T) {
			control(t, r.guest, func(fd int) error {
				return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, want.Congestion)
			})
			must(t, r.guest.SetNoDelay(want.NoDelay != 0))
			must(t, r.guest.SetKeepAliveConfig(net.KeepAliveConfig{
				Enable: want.KeepAlive != 0, Count: want.Count,
				Idle: time.Duration(want.Idle) * time.Second, Interval: time.Duration(want.Interval) * time.Second,
			}))
			control(t, r.guest, func(fd int) error {
				c := calls{fd: fd}
				c.set(unix.IPPROTO_IP, unix.IP_TOS, uint32(want.TOS))
				c.setMaxPacing(want.MaxPacing)
				return c.err()
			})
			st := r.extractGuest(t)
			control(t, r.guest, func(fd int) error {
				if sockopt(t, fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0 {
					t.Error("the frozen socket still sends keepalive probes")
				}
				return nil
			})
			host := r.restoreOnHost(t, &st)
			if diff := cmp.Diff(want, read(host.fd)); diff != "" {
				t.Errorf("at the host (-want +got):\n%s", diff)
			}
			transfer(t, host, r.client, 100_000)
			r.handBack(t, host, st, 0, func() {})
			control(t, r.guest, func(fd int) error {
				if diff := cmp.Diff(want, read(fd)); diff != "" {
					t.Errorf("back at the guest (-want +got):\n%s", diff)
				}
				return nil
			})
			r.bothWays(t)
		})
	}
}

// TestUnknownCongestionControl: the connection goes on with the system's.
func TestUnknownCongestionControl(t *testing.T) {
	r := newRig(t, lanes()[0])
	st := r.extractGuest(t)
	st.Congestion = "nosuch"
	host := r.restoreOnHost(t, &st)
	transfer(t, host, r.client, 1000)
	names, err := CongestionControls()
	must(t, err)
	got, err := unix.GetsockoptString(host.fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	must(t, err)
	for _, n := range names {
		if n == got {
			return
		}
	}
	t.Errorf("congestion control %q is not one of %v", got, names)
}

// TestPortStaysUsable: leaving repair mode must not keep a listener from being started anew on the port.
func TestPortStaysUsable(t *testing.T) {
	r := newRig(t, lanes()[2])
	st := r.extractGuest(t)
	host := r.restoreOnHost(t, &st)
	anyAddress := fmt.Sprintf(":%d", r.local.Port())
	must(t, r.net.Host.Listen(t, "tcp", anyAddress).Close())
	r.handBack(t, host, st, 0, func() {})
	must(t, r.listener.Close())
	must(t, r.net.Guest.Listen(t, "tcp", anyAddress).Close())
	st = r.extractGuest(t)
	control(t, r.guest, func(fd int) error { return Thaw(fd, st.KeepAlive) })
	must(t, r.net.Guest.Listen(t, "tcp", anyAddress).Close())
	r.bothWays(t)
}

// TestNetpoller: the net.TCPConn whose fd was parked goes on to wait for bytes and for room as any other.
func TestNetpoller(t *testing.T) {
	r := newRig(t, lanes()[0])
	r.net.CheckNoResets(t)
	for range 50 {
		st := r.extractGuest(t)
		host := r.restoreOnHost(t, &st)
		r.handBack(t, host, st, 0, func() {})
		reading := make(chan struct{})
		go func() {
			<-reading
			time.Sleep(time.Millisecond) // most times the reader is blocked by then; it must work either way
			r.client.Write([]byte("x"))
		}()
		close(reading)
		must(t, r.guest.SetReadDeadline(time.Now().Add(patience)))
		if _, err := io.ReadFull(r.guest, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	transfer(t, r.guest, r.client, 8<<20) // more than fits the socket: the writer must be woken
}

func TestNextTimestamp(t *testing.T) {
	for _, tt := range []struct {
		clock uint32
		usec  bool
		want  uint32
	}{
		{0, false, 2}, {1, false, 2}, {6, false, 8}, {7, false, 8}, {0xffff_ffff, false, 0}, {0xffff_fffe, false, 0},
		{7, true, 9}, {6, true, 9}, {0xffff_ffff, true, 1},
	} {
		got := nextTimestamp(tt.clock, tt.usec)
		if got != tt.want {
			t.Errorf("nextTimestamp(%#x, %v) = %#x, want %#x", tt.clock, tt.usec, got, tt.want)
		}
		if int32(got-tt.clock) <= 0 {
			t.Errorf("the clock %#x runs backwards to %#x", tt.clock, got)
		}
	}
}
