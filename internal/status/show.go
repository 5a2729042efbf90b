package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"spillway/internal/host"
)

// Options of Show.
type Options struct {
	Socket string // the daemon's admin socket
	Leases bool   // the leases instead of the counts
	JSON   bool   // what the daemon says, as it is
	Watch  bool   // again every second until ctx is done
}

// watchEvery is how often a watched status is asked for.
const watchEvery = time.Second

// Show asks the daemon and writes what it says to w. To watch it ends without an error when ctx is done.
func Show(ctx context.Context, w io.Writer, o Options) error {
	v := newView(o)
	if !o.Watch {
		text, err := v.next(ctx)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	return v.watch(ctx, newScreen(w), tick.C)
}

// watch draws a first view and one for each tick until ctx is done.
func (v *view) watch(ctx context.Context, s *screen, tick <-chan time.Time) error {
	defer s.close()
	var last []byte // what the daemon has said
	for first := true; ; first = false {
		text, err := v.next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (first || v.json):
			return err
		case err != nil: // it may be restarting: who watches wants to see it come back
			text = fmt.Appendf(nil, "[%s] %v\n", clock(v.now()), err)
			if s.terminal != nil {
				text = append(append(text, '\n'), last...)
			}
		default:
			last = text
		}
		if err := s.draw(text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// view makes one picture after the other, and remembers the last answer for the rates.
type view struct {
	client       *client
	leases, json bool
	oneLine      bool // JSON for somebody who reads line by line
	now          func() time.Time

	lastStatus *host.Status
	lastLeases *host.Leases
	lastAt     time.Time
}

func newView(o Options) *view {
	return &view{client: newClient(o.Socket), leases: o.Leases, json: o.JSON, oneLine: o.Watch, now: time.Now}
}

// next asks the daemon and returns the text to show.
func (v *view) next(ctx context.Context) ([]byte, error) {
	path := "/status"
	if v.leases {
		path = "/leases"
	}
	body, err := v.client.get(ctx, path)
	if err != nil {
		return nil, err
	}
	switch {
	case v.json:
		return v.passOn(body)
	case v.leases:
		return v.nextLeases(body)
	}
	return v.nextStatus(body)
}

// passOn returns the daemon's own JSON.
func (v *view) passOn(body []byte) ([]byte, error) {
	if !v.oneLine {
		return body, nil
	}
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil {
		return nil, v.client.explain(err)
	}
	line.WriteByte('\n')
	return line.Bytes(), nil
}

func (v *view) nextStatus(body []byte) ([]byte, error) {
	s := new(host.Status)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, v.client.explain(err)
	}
	text := statusTable(s, v.lastStatus, v.now())
	v.lastStatus = s
	return []byte(text), nil
}

func (v *view) nextLeases(body []byte) ([]byte, error) {
	l := new(host.Leases)
	if err := json.Unmarshal(body, l); err != nil {
		return nil, v.client.explain(err)
	}
	now := v.now()
	text := leasesTable(l, v.lastLeases, now.Sub(v.lastAt), now)
	v.lastLeases, v.lastAt = l, now
	return []byte(text), nil
}
