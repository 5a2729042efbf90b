package config

import (
	"fmt"
	"net"
	"os"
	"path"
	"reflect"
	"strings"
	"time"
)

// Serve is the configuration of `spillway serve`, the media server, in a VM or on bare metal.
type Serve struct {
	Listen   []string     `toml:"listen"` // TCP addresses, host:port or :port
	Admin    string       `toml:"admin"`  // TCP address for counters, empty for none
	LogLevel LogLevel     `toml:"log_level"`
	Offload  Offload      `toml:"offload"`
	HTTP     HTTP         `toml:"http"`
	Shares   []ServeShare `toml:"share"`
}

// Offload says what the host sends for this server.
type Offload struct {
	Mode      Mode      `toml:"mode"`
	Channels  []string  `toml:"channels"` // the guest's ends of the channels to the host daemon
	Threshold Threshold `toml:"threshold"`
	BusyPoll  Duration  `toml:"busy_poll"` // as Host.BusyPoll
}

// HTTP tunes the server. A zero max-age sends no Cache-Control.
type HTTP struct {
	ReadHeaderTimeout Duration `toml:"read_header_timeout"`
	IdleTimeout       Duration `toml:"idle_timeout"`
	ManifestMaxAge    Duration `toml:"manifest_max_age"`
	SegmentMaxAge     Duration `toml:"segment_max_age"`
}

// ServeShare is a share of the host, and where its files are found and served.
type ServeShare struct {
	Name   string `toml:"name"`
	Prefix string `toml:"prefix"` // the URL path of its root
	Mount  string `toml:"mount"`  // the directory it is mounted at; empty: files are read through the channel
}

// DefaultBusyPoll is a few times what a server takes to answer a small request: an answer that takes longer is not worth the wait.
const DefaultBusyPoll = Duration(200 * time.Microsecond)

// maxBusyPoll keeps a mistake from burning a CPU.
const maxBusyPoll = 10 * time.Millisecond

// DefaultServe returns the configuration that an empty file means. It has no share yet, so it is not valid.
func DefaultServe() Serve {
	return Serve{
		Listen: []string{":80"},
		Offload: Offload{
			Mode:      ModeLease,
			Channels:  []string{"virtio:spillway.0"},
			Threshold: 64 << 10,
			BusyPoll:  DefaultBusyPoll,
		},
		HTTP: HTTP{
			ReadHeaderTimeout: Duration(10 * time.Second),
			IdleTimeout:       Duration(2 * time.Minute),
			ManifestMaxAge:    0,
			SegmentMaxAge:     Duration(time.Hour),
		},
	}
}

// LoadServe reads a file over the defaults. The result is complete but not validated.
func LoadServe(file string) (Serve, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Serve{}, err // an *fs.PathError, which names the file
	}
	return parseServe(file, string(text))
}

func parseServe(file, text string) (Serve, error) {
	s := DefaultServe()
	if err := decode(file, text, &s, nil, reflect.TypeFor[Serve]()); err != nil {
		return Serve{}, err
	}
	return s, nil
}

// Validate reports every mistake, each as an *Error that says what to do.
func (s Serve) Validate() error {
	var p problems
	if len(s.Listen) == 0 {
		p.add("listen", `there is none; add an address to listen at, as ":80"`)
	}
	listens := map[string]string{}
	for i, l := range s.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		if _, port, err := net.SplitHostPort(l); err != nil || port == "" {
			p.add(key, `%q is not an address; write host:port or :port, as ":80" or "[::1]:8080"`, l)
		}
		p.unique(key, l, listens, "an address is listened at once")
	}
	p.tcpAddress("admin", s.Admin)
	switch s.Offload.Mode {
	case ModeLease, ModeOffload:
		p.channels(s.Offload.Channels)
	case ModeOff:
	default:
		p.add("offload.mode", "%q is not a mode; use lease, offload or off", s.Offload.Mode)
	}
	if t := s.Offload.Threshold; t < 0 && t != ThresholdAuto {
		p.add("offload.threshold", "%d is negative; 0 hands over for every size", int64(t))
	}
	p.busyPoll("offload.busy_poll", s.Offload.BusyPoll)
	p.positive("http.read_header_timeout", s.HTTP.ReadHeaderTimeout)
	p.positive("http.idle_timeout", s.HTTP.IdleTimeout)
	p.maxAge("http.manifest_max_age", s.HTTP.ManifestMaxAge)
	p.maxAge("http.segment_max_age", s.HTTP.SegmentMaxAge)
	s.validateShares(&p)
	return p.join()
}

// tcpAddress checks an address to serve operators at.
func (p *problems) tcpAddress(key, address string) {
	if address == "" {
		return
	}
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		p.add(key, `%q is not an address; write host:port or :port, as "127.0.0.1:9053", or ""`, address)
	}
}

func (p *problems) busyPoll(key string, d Duration) {
	if b := d.Value(); b < 0 || b > maxBusyPoll {
		p.add(key, "%v is not possible; use 0s (off) to %v", b, maxBusyPoll)
	}
}

func (p *problems) channels(addresses []string) {
	if len(addresses) == 0 {
		p.add("offload.channels", `there is none; write ["virtio:NAME"], ["unix:/PATH"] or ["vsock:CID:PORT"]`)
	}
	seen := map[string]bool{}
	for i, a := range addresses {
		key := fmt.Sprintf("offload.channels[%d]", i)
		p.channel(key, a, "virtio:", "unix:", "vsock:")
		if seen[a] {
			p.add(key, "%q is there twice", a)
		}
		seen[a] = true
	}
}

func (s Serve) validateShares(p *problems) {
	if len(s.Shares) == 0 {
		p.add("share", "there is none, so there is nothing to serve; add a [[share]] table, or --share")
	}
	names, prefixes := map[string]int{}, map[string]string{}
	for i, share := range s.Shares {
		key := fmt.Sprintf("share[%d]", i)
		p.name(key, share.Name, names, i)
		if !isPrefix(share.Prefix) {
			p.add(key+".prefix", `%q is not a URL path that begins and ends with "/", as "/media/"`, share.Prefix)
		}
		p.unique(key+".prefix", share.Prefix, prefixes, "a URL must mean one file")
		switch {
		case share.Mount != "":
			p.absolutePath(key+".mount", share.Mount, ` or ""`)
		case s.Offload.Mode == ModeOff:
			p.add(key+".mount", "it is empty, so files are read through the channel, but offload.mode is off; "+
				"set the directory that the share is mounted at")
		}
	}
}

func isPrefix(s string) bool {
	return s == "/" || strings.HasSuffix(s, "/") && path.IsAbs(s) && path.Clean(s)+"/" == s
}
