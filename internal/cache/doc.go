// Package cache keeps files of an origin on this machine's disk: one copy for all VMs, filled as it is asked for. docs/cache.md tells how it works.
//
// In the data path it stands where package share stands for a tree of this machine: [Cache.Stat] answers a guest that asks for attributes, [Cache.Acquire] turns
// what a guest believes of a file into a descriptor for sendfile(2). The difference is [File.Await]: not every byte of the file need be there yet. Whoever
// sends calls it before each part, and it returns as soon as one byte or more can be sent. A file that is complete is served by a share.Share over the cache's
// data directory, by the same code as any other.
//
// # Who waits for whom
//
// One mutex guards what is in memory. It is never held during a system call, and never while the origin is asked: each question and each run of blocks has a
// goroutine of the cache's own, for which any number of callers wait, and which goes on when they go away. The index is written by one goroutine.
//
// # What is believed
//
// Nothing that an earlier run of the daemon has left, before its checksum was compared. So the order in which things reach the disk does not matter.
//
// # Trust
//
// Paths come from guests and are keys of a map, never names on this disk. The cache's directory belongs to the daemon's user alone; its files are opened beneath it and
// never through a link. Whoever may write there may do as the daemon does: checksums find accidents, not attacks.
//
// It needs Linux 5.6 (openat2) and a file system with sparse files.
package cache
