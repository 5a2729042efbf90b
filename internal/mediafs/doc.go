// Package mediafs is an [fs.FS] over one directory, made for a media server: a share that is mounted in the guest (9p, virtiofs),
// or a plain directory on bare metal ([Dir]), or a share of the host that is read through the channel ([Remote]), or both ([Mounted]).
//
// In the data path it stands between the media server, which knows only fs.FS, and the guest's connection, which asks a file
// through [File.HostFile] which bytes of which share it stands for. When the connection sends the bytes itself, the kernel reads
// them with sendfile(2) through [File.SyscallConn].
//
// Opening a file on 9p costs about a millisecond, which is more than a whole leased request. So nothing here is done once per
// request:
//
//   - Attributes are cached and checked again with stat(2) when they are older than [Options.AttributeTTL]. Until then a file that
//     was changed in place is served as it is on disk, with the old validators; a file that was replaced is served as it was.
//   - The first [Dir.Open] of a file really opens it, which proves that this process may read it. Every later Open under the same
//     attributes is free: the descriptor is taken from a pool, or opened, only when bytes are read here. A request whose bytes the
//     host sends never needs one.
//   - Pooled descriptors are never shared: each has a file position of its own, and sendfile(2) moves it.
//
// Names are resolved beneath the directory with [os.Root]. Only regular files open: a FIFO or a device is refused without being
// opened, so it cannot block.
//
// It must not be used for files that are written in place while they are served, nor to write at all.
//
// Linux only; no capability is needed.
package mediafs
