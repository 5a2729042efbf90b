package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spillway/internal/share"
	"spillway/internal/wire"
)

// slowDisk is a file system whose reads take as long as the test wants.
type slowDisk struct {
	dir   string
	files int
	asked atomic.Int64  // files of which something was to be read
	wait  chan struct{} // closed: nothing waits any more
}

// slowFile is one of its files, of slowFileSize zero bytes.
type slowFile struct {
	fs.Inode
	disk  *slowDisk
	asked atomic.Bool
}

const slowFileSize = 3 << 20

var _ interface {
	fs.NodeGetattrer
	fs.NodeOpener
	fs.NodeReader
} = (*slowFile)(nil)

func (f *slowFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Size, out.Mode = slowFileSize, 0o644
	return 0
}

func (f *slowFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *slowFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if !f.asked.Swap(true) {
		f.disk.asked.Add(1)
	}
	<-f.disk.wait
	return fuse.ReadResultData(dest[:max(min(int64(len(dest)), slowFileSize-off), 0)]), 0
}

// newSlowDisk mounts a disk with so many files, named 0, 1 and so on.
func newSlowDisk(t *testing.T, files int) *slowDisk {
	t.Helper()
	d := &slowDisk{dir: t.TempDir(), files: files, wait: make(chan struct{})}
	root := &fs.Inode{}
	server, err := fs.Mount(d.dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, MaxBackground: 64 * files},
		OnAdd: func(ctx context.Context) {
			for i := range files {
				root.AddChild(fmt.Sprint(i), root.NewPersistentInode(ctx, &slowFile{disk: d}, fs.StableAttr{}), false)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount %s: %v", d.dir, err)
			_ = unix.Unmount(d.dir, unix.MNT_DETACH)
		}
	})
	return d
}

// acquire opens a file of a directory as the daemon does.
func acquire(t *testing.T, dir, name string) *share.File {
	t.Helper()
	s, err := share.Open("media", dir, share.Options{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Acquire(wire.FileRef{Share: "media", Path: name, Size: info.Size(), MTime: info.ModTime().UnixNano()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Release()
		s.Close()
	})
	return f
}

// TestColdReads: however many clients wait for a slow disk, few threads do, and what is in memory does not wait for them.
func TestColdReads(t *testing.T) {
	const clients = 3 * coldReads
	disk := newSlowDisk(t, clients)
	r := newColdReader()
	var done sync.WaitGroup
	for i := range clients {
		f := acquire(t, disk.dir, fmt.Sprint(i))
		done.Go(func() {
			if n := r.prepare(f, 0, slowFileSize); n != coldWindow {
				t.Errorf("file %d: %d bytes are ready, want %d", i, n, coldWindow)
			}
		})
	}
	deadline := time.Now().Add(patience)
	for disk.asked.Load() < coldReads {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are being read, want %d", disk.asked.Load(), coldReads)
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // for one too many
	if n := disk.asked.Load(); n != coldReads {
		t.Errorf("%d files are being read, want %d", n, coldReads)
	}
	warm := filepath.Join(t.TempDir(), "warm")
	if err := os.WriteFile(warm, make([]byte, slowFileSize), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := r.prepare(acquire(t, filepath.Dir(warm), "warm"), 0, slowFileSize); n != slowFileSize {
		t.Errorf("of a file in memory %d bytes are ready, want %d", n, slowFileSize)
	}
	close(disk.wait)
	done.Wait()
}

// TestColdWindow: what prepare says is ready is in memory.
func TestColdWindow(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "cold")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err = file.Write(make([]byte, slowFileSize)); err == nil {
		err = file.Sync() // else its pages cannot be dropped
	}
	if err == nil {
		err = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := acquire(t, dir, "cold")
	for offset := int64(0); offset < slowFileSize; {
		if offset == 0 && inMemory(f.Fd(), 0, slowFileSize) {
			t.Skip("the file system of the temporary directory keeps its files in memory")
		}
		n := newColdReader().prepare(f, offset, slowFileSize-offset)
		if n <= 0 {
			t.Fatalf("%d bytes are ready at %d", n, offset)
		}
		if !inMemory(f.Fd(), offset, n) {
			t.Fatalf("%d bytes are ready at %d, and not in memory", n, offset)
		}
		offset += n
	}
}
