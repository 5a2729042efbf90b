package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Names in the cache's directory.
const (
	indexName   = "index"
	newIndex    = "index.new"
	loadPiece   = 4 << 20 // bytes that are read at once
	rewriteFrom = 8 << 20 // bytes; a smaller log is not worth it
)

// index is the log of what is in the cache. Records are written by one goroutine, a moment after they were added: what a crash takes from the end costs a fetch.
type index struct {
	dir      string
	log      *slog.Logger
	snapshot func(add func(*record)) // everything that is live, for a new log
	wake     chan struct{}
	stopped  chan struct{}

	// The writer's alone.
	file    *os.File
	size    int64 // of the log
	rewrite int64 // at this size it is rewritten
	failing bool

	mu      sync.Mutex
	pending []byte
	closed  bool
}

// loadIndex reads the log in dir, if there is one.
func loadIndex(dir string, each func(*record)) (size int64, damaged bool, err error) {
	f, err := os.OpenFile(filepath.Join(dir, indexName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	buf, have := make([]byte, loadPiece+maxPayload+frameSize), 0
	for {
		n, err := io.ReadFull(f, buf[have:])
		size, have = size+int64(n), have+n
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return 0, false, err
		}
		done, bad := parseRecords(buf[:have], last, each)
		damaged = damaged || bad
		if last {
			return size, damaged, nil
		}
		have = copy(buf, buf[done:have])
	}
}

// openIndex opens the log for appending. fresh asks for a rewrite at once.
func openIndex(dir string, size int64, fresh bool, log *slog.Logger, snapshot func(add func(*record))) (*index, error) {
	f, err := os.OpenFile(filepath.Join(dir, indexName), os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	x := &index{dir: dir, log: log, snapshot: snapshot, wake: make(chan struct{}, 1), stopped: make(chan struct{}), file: f, size: size}
	if x.rewrite = 2*size + rewriteFrom; fresh {
		x.rewrite = 0
	}
	go x.run()
	x.nudge()
	return x, nil
}

func (x *index) nudge() {
	select {
	case x.wake <- struct{}{}:
	default: // it is awake, or will be
	}
}

// add appends a record, soon.
func (x *index) add(r *record) {
	x.mu.Lock()
	x.pending = appendRecord(x.pending, r)
	x.mu.Unlock()
	x.nudge()
}

// close writes what there is and ends the writer.
func (x *index) close() error {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.nudge()
	<-x.stopped
	return x.file.Close()
}

// run is the writer.
func (x *index) run() {
	defer close(x.stopped)
	var spare []byte
	for range x.wake {
		x.mu.Lock()
		b, closed := x.pending, x.closed
		x.pending = spare[:0]
		x.mu.Unlock()
		if len(b) > 0 {
			n, err := x.file.Write(b)
			x.size += int64(n)
			x.tell("the cache's index cannot be written; what is fetched now is fetched again after a restart", err)
		}
		if spare = b; cap(spare) > loadPiece {
			spare = nil // it was a burst
		}
		if closed {
			return
		}
		if x.size >= x.rewrite {
			err := x.renew()
			x.tell("the cache's index cannot be rewritten", err)
			x.rewrite = 2*x.size + rewriteFrom // also after a failure: there is time
		}
	}
}

// tell logs the first of several failures in a row.
func (x *index) tell(what string, err error) {
	if err != nil && !x.failing {
		x.log.Error(what, "error", err)
	}
	x.failing = err != nil
}

// renew writes a new log of what is live, and puts it in the old one's place. What is added meanwhile comes after it, if some of it for the second time: to
// read a record twice does nothing.
func (x *index) renew() error {
	name := filepath.Join(x.dir, newIndex)
	_ = os.Remove(name) // left behind by a crash, or planted; if it stays, the next line fails
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	var size int64
	var buf []byte
	flush := func() {
		if err == nil {
			var n int
			n, err = f.Write(buf)
			size += int64(n)
		}
		buf = buf[:0]
	}
	x.snapshot(func(r *record) {
		if buf = appendRecord(buf, r); len(buf) >= loadPiece {
			flush()
		}
	})
	flush()
	if err == nil {
		err = f.Sync() // before the old one goes
	}
	if err == nil {
		err = os.Rename(name, filepath.Join(x.dir, indexName))
	}
	if err != nil {
		f.Close()
		return errors.Join(err, os.Remove(name))
	}
	x.file.Close()
	x.file, x.size = f, size
	return syncDir(x.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
