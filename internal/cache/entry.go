package cache

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/evict"
	"spillway/internal/origin"
	"spillway/internal/wire"
)

// blockSize is the unit of what is there and of checksums. docs/cache.md says why it is 1 MiB.
const blockSize = 1 << 20

// blockState is how far a block is.
type blockState uint8

const (
	missing  blockState = iota
	present             // written, maybe by an earlier run of the daemon: to be checked before it is used
	verified            // written, and right
)

type block struct {
	sum   uint32 // CRC-32C; of no meaning while it is missing
	state blockState
}

// entry is one version of one path. Cache.mu guards what changes.
type entry struct {
	item    evict.Item[*entry]
	id      uint64 // names the data file
	path    string
	version origin.Version
	timeNs  int64 // version.TimeNs

	checked int64 // when the origin has last said that this is the version, s since 1970
	until   int64 // so long it is believed, ns since 1970

	blocks     []block // nil: nothing was ever asked for
	unverified int     // blocks that are not verified
	absent     int     // blocks that are missing
	complete   bool    // all are verified, and the data file has its time: a share.Share can serve it
	stored     bool    // the index knows it
	gone       bool    // replaced, evicted or found damaged: no block is fetched any more
	pinned     bool

	refs int   // readers and runs; not evicted as long as there are some
	data *data // open as long as somebody needs it
	runs []*run
}

// data is the open data file of an entry that is not complete, or was not when somebody acquired it.
type data struct {
	once  sync.Once
	fd    int
	err   error
	users int // guarded by Cache.mu
}

func (e *entry) ref(share string) wire.FileRef {
	return wire.FileRef{Share: share, Path: e.path, Size: e.version.Size, MTime: e.timeNs}
}

// blockEnd is the offset behind a block.
func (e *entry) blockEnd(b int) int64 { return min(int64(b+1)*blockSize, e.version.Size) }

func blockStart(b int) int64 { return int64(b) * blockSize }

func blockCount(size int64) int { return int((size + blockSize - 1) / blockSize) }

func (e *entry) blockLen(b int) int64 { return e.blockEnd(b) - blockStart(b) }

// available returns how many bytes from off on can be read now.
func (e *entry) available(off int64) int64 {
	b := int(off / blockSize)
	end := off
	for b < len(e.blocks) && e.blocks[b].state == verified && end-off < maxAvailable {
		end = e.blockEnd(b)
		b++
	}
	if r := e.runOf(b); r != nil && r.pos > end && blockStart(b) <= end {
		end = r.pos
	}
	return end - off
}

// maxAvailable bounds what available looks at.
const maxAvailable = 64 << 20

// runOf returns the run that a block belongs to, if there is one.
func (e *entry) runOf(b int) *run {
	for _, r := range e.runs {
		if r.first <= b && b < r.end {
			return r
		}
	}
	return nil
}

// distrust makes every block one to be checked.
func (e *entry) distrust() {
	for i := range e.blocks {
		if e.blocks[i].state == verified {
			e.blocks[i].state = present
			e.unverified++
		}
	}
	e.complete = false
}

// acquireData returns the entry's open data file with a user more. Cache.mu is held; open it without.
func (e *entry) acquireData() *data {
	if e.data == nil {
		e.data = &data{fd: -1}
	}
	e.data.users++
	return e.data
}

// open opens the data file, once.
func (d *data) open(dir *directory, e *entry) error {
	d.once.Do(func() { d.fd, d.err = dir.open(e.id, e.version.Size) })
	return d.err
}

// release gives a reference back, and the use of d if it is not nil. Cache.mu is held; it returns a descriptor to close without it, or -1.
func (e *entry) release(d *data) (fd int) {
	e.refs--
	if d == nil {
		return -1
	}
	if d.users--; d.users > 0 {
		return -1
	}
	if e.data == d {
		e.data = nil
	}
	return d.fd
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// believe notes that the origin has said at now that this is the version.
func (e *entry) believe(now time.Time, ttl time.Duration) {
	e.checked, e.until = now.Unix(), now.Add(ttl).UnixNano()
}

// doubt makes the next one who asks for attributes ask the origin.
func (e *entry) doubt() { e.checked, e.until = 0, 0 }
