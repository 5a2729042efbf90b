package host

import (
	"sync"
	"time"
)

// A client that has acknowledged nothing for blindAfter since its connection came here does not reach our socket: its packets take another way, which the
// routing tables do not tell. After blindLeases of them in a row the VM's connections are refused for blindFor. Where clients of the VM have been seen, it is more
// likely the path to this one that has failed for a while, which TCP bears: then blindSeenAfter counts.
const (
	blindAfter     = 5 * time.Second
	blindSeenAfter = 30 * time.Second
	blindLeases    = 3
	blindFor       = 5 * time.Minute
)

// blindness remembers that a VM's clients do not reach the host.
type blindness struct {
	mu    sync.Mutex
	known bool // a client has acknowledged something
	row   int  // leases without an acknowledgement, one after the other
	until time.Time
}

// unseen counts a lease whose client never acknowledged anything. It tells whether that was one too many.
func (b *blindness) unseen(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.row++; b.row < blindLeases {
		return false
	}
	b.known, b.row, b.until = false, 0, now.Add(blindFor)
	return true
}

// after is for how long a client may acknowledge nothing.
func (b *blindness) after() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known {
		return blindSeenAfter
	}
	return blindAfter
}

// seen takes note of a client's acknowledgement.
func (b *blindness) seen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known, b.row = true, 0
}

// is tells whether connections are to be refused.
func (b *blindness) is(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Before(b.until)
}
