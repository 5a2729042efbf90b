package lab

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Addr is where a client reaches an arm's server.
func (l *Lab) Addr(arm Arm) string { return netip.AddrPortFrom(arm.addr(), arm.port()).String() }

// URL is the address of a file for a client.
func (l *Lab) URL(arm Arm, path string) string { return "http://" + l.Addr(arm) + urlPrefix + path }

// DialContext connects from the client's namespace, for net/http and the load client.
func (l *Lab) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{}
	if deadline, ok := ctx.Deadline(); ok {
		d.Deadline = deadline
	}
	return l.Client.Dial(d, network, address)
}

// RTT is the round-trip time that the client's link adds.
func (l *Lab) RTT() time.Duration { return l.Link.RTT }

// HTTPClient is a client in the client's namespace with connections of its own.
func (l *Lab) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: l.DialContext, DisableCompression: true}}
}

// URLPath is the path of a shared file in a URL.
func URLPath(file string) string { return urlPrefix + file }

// SharedFile is the path of a file beneath the share, from its path in a URL.
func SharedFile(urlPath string) string { return strings.TrimPrefix(urlPath, urlPrefix) }
