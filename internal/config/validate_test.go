package config

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// findings lists the keys and the texts of what Validate found.
func findings(t *testing.T, err error) (keys []string, text string) {
	t.Helper()
	if err == nil {
		return nil, ""
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is no list of errors", err)
	}
	for _, e := range joined.Unwrap() {
		var mistake *Error
		if !errors.As(e, &mistake) {
			t.Fatalf("%v is no Error", e)
		}
		keys = append(keys, mistake.Key)
	}
	return keys, err.Error()
}

func checkFindings(t *testing.T, name string, err error, key, word string) {
	t.Helper()
	keys, text := findings(t, err)
	if !slices.Equal(keys, []string{key}) || !strings.Contains(text, word) {
		t.Errorf("%s: found %v, want %s alone, with %q", name, err, key, word)
	}
}

// TestReadAheadValidate: what could never be is told.
func TestReadAheadValidate(t *testing.T) {
	for _, test := range []struct {
		readAhead, maxFills int
		word                string // "": it is possible
	}{{0, 1, ""}, {4, 0, ""}, {32, 2, ""}, {33, 0, "to 32"}, {-1, 0, "0 for none"}, {1, 1, "raise max_fills"}} {
		var p problems
		ShareCache{Dir: "/var/cache/vod", MaxSize: 1 << 20, ReadAhead: test.readAhead, MaxFills: test.maxFills}.validate(&p, "cache")
		if err := p.join(); test.word != "" {
			checkFindings(t, "read_ahead", err, "cache.read_ahead", test.word)
		} else if err != nil {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestHostValidate(t *testing.T) {
	addr := netip.MustParseAddr
	for _, test := range []struct {
		name   string
		change func(h *Host)
		key    string
		word   string
	}{
		{"relative admin", func(h *Host) { h.Admin = "admin.sock" }, "admin", `or ""`},
		{"metrics without port", func(h *Host) { h.Metrics = "localhost" }, "metrics", "127.0.0.1:9053"},
		{"no table", func(h *Host) { h.Redirect.Table = "" }, "redirect.table", "letters"},
		{"odd table", func(h *Host) { h.Redirect.Table = "a b" }, "redirect.table", "letters"},
		{"no mark", func(h *Host) { h.Redirect.Mark = 0 }, "redirect.mark", "0"},
		{"no route table", func(h *Host) { h.Redirect.RouteTable = 0 }, "redirect.route_table", "2147483647"},
		{"negative route table", func(h *Host) { h.Redirect.RouteTable = math.MaxUint32 }, "redirect.route_table", "2147483647"},
		{"main table", func(h *Host) { h.Redirect.RouteTable = 254 }, "redirect.route_table", "kernel"},
		{"first priority", func(h *Host) { h.Redirect.Priority = 0 }, "redirect.priority", "main table"},
		{"late priority", func(h *Host) { h.Redirect.Priority = 32766 }, "redirect.priority", "main table"},
		{"no drain", func(h *Host) { h.Limits.DrainTimeout = 0 }, "limits.drain_timeout", "above 0"},
		{"negative stall", func(h *Host) { h.Limits.StallTimeout = -1 }, "limits.stall_timeout", "above 0"},
		{"short session", func(h *Host) { h.Limits.SessionTimeout = Duration(2 * time.Second) }, "limits.session_timeout", "3s"},
		{"odd session", func(h *Host) { h.Limits.SessionTimeout = Duration(6500 * time.Millisecond) }, "limits.session_timeout", "whole"},

		{"share name", func(h *Host) { h.Shares[1].Name = "Media" }, "share[1].name", "a to z"},
		{"share twice", func(h *Host) { h.Shares[1].Name = "media" }, "share[1].name", "share[0]"},
		{"relative share", func(h *Host) { h.Shares[1].Path = "srv" }, "share[1].path", "absolute"},

		{"no VM", func(h *Host) { h.VMs = nil }, "vm", "[[vm]]"},
		{"no VM name", func(h *Host) { h.VMs[0].Name = "" }, "vm[0].name", "a to z"},
		{"long VM name", func(h *Host) { h.VMs[0].Name = strings.Repeat("v", 65) }, "vm[0].name", "64"},
		{"VM twice", func(h *Host) { h.VMs[1].Name = "vm0" }, "vm[1].name", "vm[0]"},
		{"no channel", func(h *Host) { h.VMs[0].Channels = nil }, "vm[0].channels", "unix:/run/spillway/vm0.sock"},
		{"guest's channel", func(h *Host) { h.VMs[0].Channels[0] = "virtio:x" }, "vm[0].channels[0]", "unix:/PATH or vsock:CID:PORT"},
		{"bare path", func(h *Host) { h.VMs[0].Channels[0] = "/run/x" }, "vm[0].channels[0]", "unix:/PATH"},
		{"relative channel", func(h *Host) { h.VMs[0].Channels[0] = "unix:x" }, "vm[0].channels[0]", "unix:/PATH"},
		{"channel twice", func(h *Host) { h.VMs[1].Channels = []string{"vsock:4:1", "unix:/run/0"} }, "vm[1].channels[1]", "vm[0].channels[0]"},
		{"channel written in another way", func(h *Host) { h.VMs[1].Channels[0] = "unix:/run/./x/..//0" }, "vm[1].channels[0]", "unix:/run/0 is in vm[0].channels[0]"},
		{"vsock port twice", func(h *Host) { h.VMs[0].Channels[0] = "vsock:3:9000" }, "vm[1].channels[0]", "vsock port 9000 is in vm[0].channels[0]"},
		{"admin socket as channel", func(h *Host) { h.Admin = "/run//0" }, "vm[0].channels[0]", "unix:/run/0 is the socket of admin, too"},
		{"no address", func(h *Host) { h.VMs[0].Addresses = nil }, "vm[0].addresses", "clients"},
		{"zero address", func(h *Host) { h.VMs[0].Addresses[0] = netip.Addr{} }, "vm[0].addresses[0]", "missing"},
		{"unspecified", func(h *Host) { h.VMs[0].Addresses[0] = addr("::") }, "vm[0].addresses[0]", "unspecified"},
		{"loopback", func(h *Host) { h.VMs[0].Addresses[0] = addr("127.1.2.3") }, "vm[0].addresses[0]", "loopback"},
		{"multicast", func(h *Host) { h.VMs[0].Addresses[0] = addr("ff02::1") }, "vm[0].addresses[0]", "multicast"},
		{"broadcast", func(h *Host) { h.VMs[0].Addresses[0] = addr("255.255.255.255") }, "vm[0].addresses[0]", "broadcast"},
		{"mapped", func(h *Host) { h.VMs[0].Addresses[0] = addr("::ffff:10.0.0.9") }, "vm[0].addresses[0]", "write 10.0.0.9"},
		{"link-local", func(h *Host) { h.VMs[0].Addresses[0] = addr("fe80::1") }, "vm[0].addresses[0]", "link-local"},
		{"zone", func(h *Host) { h.VMs[0].Addresses[0] = addr("2001:db8::1%eth0") }, "vm[0].addresses[0]", "link-local"},
		{"address of another VM", func(h *Host) { h.VMs[1].Addresses[0] = addr("10.0.0.5") }, "vm[1].addresses[0]", "vm[0].addresses[0]"},
		{"no shares", func(h *Host) { h.VMs[0].Shares = nil }, "vm[0].shares", "[[share]]"},
		{"unknown share", func(h *Host) { h.VMs[0].Shares = []string{"media", "musik"} }, "vm[0].shares[1]", `"musik"`},
		{"no leases", func(h *Host) { h.VMs[0].MaxLeases = 0 }, "vm[0].max_leases", "at least 1"},
		{"the redirect's mark", func(h *Host) { h.VMs[0].Mark = h.Redirect.Mark }, "vm[0].mark", "use another number"},
		{"no files", func(h *Host) { h.VMs[0].MaxOpenFiles = -1 }, "vm[0].max_open_files", "at least 1"},
	} {
		h := DefaultHost()
		h.Shares = []HostShare{{Name: "media", Path: "/srv/media"}, {Name: "films-2", Path: "/srv/films"}}
		h.VMs = []VM{
			{Name: "vm0", Channels: []string{"unix:/run/0"}, Addresses: []netip.Addr{addr("10.0.0.5"), addr("2001:db8::5")}, Shares: []string{"media"}, MaxLeases: 1, MaxOpenFiles: 1},
			{Name: "vm1", Channels: []string{"vsock:4:9000"}, Addresses: []netip.Addr{addr("10.0.0.6")}, Shares: []string{"media"}, MaxLeases: 1, MaxOpenFiles: 1},
		}
		if err := h.Validate(); err != nil {
			t.Fatal(err)
		}
		test.change(&h)
		checkFindings(t, test.name, h.Validate(), test.key, test.word)
	}
}

func TestServeValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(s *Serve)
		key    string
		word   string
	}{
		{"nowhere to listen", func(s *Serve) { s.Listen = nil }, "listen", ":80"},
		{"bare port", func(s *Serve) { s.Listen[0] = "80" }, "listen[0]", ":80"},
		{"no port", func(s *Serve) { s.Listen[0] = "localhost:" }, "listen[0]", ":80"},
		{"twice", func(s *Serve) { s.Listen = []string{":80", ":81", ":80"} }, "listen[2]", "listen[0]"},
		{"admin without port", func(s *Serve) { s.Admin = "localhost" }, "admin", "host:port"},
		{"busy poll for ever", func(s *Serve) { s.Offload.BusyPoll = Duration(time.Second) }, "offload.busy_poll", "0s (off) to 10ms"},
		{"mode", func(s *Serve) { s.Offload.Mode = "" }, "offload.mode", "lease, offload or off"},
		{"no channels", func(s *Serve) { s.Offload.Channels = nil }, "offload.channels", "virtio:NAME"},
		{"no channel", func(s *Serve) { s.Offload.Channels[0] = "" }, "offload.channels[0]", "virtio:NAME or unix:/PATH or vsock:CID:PORT"},
		{"kind only", func(s *Serve) { s.Offload.Channels[0] = "virtio:" }, "offload.channels[0]", "virtio:NAME"},
		{"channel twice", func(s *Serve) { s.Offload.Channels = []string{"unix:/a", "unix:/b", "unix:/a"} }, "offload.channels[2]", "twice"},
		{"negative threshold", func(s *Serve) { s.Offload.Threshold = -2 }, "offload.threshold", "every size"},
		{"no header time", func(s *Serve) { s.HTTP.ReadHeaderTimeout = 0 }, "http.read_header_timeout", "above 0"},
		{"no idle time", func(s *Serve) { s.HTTP.IdleTimeout = 0 }, "http.idle_timeout", "above 0"},
		{"manifest", func(s *Serve) { s.HTTP.ManifestMaxAge = -1 }, "http.manifest_max_age", "0s"},
		{"segment", func(s *Serve) { s.HTTP.SegmentMaxAge = -1 }, "http.segment_max_age", "0s"},
		{"no share", func(s *Serve) { s.Shares = nil }, "share", "[[share]]"},
		{"share name", func(s *Serve) { s.Shares[0].Name = "a/b" }, "share[0].name", "a to z"},
		{"share twice", func(s *Serve) { s.Shares[1].Name = "media" }, "share[1].name", "share[0]"},
		{"prefix", func(s *Serve) { s.Shares[0].Prefix = "media/" }, "share[0].prefix", `"/media/"`},
		{"prefix's end", func(s *Serve) { s.Shares[0].Prefix = "/media" }, "share[0].prefix", `"/media/"`},
		{"unclean prefix", func(s *Serve) { s.Shares[0].Prefix = "/a//" }, "share[0].prefix", `"/media/"`},
		{"prefix twice", func(s *Serve) { s.Shares[1].Prefix = "/media/" }, "share[1].prefix", "share[0].prefix"},
		{"relative mount", func(s *Serve) { s.Shares[0].Mount = "mnt" }, "share[0].mount", `or ""`},
		{"no way to read", func(s *Serve) { s.Offload.Mode = ModeOff }, "share[1].mount", "offload.mode is off"},
	} {
		s := DefaultServe()
		s.Shares = []ServeShare{{"media", "/media/", "/mnt/media"}, {"root", "/", ""}}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		test.change(&s)
		checkFindings(t, test.name, s.Validate(), test.key, test.word)
	}
}

// Bare metal: no host, no channel.
func TestServeValidateOff(t *testing.T) {
	s := DefaultServe()
	s.Offload.Mode, s.Offload.Channels = ModeOff, nil
	s.Shares = []ServeShare{{"media", "/", "/srv/media"}}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateTellsAll(t *testing.T) {
	keys, _ := findings(t, Host{}.Validate())
	for _, key := range []string{"redirect.table", "redirect.mark", "limits.session_timeout", "vm"} {
		if !slices.Contains(keys, key) {
			t.Errorf("the zero configuration: found %v, not %s", keys, key)
		}
	}
}
