package evict

// LRU evicts what was not used for the longest time. It is here to be compared with.
type LRU[T any] struct{ queue queue[T] }

// Add implements Policy.
func (l *LRU[T]) Add(i *Item[T]) { l.queue.push(i) }

// Use implements Policy.
func (l *LRU[T]) Use(i *Item[T]) {
	l.queue.remove(i)
	l.queue.push(i)
}

// Resize implements Policy.
func (l *LRU[T]) Resize(i *Item[T], delta int64) { resize(i, delta) }

// Remove implements Policy.
func (l *LRU[T]) Remove(i *Item[T]) { remove(i) }

// Victim implements Policy.
func (l *LRU[T]) Victim(busy func(T) bool) *Item[T] {
	for range l.queue.items {
		i := l.queue.oldest
		l.queue.remove(i)
		if !busy(i.Value) {
			return i
		}
		l.queue.push(i)
	}
	return nil
}
