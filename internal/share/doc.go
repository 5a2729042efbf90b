// Package share is the host's side of a share: a named directory tree that VMs may send files from, and nothing outside it.
//
// In the data path it stands between the frames of a guest, which name a file and say what the guest believes of it
// ([wire.FileRef]), and sendfile(2): [Share.Acquire] turns the one into a descriptor for the other. [Share.Stat] answers a guest
// that asks for attributes.
//
// # What the guest cannot do
//
// The guest chooses the path, so the kernel resolves it under our rules: openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
// and RESOLVE_NO_MAGICLINKS. What it names is first pinned with O_PATH, which neither blocks on a FIFO nor touches a device;
// only what is then seen to be a regular file is opened for reading, through the pin (/proc/self/fd), so that nobody can exchange
// it in between.
//
// RESOLVE_NO_XDEV is not set on purpose. A share may contain mounts (a second disk, a bind mount of a library): whoever mounts
// something beneath a share wants it there, a guest cannot mount, and RESOLVE_BENEATH holds on every mount.
//
// # What is cached
//
// Descriptors, never attributes. All transfers of a file share one descriptor; its file position is meaningless. Idle files stay
// open, the least recently used is closed when [Options.MaxOpenFiles] is reached, a file in use never is. Each Acquire checks size
// and modification time again with fstat(2), so a file that was changed is noticed; one that was replaced or removed can be sent as
// long as it is open and a guest believes in it. The disk space of a removed file is therefore free only when it is closed.
//
// A [File] is one version of a file. What a writer does to it in place after Acquire is not noticed here: the sender sees a short
// file, or new bytes. Files beneath a share should be replaced with rename(2), never rewritten.
//
// The package must not be used to write, or for directories whose content processes of the guest can arrange on the host: a
// hard link that leads to a secret file is a regular file like any other.
//
// It needs Linux 5.6 (openat2), a mounted /proc, and permission to read the files. CAP_FOWNER, or being the files' owner, keeps
// their access times from being written (O_NOATIME).
package share
