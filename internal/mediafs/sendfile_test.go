package mediafs

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestSendfileUsesOurDescriptor lets net's sendfile(2) send ranges of a file. The bytes must come from the read position and must
// not pass through Read: a File whose kernel position moved without a Read was sent by the kernel.
func TestSendfileUsesOurDescriptor(t *testing.T) {
	d, path := newDir(t, Options{})
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	writeFile(t, filepath.Join(path, "f"), content)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	received := make(chan []byte, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			received <- nil
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		received <- b
	}()
	conn, err := net.DialTimeout("tcp", ln.Addr().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, r := range []struct{ offset, length int64 }{{0, 1 << 20}, {12345, 300_000}, {1<<20 - 10, 10}} {
		f := openFile(t, d, "f")
		if _, err := f.Seek(r.offset, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		src := &readCounter{File: f}
		n, err := conn.(*net.TCPConn).ReadFrom(&io.LimitedReader{R: src, N: r.length})
		if err != nil || n != r.length {
			t.Fatalf("ReadFrom: %d, %v", n, err)
		}
		if src.reads != 0 {
			t.Errorf("range at %d: %d reads, want sendfile(2)", r.offset, src.reads)
		}
		if _, offset, ok := f.HostFile(); !ok || offset != r.offset+r.length {
			t.Errorf("after sendfile: offset %d, want %d", offset, r.offset+r.length)
		}
		f.Close()
		want = append(want, content[r.offset:r.offset+r.length]...)
	}
	conn.Close()
	if !bytes.Equal(<-received, want) {
		t.Error("wrong bytes")
	}
	if got := d.Counters(); got.Opened != 1 {
		t.Errorf("%d opens for three ranges", got.Opened)
	}
}

type readCounter struct {
	*File
	reads int
}

func (r *readCounter) Read(p []byte) (int, error) {
	r.reads++
	return r.File.Read(p)
}
