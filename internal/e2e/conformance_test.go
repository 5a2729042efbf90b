package e2e

import (
	"maps"
	"net"
	"net/netip"
	"testing"

	"spillway/internal/lab"
	"spillway/internal/media/mediatest"
)

// IPv6 addresses of the servers; those of a lab are always the same (package lab, doc.go).
var (
	host6  = netip.MustParseAddr("fd88::1")
	guest6 = netip.MustParseAddr("fd87::2")
)

// addr6 is addr4 with the same machine's IPv6 address.
func addr6(t testing.TB, l *lab.Lab, arm lab.Arm) string {
	t.Helper()
	_, port, err := net.SplitHostPort(l.Addr(arm))
	if err != nil {
		t.Fatal(err)
	}
	ip := guest6
	if arm == lab.Baremetal {
		ip = host6
	}
	return net.JoinHostPort(ip.String(), port)
}

// TestConformance: a client cannot tell the arms apart.
func TestConformance(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range lab.Arms() {
		t.Run(string(arm), func(t *testing.T) { conformance(t, l, files, arm) })
	}
}

// TestConformanceWithoutMount: the same when the guest sees the share's files through the channel only.
func TestConformanceWithoutMount(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	for _, arm := range offloading {
		serveWithoutMount(t, l, arm)
		t.Run(string(arm), func(t *testing.T) { conformance(t, l, files, arm) })
	}
}

// maxConformanceBytes is for the suite, which fetches the largest of its files a hundred times.
const maxConformanceBytes = 2 << 20

// conformance runs the suite over both IP versions, with the files that are not too large for it.
func conformance(t *testing.T, l *lab.Lab, files *media, arm lab.Arm) {
	small := maps.Clone(files.files)
	maps.DeleteFunc(small, func(_ string, content []byte) bool { return len(content) > maxConformanceBytes })
	for _, version := range []struct{ name, addr string }{{"IPv4", l.Addr(arm)}, {"IPv6", addr6(t, l, arm)}} {
		t.Run(version.name, func(t *testing.T) {
			before := serverStats(t, l, arm).Counts
			mediatest.Run(t, "http://"+version.addr+"/media", httpClient(t, l), small)
			after := serverStats(t, l, arm).Counts
			offloads := arm == lab.Lease || arm == lab.Offload
			if sends := after.Sends - before.Sends; offloads != (sends > 0) {
				t.Errorf("the host has sent %d responses of arm %s", sends, arm)
			}
		})
	}
}
