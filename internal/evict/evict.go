// Package evict decides which file leaves a cache when there is no more room: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need
// for cache eviction, SOSP 2023) by bytes and by files, and LRU to measure it against.
//
// It stands beside the data path: package cache tells it what is added, used and removed, and asks for a victim when a fill needs room. It knows neither disks nor
// names, takes no lock and starts nothing: its user's lock guards it. It must not be used where what is cached is small and all of one size: that needs less.
//
// It needs no capability and no particular kernel.
package evict

// Item is one thing that can be evicted. Its user keeps it, and sets Value and Key before it is added.
type Item[T any] struct {
	Value T
	Key   uint64 // a hash of its name, by which it is known again after it was evicted

	size         int64 // bytes
	queue        *queue[T]
	newer, older *Item[T]
	uses         uint8
}

// Size returns the item's bytes.
func (i *Item[T]) Size() int64 { return i.size }

// Policy is a rule of eviction. Its user does the counting against a budget.
type Policy[T any] interface {
	Add(*Item[T])
	// Use notes that an item was asked for.
	Use(*Item[T])
	// Resize changes an item's bytes.
	Resize(i *Item[T], delta int64)
	Remove(*Item[T])
	// Victim removes and returns the item that is to go, passing over those that are busy; nil if all are.
	Victim(busy func(T) bool) *Item[T]
}

// queue is a list of items by the time of their coming. It is intrusive, so that an item costs no allocation.
type queue[T any] struct {
	newest, oldest *Item[T]
	items          int
	bytes          int64
}

func (q *queue[T]) push(i *Item[T]) {
	i.queue, i.older = q, q.newest
	if q.newest != nil {
		q.newest.newer = i
	} else {
		q.oldest = i
	}
	q.newest = i
	q.items++
	q.bytes += i.size
}

func (q *queue[T]) remove(i *Item[T]) {
	if i.newer != nil {
		i.newer.older = i.older
	} else {
		q.newest = i.older
	}
	if i.older != nil {
		i.older.newer = i.newer
	} else {
		q.oldest = i.newer
	}
	i.queue, i.newer, i.older = nil, nil, nil
	q.items--
	q.bytes -= i.size
}

// Remove takes an item out of whatever queue it is in.
func remove[T any](i *Item[T]) {
	if i.queue != nil {
		i.queue.remove(i)
	}
}

func resize[T any](i *Item[T], delta int64) {
	i.size += delta
	if i.queue != nil {
		i.queue.bytes += delta
	}
}
