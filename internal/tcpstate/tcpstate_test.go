package tcpstate

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// valid returns a state as it comes from a usual connection.
func valid() State {
	return State{
		Local:      netip.MustParseAddrPort("10.77.0.2:80"),
		Remote:     netip.MustParseAddrPort("192.0.2.7:51034"),
		SendSeq:    0xffff_fff0,
		RecvSeq:    17,
		MSS:        1460,
		Options:    OptTimestamps | OptSACK | OptWScale,
		SendWScale: 7,
		RecvWScale: 10,
		Timestamp:  4711,
		Window:     Window{SndWl1: 16, SndWnd: 64256, MaxWindow: 64256, RcvWnd: 65536, RcvWup: 17},
		NoDelay:    true,
		KeepAlive:  KeepAlive{Enabled: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 9},
		Congestion: "cubic",
	}
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestCheckAccepts(t *testing.T) {
	for name, change := range map[string]func(*State){
		"as it is":    func(*State) {},
		"IPv6":        func(s *State) { s.Local, s.Remote = addr("[2001:db8::1]:443"), addr("[2001:db8::2]:1") },
		"port 65535":  func(s *State) { s.Remote = addr("192.0.2.7:65535") },
		"no options":  func(s *State) { s.Options, s.SendWScale, s.RecvWScale, s.Timestamp = 0, 0, 0, 0 },
		"all zero":    func(s *State) { s.SendSeq, s.RecvSeq, s.Window = 0, 0, Window{} },
		"all ones":    func(s *State) { m := ^uint32(0); s.SendSeq, s.RecvSeq, s.Window = m, m, Window{m, m, m, m, m} },
		"MinMSS":      func(s *State) { s.MSS = MinMSS },
		"MaxMSS":      func(s *State) { s.MSS = MaxMSS },
		"MaxWScale":   func(s *State) { s.SendWScale, s.RecvWScale = MaxWScale, MaxWScale },
		"window max":  func(s *State) { s.Window.SndWnd, s.Window.MaxWindow = 9, 9 },
		"keepalive 0": func(s *State) { s.KeepAlive = KeepAlive{} },
		"keepalive max": func(s *State) {
			s.KeepAlive = KeepAlive{Idle: maxKeepAlive, Interval: maxKeepAlive, Count: maxKeepAliveCount}
		},
		"system's congestion control": func(s *State) { s.Congestion = "" },
		"longest congestion control":  func(s *State) { s.Congestion = strings.Repeat("x", MaxCongestionName) },
		"all kinds of characters":     func(s *State) { s.Congestion = "a_z-09" },
	} {
		t.Run(name, func(t *testing.T) {
			s := valid()
			change(&s)
			if err := s.Check(); err != nil {
				t.Errorf("%+v: %v", s, err)
			}
		})
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*State)
		says   string
	}{
		"no local address":     {func(s *State) { s.Local = netip.AddrPort{} }, "local address"},
		"no remote address":    {func(s *State) { s.Remote = netip.AddrPort{} }, "remote address"},
		"no local port":        {func(s *State) { s.Local = addr("10.77.0.2:0") }, "no host or no port"},
		"no remote port":       {func(s *State) { s.Remote = addr("192.0.2.7:0") }, "no host or no port"},
		"local is mapped":      {func(s *State) { s.Local = addr("[::ffff:10.77.0.2]:80") }, "IPv4-mapped"},
		"remote is mapped":     {func(s *State) { s.Remote = addr("[::ffff:192.0.2.7]:80") }, "IPv4-mapped"},
		"zone":                 {func(s *State) { s.Remote = addr("[fe80::1%eth0]:80") }, "zone"},
		"unspecified IPv4":     {func(s *State) { s.Local = addr("0.0.0.0:80") }, "not a unicast"},
		"unspecified IPv6":     {func(s *State) { s.Local = addr("[::]:80") }, "not a unicast"},
		"multicast IPv4":       {func(s *State) { s.Remote = addr("224.0.0.1:80") }, "not a unicast"},
		"multicast IPv6":       {func(s *State) { s.Remote = addr("[ff02::1]:80") }, "not a unicast"},
		"loopback IPv4":        {func(s *State) { s.Local = addr("127.8.0.1:80") }, "not a unicast"},
		"loopback IPv6":        {func(s *State) { s.Remote = addr("[::1]:80") }, "not a unicast"},
		"two families":         {func(s *State) { s.Remote = addr("[2001:db8::2]:1") }, "different families"},
		"MSS 0":                {func(s *State) { s.MSS = 0 }, "MSS 0"},
		"below MinMSS":         {func(s *State) { s.MSS = MinMSS - 1 }, "MSS 87"},
		"above MaxMSS":         {func(s *State) { s.MSS = MaxMSS + 1 }, "MSS 32768"},
		"unknown option":       {func(s *State) { s.Options |= 1 << 3 }, "unknown options"},
		"send shift":           {func(s *State) { s.SendWScale = MaxWScale + 1 }, "window shifts"},
		"receive shift":        {func(s *State) { s.RecvWScale = MaxWScale + 1 }, "window shifts"},
		"window above maximum": {func(s *State) { s.Window.SndWnd = s.Window.MaxWindow + 1 }, "exceeds its maximum"},
		"long congestion name": {func(s *State) { s.Congestion = strings.Repeat("x", MaxCongestionName+1) }, "16 bytes"},
		"congestion slash":     {func(s *State) { s.Congestion = "../x" }, "congestion control name"},
		"congestion NUL":       {func(s *State) { s.Congestion = "bbr\x00" }, "congestion control name"},
		"congestion capital":   {func(s *State) { s.Congestion = "BBR" }, "congestion control name"},
		"congestion space":     {func(s *State) { s.Congestion = "b r" }, "congestion control name"},
		"negative idle":        {func(s *State) { s.KeepAlive.Idle = -1 }, "keepalive"},
		"long idle":            {func(s *State) { s.KeepAlive.Idle = maxKeepAlive + 1 }, "keepalive"},
		"negative interval":    {func(s *State) { s.KeepAlive.Interval = -1 }, "keepalive"},
		"long interval":        {func(s *State) { s.KeepAlive.Interval = maxKeepAlive + 1 }, "keepalive"},
		"negative count":       {func(s *State) { s.KeepAlive.Count = -1 }, "keepalive"},
		"large count":          {func(s *State) { s.KeepAlive.Count = maxKeepAliveCount + 1 }, "keepalive"},
	} {
		t.Run(name, func(t *testing.T) {
			s := valid()
			tt.change(&s)
			err := s.Check()
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%+v: error is %v, want ErrInvalid", s, err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %q, want %q in it", err, tt.says)
			}
		})
	}
}

// TestCheckAllocates nothing for a state that is right: it is on the way of every handover.
func TestCheckAllocates(t *testing.T) {
	s := valid()
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
