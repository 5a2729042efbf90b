package evict

// Parameters of S3-FIFO, as the paper has them (section 4.1).
const (
	smallShare = 10 // the small queue's part of the budget: a tenth
	maxUses    = 3  // two bits
	// promoteAt uses while in the small queue lead to the main one.
	promoteAt = 2
)

// minGhosts lets a cache that is being filled for the first time learn.
const minGhosts = 1024

// S3FIFO has a small queue for what comes for the first time, a main one for what was used again while it was in there, and the ghosts of what
// has left the small queue: who comes back while his ghost is there goes to the main queue at once. So a scan passes through the small queue
// and takes nothing else with it, and a use costs one counter.
type S3FIFO[T any] struct {
	maxBytes   int64
	maxItems   int
	small      queue[T]
	main       queue[T]
	ghosts     map[uint64]struct{}
	ghostOrder []uint64 // oldest first
}

// NewS3FIFO returns the policy for a cache of so many bytes and items; it uses them for the small queue's part only.
func NewS3FIFO[T any](maxBytes int64, maxItems int) *S3FIFO[T] {
	return &S3FIFO[T]{maxBytes: maxBytes, maxItems: maxItems, ghosts: map[uint64]struct{}{}}
}

// Add implements Policy.
func (s *S3FIFO[T]) Add(i *Item[T]) {
	i.uses = 0
	if _, back := s.ghosts[i.Key]; back {
		delete(s.ghosts, i.Key) // its place in ghostOrder goes in time
		s.main.push(i)
		return
	}
	s.small.push(i)
}

// Restore adds an item that has been in the cache before a restart.
func (s *S3FIFO[T]) Restore(i *Item[T]) { s.main.push(i) }

// Use implements Policy.
func (s *S3FIFO[T]) Use(i *Item[T]) {
	if i.uses < maxUses {
		i.uses++
	}
}

// Resize implements Policy.
func (s *S3FIFO[T]) Resize(i *Item[T], delta int64) { resize(i, delta) }

// Remove implements Policy.
func (s *S3FIFO[T]) Remove(i *Item[T]) { remove(i) }

// Each calls f for every item, first those that would go first.
func (s *S3FIFO[T]) Each(f func(T)) {
	for _, q := range []*queue[T]{&s.small, &s.main} {
		for i := q.oldest; i != nil; i = i.newer {
			f(i.Value)
		}
	}
}

// Victim implements Policy.
func (s *S3FIFO[T]) Victim(busy func(T) bool) *Item[T] {
	if s.small.bytes > s.maxBytes/smallShare || s.small.items > s.maxItems/smallShare || s.main.items == 0 {
		if v := s.fromSmall(busy); v != nil {
			return v
		}
	}
	if v := s.fromMain(busy); v != nil {
		return v
	}
	return s.fromSmall(busy)
}

func (s *S3FIFO[T]) fromSmall(busy func(T) bool) *Item[T] {
	for range s.small.items {
		i := s.small.oldest
		s.small.remove(i)
		switch {
		case busy(i.Value):
			s.small.push(i)
		case i.uses >= promoteAt:
			i.uses = 0
			s.main.push(i)
		default:
			s.remember(i.Key)
			return i
		}
	}
	return nil
}

func (s *S3FIFO[T]) fromMain(busy func(T) bool) *Item[T] {
	for range s.main.items * (maxUses + 1) {
		i := s.main.oldest
		s.main.remove(i)
		switch {
		case busy(i.Value):
			s.main.push(i)
		case i.uses > 0:
			i.uses--
			s.main.push(i)
		default:
			return i
		}
	}
	return nil
}

// remember makes a ghost. There are as many as the main queue has items.
func (s *S3FIFO[T]) remember(key uint64) {
	s.ghosts[key] = struct{}{}
	s.ghostOrder = append(s.ghostOrder, key)
	for len(s.ghostOrder) > max(s.main.items, minGhosts) {
		delete(s.ghosts, s.ghostOrder[0])
		s.ghostOrder = s.ghostOrder[1:]
	}
}
