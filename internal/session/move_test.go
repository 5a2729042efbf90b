package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"spillway/internal/wire"
)

// TestMove: a guest that ends its session because the VM moves gets none until the host may offer one, and then at once, on the same channel.
func TestMove(t *testing.T) {
	inBubbles(t, func(t *testing.T, a, b closer) {
		gate := make(chan struct{}, 1)
		gate <- struct{}{}
		host := start(t, a, func(ctx context.Context, c Conn, o Options, begin func(*Session) Handler) error {
			o.Offer = func(ctx context.Context) (*State, error) {
				select {
				case <-gate:
					return nil, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return Host(ctx, c, testHello, o, begin)
		})
		guest := startGuest(t, b)
		h, g := together(t, host, guest)
		g.session.Close(ErrMove)
		if err := next(t, "the guest's end", g.end); err != ErrMove {
			t.Errorf("the guest's session ended with %v", err)
		}
		if err := next(t, "the host's end", h.end); err != ErrRestart {
			t.Errorf("the host's session ended with %v", err)
		}
		time.Sleep(30 * time.Second)
		none(t, "a session while none may be offered", host.began)
		none(t, "a session while none may be offered", guest.began)
		began := time.Now()
		gate <- struct{}{}
		next(t, "a session", guest.began)
		next(t, "a session", host.began)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a session after %v", took)
		}
		host.stop()
		guest.stop()
	})
}

// TestMoveInFrame: what the old host has said in part is not taken for a part of what the new one says, since the guest searches before the pause.
func TestMoveInFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufferedPipe(64 << 10)
		defer a.Close()
		defer b.Close()
		guest := startGuest(t, b)
		say := func(p []byte) {
			t.Helper()
			if _, err := a.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		go func() { // the guest's words
			buf := make([]byte, 1<<10)
			for {
				if _, err := a.Read(buf); err != nil {
					return
				}
			}
		}()
		hello := func(id uint32) []byte { return wire.Append(nil, id, 0, 0, wire.Hello{Version: wire.Version}) }
		say(hello(7))
		g := guest.session()
		say(data(7, 5, "a frame of which only a part comes")[:20])
		synctest.Wait()
		g.session.Close(ErrMove)
		next(t, "the end", g.end)
		say(hello(9)) // the other host's
		if g := guest.session(); g.session.ID != 9 {
			t.Errorf("session %08x", g.session.ID)
		}
		guest.stop()
	})
}
