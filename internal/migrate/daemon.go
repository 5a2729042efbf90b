package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// answerTimeout is how long a daemon may take: it must answer a hold within its own limit, 10 s.
const answerTimeout = 12 * time.Second

// daemon is a host daemon's admin socket.
type daemon struct {
	side Side
	vm   string
	http http.Client
}

func newDaemon(side Side, vm string) *daemon {
	return &daemon{side: side, vm: vm, http: http.Client{
		Timeout: answerTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", side.Admin)
		}},
	}}
}

// do makes a request and decodes the answer into out.
func (d *daemon) do(ctx context.Context, method, step string, query url.Values, body []byte, out any) error {
	if query == nil {
		query = url.Values{}
	}
	query.Set("vm", d.vm)
	req, err := http.NewRequestWithContext(ctx, method, "http://host"+step+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return fmt.Errorf("host daemon of %s: %s: %w", d.side.Name, step, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(answer)))
	}
	if err == nil {
		err = json.Unmarshal(answer, out)
	}
	if err != nil {
		return fmt.Errorf("host daemon of %s: %s: %w", d.side.Name, step, err)
	}
	return nil
}

// describe returns what the daemon says of the VM, for admit, and its live sessions.
func (d *daemon) describe(ctx context.Context) (description []byte, sessions int, err error) {
	var raw json.RawMessage
	if err := d.do(ctx, http.MethodGet, "/vm", nil, nil, &raw); err != nil {
		return nil, 0, err
	}
	var known struct {
		Sessions int `json:"sessions"`
	}
	return raw, known.Sessions, json.Unmarshal(raw, &known)
}

// admit asks whether the VM can come, and returns an error that tells everything that is in its way.
func (d *daemon) admit(ctx context.Context, description []byte) error {
	var answer struct {
		Problems []string `json:"problems"`
	}
	if err := d.do(ctx, http.MethodPost, "/admit", nil, description, &answer); err != nil {
		return err
	}
	if len(answer.Problems) > 0 {
		return fmt.Errorf("%s cannot take it: %s", d.side.Name, strings.Join(answer.Problems, "; "))
	}
	return nil
}

// held is what came of a hold.
type held struct {
	Leases    int        `json:"leases"`
	Closed    int        `json:"closed"`
	LongestMs float64    `json:"longest_ms"`
	Returns   []Returned `json:"returns"`
}

func (d *daemon) hold(ctx context.Context, timeout time.Duration) (h held, err error) {
	return h, d.do(ctx, http.MethodPost, "/hold", url.Values{"timeout": {timeout.String()}}, nil, &h)
}

func (d *daemon) resume(ctx context.Context) error {
	return d.do(ctx, http.MethodPost, "/resume", nil, nil, &struct{}{})
}

func (d *daemon) arrive(ctx context.Context, other Side) error {
	return d.do(ctx, http.MethodPost, "/arrive", peers(other), nil, &struct{}{})
}

func (d *daemon) depart(ctx context.Context, other Side) error {
	return d.do(ctx, http.MethodPost, "/depart", peers(other), nil, &struct{}{})
}

func peers(side Side) url.Values {
	q := url.Values{}
	for _, a := range side.Addresses {
		q.Add("peer", netip.Addr.String(a))
	}
	return q
}
