package bench

import (
	"context"
	"encoding/hex"
	"errors"
	"time"
)

// Target is a file that a pass asks for.
type Target struct {
	Path   string // escaped
	Bytes  int64
	SHA256 string // in hexadecimal digits
}

// Pass asks for each target once, in order, over the client's connection, and records what came. A body whose status, length, or (with
// verify) SHA-256 is not the target's is counted as wrong, as is a request that fails; the pass goes on with a new connection then. It
// ends early, with an error, only when ctx ends or the server cannot be dialled. done, if not nil, is called after each request.
func Pass(ctx context.Context, c *Client, targets []Target, verify bool, rec *Recorder, done func(Result)) error {
	start := time.Now()
	defer func() { rec.AddElapsed(time.Since(start)) }()
	for _, target := range targets {
		res, err := c.Get(ctx, target.Path, verify)
		if ctxErr := ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		var failed *RequestError
		if errors.As(err, &failed) && failed.Op == "dial" {
			return err
		}
		if err == nil {
			err = target.check(res, verify)
		}
		if err != nil {
			rec.AddWrong(res, err)
		} else {
			rec.Add(res)
		}
		if done != nil {
			done(res)
		}
	}
	return nil
}

func (t Target) check(res Result, verify bool) error {
	wrong := &WrongBodyError{Target: t.Path, Status: res.Status, Bytes: res.Bytes, WantBytes: t.Bytes}
	if verify {
		wrong.GotSHA256, wrong.SHA256Hex = hex.EncodeToString(res.SHA256[:]), t.SHA256
	}
	const ok = 200
	if res.Status != ok || res.Bytes != t.Bytes || wrong.GotSHA256 != wrong.SHA256Hex {
		return wrong
	}
	return nil
}
