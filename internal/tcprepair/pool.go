package tcprepair

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Pool keeps sockets ready for Restore, so that their making is no part of a handover. It may be used by several goroutines
// at once.
type Pool struct {
	create func(family int) (fd int, err error)
	size   int // of each family
	wake   chan struct{}
	done   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	idle4  []int
	idle6  []int
}

// NewPool returns a pool of size sockets of each family, filled in the background by one goroutine from now on. The sockets
// belong to the network namespace of that goroutine's thread, that is of the process. f must stay open until Close returns;
// the caller closes both.
func NewPool(f *Freezer, size int) *Pool { return newPool(f.NewTransparent, size) }

func newPool(create func(family int) (int, error), size int) *Pool {
	p := &Pool{create: create, size: size, wake: newWake()}
	p.done.Go(p.refill)
	return p
}

// newWake is a channel that remembers one signal; the first is to fill the pool.
func newWake() chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	return c
}

// Get returns a socket for Restore of the family, AF_INET or AF_INET6: from the pool, or a new one when it is empty. The
// caller owns it and closes it. After Close it fails with ErrPoolClosed.
func (p *Pool) Get(family int) (fd int, err error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return -1, &Error{Op: "get", Left: LeftClosed, Err: ErrPoolClosed}
	}
	fd = -1
	if idle := p.idle(family); len(*idle) > 0 {
		last := len(*idle) - 1
		fd, *idle = (*idle)[last], (*idle)[:last]
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	if fd >= 0 {
		return fd, nil
	}
	return p.create(family)
}

// Close closes the sockets that are in the pool and waits for its goroutine. It may be called more than once.
func (p *Pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.wake)
	}
	p.mu.Unlock()
	p.done.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, idle := range []*[]int{&p.idle4, &p.idle6} {
		for _, fd := range *idle {
			unix.Close(fd)
		}
		*idle = nil
	}
}

// refill fills the pool after each signal. When no socket can be made, as when there are too many open files, it waits for
// the next Get, which then reports the error itself.
func (p *Pool) refill() {
	for range p.wake {
		for p.add(unix.AF_INET) || p.add(unix.AF_INET6) {
		}
	}
}

// add puts one socket into the pool, if there is room.
func (p *Pool) add(family int) bool {
	p.mu.Lock()
	full := p.closed || len(*p.idle(family)) >= p.size
	p.mu.Unlock()
	if full {
		return false
	}
	fd, err := p.create(family)
	if err != nil {
		return false
	}
	// Only this goroutine adds, and Close waits for it before it empties the pool: so there still is room, and an owner.
	p.mu.Lock()
	idle := p.idle(family)
	*idle = append(*idle, fd)
	p.mu.Unlock()
	return true
}

// idle is called with mu held.
func (p *Pool) idle(family int) *[]int {
	if family == unix.AF_INET6 {
		return &p.idle6
	}
	return &p.idle4
}
