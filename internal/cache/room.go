package cache

// room evicts until so many bytes and files more keep the budget. mu is held.
func (c *Cache) room(bytes int64, files int) error {
	for c.used+bytes > c.opts.MaxBytes || len(c.entries)+files > c.opts.MaxFiles {
		if c.evictOne() == 0 {
			return errNoRoom
		}
	}
	return nil
}

// evictOne evicts the file that is to go first and returns the bytes that it had, at least 1; 0 if none may go. mu is held.
func (c *Cache) evictOne() int64 {
	victim := c.policy.Victim(func(e *entry) bool { return e.refs > 0 || e.pinned })
	if victim == nil {
		return 0
	}
	c.bury(victim.Value)
	c.count.evictions.Add(1)
	c.count.evictedBytes.Add(uint64(victim.Size()))
	return max(victim.Size(), 1)
}

// reserve makes sure that so many bytes more of e have room: on the disk beside what is to be left free, and in the budget. What the budget has evicted the
// caller removes.
func (c *Cache) reserve(e *entry, bytes int64) (evicted []uint64, err error) {
	free, err := c.dir.free()
	if err != nil {
		return nil, err
	}
	if short := bytes + c.opts.KeepFree - free; short > 0 {
		c.lock()
		freed := c.evictBytes(short)
		c.unlock()
		if freed < short {
			return nil, errNoRoom
		}
	}
	c.lock()
	defer c.unlock()
	if err := c.room(bytes, 0); err != nil {
		return nil, err
	}
	c.grow(e, bytes)
	evicted, c.doomed = c.doomed, nil
	return evicted, nil
}

// evictBytes evicts at least so many bytes, if it can. mu is held.
func (c *Cache) evictBytes(bytes int64) (freed int64) {
	for freed < bytes {
		n := c.evictOne()
		if n == 0 {
			break
		}
		freed += n
	}
	return freed
}

// grow accounts bytes of e. mu is held.
func (c *Cache) grow(e *entry, bytes int64) {
	if e.gone {
		return // accounted for when it went
	}
	c.policy.Resize(&e.item, bytes)
	c.used += bytes
}
