package tcprepair

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"spillway/internal/testkit"
)

// families are those of a Pool.
func families() []int { return []int{unix.AF_INET, unix.AF_INET6} }

// waitFull waits until the pool holds its size of each family.
func (p *Pool) waitFull(t *testing.T) {
	t.Helper()
	eventually(t, "the pool is full", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.idle4) == p.size && len(p.idle6) == p.size
	})
}

func TestPool(t *testing.T) {
	f := newFreezer(t)
	testkit.CheckFDs(t)
	p := NewPool(f, 4)
	t.Cleanup(func() { goleak.VerifyNone(t) })
	t.Cleanup(p.Close)
	for range 3 {
		p.waitFull(t)
		for _, family := range families() {
			for range 6 { // more than it holds
				fd, err := p.Get(family)
				must(t, err)
				wantReady(t, fd, family)
				must(t, unix.Close(fd))
			}
		}
	}
	p.Close()
	p.Close() // again is harmless
	if _, err := p.Get(unix.AF_INET); !errors.Is(err, ErrPoolClosed) {
		t.Errorf("Get after Close says %v, want %v", err, ErrPoolClosed)
	}
}

// wantReady checks what Restore needs of a socket.
func wantReady(t *testing.T, fd, family int) {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	must(t, err)
	fdFlags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	must(t, err)
	if flags&unix.O_NONBLOCK == 0 || fdFlags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %#x, want O_NONBLOCK and FD_CLOEXEC", flags, fdFlags)
	}
	level, opt := unix.IPPROTO_IP, unix.IP_TRANSPARENT
	if family == unix.AF_INET6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
	}
	for _, o := range []struct {
		name             string
		level, opt, want int
	}{
		{"domain", unix.SOL_SOCKET, unix.SO_DOMAIN, family},
		{"transparent", level, opt, 1},
		{"repair mode", unix.IPPROTO_TCP, unix.TCP_REPAIR, 1},
	} {
		if got := sockopt(t, fd, o.level, o.opt); got != o.want {
			t.Errorf("%s is %d, want %d", o.name, got, o.want)
		}
	}
}

// TestPoolConcurrency: no socket is given out twice, and none is lost, with Close in the middle of it.
func TestPoolConcurrency(t *testing.T) {
	f := newFreezer(t)
	testkit.CheckFDs(t)
	for range 5 {
		p := NewPool(f, 8)
		var inUse sync.Map
		var got atomic.Int32
		var takers sync.WaitGroup
		for i := range 8 {
			takers.Go(func() {
				for range 50 {
					fd, err := p.Get(families()[i%2])
					if errors.Is(err, ErrPoolClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					got.Add(1)
					if _, twice := inUse.LoadOrStore(fd, true); twice {
						t.Errorf("fd %d was given out twice", fd)
						return
					}
					inUse.Delete(fd)
					if err := unix.Close(fd); err != nil {
						t.Error(err)
					}
				}
			})
		}
		eventually(t, "half the work is done", func() bool { return got.Load() >= 200 })
		p.Close()
		takers.Wait()
	}
}

// TestPoolFailure: Get reports why no socket can be made, and the pool fills again when one can.
func TestPoolFailure(t *testing.T) {
	f := newFreezer(t)
	testkit.CheckFDs(t)
	var broken atomic.Bool
	var calls atomic.Int32
	broken.Store(true)
	p := newPool(func(family int) (int, error) {
		calls.Add(1)
		if broken.Load() {
			return -1, &Error{Op: "new transparent socket", Left: LeftClosed, Err: unix.EMFILE}
		}
		return f.NewTransparent(family)
	}, 2)
	t.Cleanup(p.Close)
	eventually(t, "the pool tries once for each family", func() bool { return calls.Load() == 2 })
	_, err := p.Get(unix.AF_INET)
	wantError(t, err, unix.EMFILE, LeftClosed)
	broken.Store(false)
	fd, err := p.Get(unix.AF_INET)
	must(t, err)
	must(t, unix.Close(fd))
	p.waitFull(t)
}

func TestNewTransparentFails(t *testing.T) {
	f := newFreezer(t)
	testkit.CheckFDs(t)
	_, err := f.NewTransparent(unix.AF_PACKET)
	var e *Error
	if !errors.As(err, &e) || e.Left != LeftClosed {
		t.Errorf("error is %v, want one that leaves nothing", err)
	}
}
