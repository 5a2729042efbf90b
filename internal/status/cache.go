package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"spillway/internal/host"
)

// Cache asks the daemon at an admin socket for what a cache has: those of its files whose paths begin with prefix, at most max.
func Cache(ctx context.Context, socket, share, prefix string, max int) (out host.CacheFiles, err error) {
	q := url.Values{"share": {share}, "prefix": {prefix}, "max": {fmt.Sprint(max)}}
	err = newClient(socket).cache(ctx, http.MethodGet, "/cache/files?"+q.Encode(), func(d *json.Decoder) error { return d.Decode(&out) })
	return out, err
}

// CacheOrder gives the daemon an order that is done at once: pin, unpin or evict. It returns the answer.
func CacheOrder(ctx context.Context, socket, order string, q url.Values) (out json.RawMessage, err error) {
	err = newClient(socket).cache(ctx, http.MethodPost, "/cache/"+order+"?"+q.Encode(), func(d *json.Decoder) error { return d.Decode(&out) })
	return out, err
}

// CacheWork gives the daemon an order that takes its time: warm or verify. progress is told how far it is. It ends with ctx.
func CacheWork(ctx context.Context, socket, order string, q url.Values, progress func(done, total int64)) (out json.RawMessage, err error) {
	c := newClient(socket)
	c.http.Timeout = 0
	err = c.cache(ctx, http.MethodPost, "/cache/"+order+"?"+q.Encode(), func(d *json.Decoder) error {
		for {
			var p host.CacheProgress
			if err := d.Decode(&p); err != nil {
				return err
			}
			progress(p.Done, p.Total)
			switch {
			case p.Error != "":
				return errors.New(p.Error)
			case p.Result != nil:
				out = p.Result
				return nil
			}
		}
	})
	return out, err
}

// cache sends a request about a cache, and passes the answer to read.
func (c *client) cache(ctx context.Context, method, path string, read func(*json.Decoder) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://host"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s: %s: %s", c.socket, resp.Status, text)
	}
	return read(json.NewDecoder(resp.Body))
}
