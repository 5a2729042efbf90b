package host

import "golang.org/x/sys/unix"

// Limits of reads from the disk. sendfile(2) reads what is not in the page cache itself, and keeps a thread of this process waiting for the disk. A thousand
// clients of a slow disk would be a thousand threads, and the runtime ends a process with ten thousand.
const (
	coldReads  = 64        // at a time
	coldWindow = 1 << 20   // bytes that are read ahead of a client
	coldSample = 256 << 10 // so far apart are the bytes by which a range is judged
	smallRange = 4 << 10   // one byte tells enough
	coldStep   = 64 << 10  // bytes that the kernel takes at once for POSIX_FADV_WILLNEED, at least (force_page_cache_ra, mm/readahead.c)
)

// coldReader reads ranges of files into the page cache, a bounded number at a time. The channel has a place for each read.
type coldReader chan struct{}

func newColdReader() coldReader { return make(coldReader, coldReads) }

// prepare makes sure that a sendfile of up to count bytes from offset on does not wait for the disk for long, and returns how many bytes that is true of. It
// waits for its turn if need be, so the caller holds no lock.
func (r coldReader) prepare(f file, offset, count int64) int64 {
	if inMemory(f.Fd(), offset, count) {
		return count
	}
	count = min(count, coldWindow)
	r <- struct{}{}
	defer func() { <-r }()
	// The descriptor is shared, so what the kernel has seen of its readers tells it nothing. Each step is one more read under way.
	for at := offset; at < offset+2*coldWindow; at += coldStep {
		_ = unix.Fadvise(f.Fd(), at, coldStep, unix.FADV_WILLNEED) // sendfile reads what this does not
	}
	for at := offset; at < offset+count; at += coldStep {
		touch(f.Fd(), at)
	}
	touch(f.Fd(), offset+count-1)
	return count
}

// inMemory tells whether a range is in the page cache, judging by some bytes of it: to look at all costs more than the little that is missed.
func inMemory(fd int, offset, count int64) bool {
	for at := offset; at < offset+count; at += coldSample {
		if !cached(fd, at) {
			return false
		}
	}
	return count <= smallRange || cached(fd, offset+count-1)
}

// cached tells whether the page at offset is in the page cache. A file system that cannot tell, such as FUSE, is taken for a slow one.
func cached(fd int, offset int64) bool {
	var one [1]byte
	for {
		n, err := unix.Preadv2(fd, [][]byte{one[:]}, offset, unix.RWF_NOWAIT)
		if err != unix.EINTR {
			return err == nil && n >= 0
		}
	}
}

// touch reads the page at offset. Errors are met again by sendfile.
func touch(fd int, offset int64) {
	var one [1]byte
	for {
		if _, err := unix.Pread(fd, one[:], offset); err != unix.EINTR {
			return
		}
	}
}
