package host

import (
	"sync"
	"time"
)

// A client that has acknowledged nothing for blindAfter since its connection came here does not reach our socket: its packets take another way, which the
// routing tables do not tell. After blindLeases of them in a row the VM's connections are refused for blindFor.
const (
	blindAfter  = 5 * time.Second
	blindLeases = 3
	blindFor    = 5 * time.Minute
)

// blindness remembers that a VM's clients do not reach the host.
type blindness struct {
	mu    sync.Mutex
	row   int // leases without an acknowledgement, one after the other
	until time.Time
}

// unseen counts a lease whose client never acknowledged anything. It tells whether that was one too many.
func (b *blindness) unseen(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.row++; b.row < blindLeases {
		return false
	}
	b.row, b.until = 0, now.Add(blindFor)
	return true
}

// seen takes note of a client's acknowledgement.
func (b *blindness) seen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row = 0
}

// is tells whether connections are to be refused.
func (b *blindness) is(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Before(b.until)
}
