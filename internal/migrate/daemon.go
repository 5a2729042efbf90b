package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
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
		if resp.StatusCode == http.StatusNotImplemented {
			err = fmt.Errorf("%w: %w", errNoCarry, err)
		}
	}
	if err == nil {
		err = json.Unmarshal(answer, out)
	}
	if err != nil {
		return fmt.Errorf("host daemon of %s: %s: %w", d.side.Name, step, err)
	}
	return nil
}

// described is what this package has to know of a daemon's description of the VM.
type described struct {
	Sessions int `json:"sessions"` // live
	Carries  int `json:"carries"`  // the version in which the daemon hands leases over, or takes them; 0: it does not
}

// describe returns what the daemon says of the VM, for admit, and what is to be known of it here.
func (d *daemon) describe(ctx context.Context) (description []byte, known described, err error) {
	var raw json.RawMessage
	if err := d.do(ctx, http.MethodGet, "/vm", nil, nil, &raw); err != nil {
		return nil, known, err
	}
	return raw, known, json.Unmarshal(raw, &known)
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

func (d *daemon) resume(ctx context.Context, moved bool) error {
	return d.do(ctx, http.MethodPost, "/resume", url.Values{"moved": {strconv.FormatBool(moved)}}, nil, &struct{}{})
}

// errNoCarry is the answer of a daemon whose leases have to be recalled.
var errNoCarry = errors.New("leases cannot go along")

// expect announces a VM that comes with its leases. Before it is halted, the daemon must know the other host.
func (d *daemon) expect(ctx context.Context, other *Side) error {
	query := url.Values{}
	if other != nil {
		query = peers(*other)
	}
	return d.do(ctx, http.MethodPost, "/expect", query, nil, &struct{}{})
}

// halt halts the leases, which are to go to the other host.
func (d *daemon) halt(ctx context.Context, other Side, timeout time.Duration) (h held, err error) {
	query := peers(other)
	query.Set("timeout", timeout.String())
	return h, d.do(ctx, http.MethodPost, "/halt", query, nil, &h)
}

// export returns what a daemon hands over of a VM that is paused; it is for the other daemon's take.
func (d *daemon) export(ctx context.Context) (carried json.RawMessage, err error) {
	return carried, d.do(ctx, http.MethodPost, "/export", nil, nil, &carried)
}

func (d *daemon) take(ctx context.Context, carried json.RawMessage) error {
	return d.do(ctx, http.MethodPost, "/import", nil, carried, &struct{}{})
}

// silent makes sure that nothing has come of the VM since export.
func (d *daemon) silent(ctx context.Context) error {
	return d.do(ctx, http.MethodPost, "/silent", nil, nil, &struct{}{})
}

// commit makes the leases go on that were taken: the VM runs.
func (d *daemon) commit(ctx context.Context, other Side) error {
	return d.do(ctx, http.MethodPost, "/commit", peers(other), nil, &struct{}{})
}

// leave lets go of leases that another host has.
func (d *daemon) leave(ctx context.Context, other Side) error {
	return d.do(ctx, http.MethodPost, "/leave", peers(other), nil, &struct{}{})
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
