package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"spillway/internal/guest"
)

// ServerStats asks an arm's media server for its counters; a peer has none of these.
func (l *Lab) ServerStats(ctx context.Context, arm Arm) (guest.Snapshot, error) {
	var s guest.Snapshot
	if arm.IsPeer() {
		return s, l.peerReady(ctx, arm)
	}
	body, err := l.get(ctx, http.MethodGet, l.adminURL(arm, "/stats"))
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// ResetServerStats sets them to zero.
func (l *Lab) ResetServerStats(ctx context.Context, arm Arm) error {
	if arm.IsPeer() {
		return nil
	}
	_, err := l.get(ctx, http.MethodPost, l.adminURL(arm, "/stats/reset"))
	return err
}

// AdminURL is where the server of an arm tells its counters, for the client.
func (l *Lab) AdminURL(arm Arm) string { return l.adminURL(arm, "") }

func (l *Lab) adminURL(arm Arm, path string) string {
	return "http://" + netip.AddrPortFrom(arm.addr(), arm.adminPort()).String() + path
}

// HostAdmin calls the host daemon's admin socket and decodes its answer into out, unless that is nil.
func (l *Lab) HostAdmin(ctx context.Context, method, path string, out any) error {
	if err := askSocket(ctx, l.adminSocket(), method, path, out); err != nil {
		return fmt.Errorf("host daemon: %w", err)
	}
	return nil
}

// rawText is an answer as it is, and not JSON.
type rawText []byte

// askSocket calls a process that answers HTTP at a unix socket.
func askSocket(ctx context.Context, socket, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var d net.Dialer
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *rawText:
		*out, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return err
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
