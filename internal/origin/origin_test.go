package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gocloud.dev/blob"
)

// kinds makes the same files in an origin of each kind.
func kinds(t *testing.T, files map[string][]byte, each func(t *testing.T, s *Source, put func(name string, data []byte))) {
	t.Run("dir", func(t *testing.T) {
		dir := t.TempDir()
		put := func(name string, data []byte) { writeFile(t, filepath.Join(dir, name), data) }
		for name, data := range files {
			put(name, data)
		}
		each(t, source(t, dir), put)
	})
	t.Run("http", func(t *testing.T) {
		web := newServer(t)
		put := func(name string, data []byte) { web.put("/base/"+name, data, fmt.Sprintf(`"%x"`, data[:1])) }
		for name, data := range files {
			put(name, data)
		}
		each(t, source(t, web.URL+"/base/"), put)
	})
	t.Run("s3", func(t *testing.T) {
		address := s3Server(t)
		b, err := blob.OpenBucket(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		put := func(name string, data []byte) {
			if err := b.WriteAll(t.Context(), name, data, nil); err != nil {
				t.Fatal(err)
			}
		}
		for name, data := range files {
			put(name, data)
		}
		each(t, source(t, address), put)
	})
}

// gatewayPath is where make test puts a real S3 server.
const gatewayPath = "../../build/cache/versitygw"

// s3Server runs versitygw on loopback and returns a bucket's address.
func s3Server(t *testing.T) string {
	path, err := exec.LookPath(gatewayPath)
	if err != nil {
		t.Skipf("no S3 server at %s: run make build/cache/versitygw", gatewayPath)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "user")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	data := t.TempDir()
	if err := os.Mkdir(filepath.Join(data, "bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--port", addr, "--access", "user", "--secret", "secret", "--quiet", "posix", data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("versitygw: %s", &log)
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return "s3://bucket?region=us-east-1&use_path_style=true&endpoint=http://" + addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not listen: %v\n%s", err, &log)
		}
	}
}

func TestKinds(t *testing.T) {
	big := content(1<<20 + 77)
	files := map[string][]byte{"a": []byte("abc"), "d/e f/ü#?%41.m4s": big}
	kinds(t, files, func(t *testing.T, s *Source, put func(string, []byte)) {
		for name, want := range files {
			v := stat(t, s, name)
			if v.Size != int64(len(want)) || v.ModTime.IsZero() {
				t.Errorf("%s: %+v", name, v)
			}
			for _, r := range [][2]int64{{0, v.Size}, {1, 1}, {v.Size - 1, 1}, {v.Size / 2, v.Size - v.Size/2}} {
				got, err := fetch(t.Context(), s, name, v, r[0], r[1])
				if err != nil || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
					t.Errorf("%s: %d bytes at %d: %d bytes, %v", name, r[1], r[0], len(got), err)
				}
			}
		}
		for _, name := range []string{"none", "d", "a/b", "../a", "d/../a", "", ".", "/a", "a/", "d//e", "a\x00", strings.Repeat("n", 1025), "\xff"} {
			if v, err := s.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat(%q): %+v, %v", name, v, err)
			}
		}
		// Another version is never given out for the one that was asked for.
		old := stat(t, s, "a")
		put("a", []byte("xyz!"))
		if got, err := fetch(t.Context(), s, "a", old, 0, 3); !errors.Is(err, ErrChanged) || len(got) > 0 {
			t.Errorf("replaced: %q, %v", got, err)
		}
		if v := stat(t, s, "a"); v.Same(old) || v.TimeNs() == old.TimeNs() {
			t.Errorf("%+v looks like %+v", v, old)
		}
	})
}

// TestDirStays plants what would lead out of a directory, and a FIFO, which blocks who opens it.
func TestDirStays(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "secret"), []byte("s"))
	writeFile(t, filepath.Join(dir, "f"), []byte("f"))
	if err := errors.Join(os.Symlink(outside, dir+"/out"), os.Symlink(outside+"/secret", dir+"/link"), os.Symlink("f", dir+"/inside"),
		syscall.Mkfifo(dir+"/fifo", 0o644)); err != nil {
		t.Fatal(err)
	}
	s := source(t, dir, func(o *Options, _ *HTTPOptions) { o.Attempts = 1 })
	for _, name := range []string{"out/secret", "link", "fifo"} {
		if _, err := s.Stat(t.Context(), name); err == nil {
			t.Errorf("Stat(%q) worked", name)
		}
		if got, err := fetch(t.Context(), s, name, Version{Size: 1}, 0, 1); err == nil || len(got) > 0 {
			t.Errorf("Fetch(%q): %q, %v", name, got, err)
		}
	}
	if v := stat(t, s, "inside"); v.Size != 1 {
		t.Errorf("a link within the directory: %+v", v)
	}
}

// TestDirChangesWhileRead rewrites a file in place after the first bytes are read.
func TestDirChangesWhileRead(t *testing.T) {
	dir := t.TempDir()
	data := content(2 * pieceSize)
	writeFile(t, dir+"/f", data)
	s := source(t, dir)
	v := stat(t, s, "f")
	var got int
	err := s.Fetch(t.Context(), "f", v, 0, v.Size, func(p []byte) error {
		if got == 0 {
			writeFile(t, dir+"/f", make([]byte, len(data)))
			if err := os.Chtimes(dir+"/f", modified, modified); err != nil {
				return err
			}
		}
		got += len(p)
		return nil
	})
	if !errors.Is(err, ErrChanged) || got == len(data) {
		t.Errorf("%d bytes, %v", got, err)
	}
}

func TestVersion(t *testing.T) {
	v := Version{Size: 1, ModTime: modified, ETag: `"a"`}
	for _, c := range []struct {
		name  string
		other Version
		same  bool
	}{
		{"itself", v, true},
		{"size", Version{2, modified, `"a"`}, false},
		{"ETag", Version{1, modified, `"b"`}, false},
		{"weak", Version{1, modified, `W/"a"`}, true},
		{"rewritten as it was", Version{1, modified.Add(time.Hour), `"a"`}, true},
		{"no ETag", Version{1, modified, ""}, true},
		{"no ETag, other time", Version{1, modified.Add(1), ""}, false},
	} {
		if got := v.Same(c.other); got != c.same {
			t.Errorf("%s: same %t", c.name, got)
		}
	}
	if a, b := v.TimeNs(), (Version{1, modified, `"b"`}).TimeNs(); a == b || a/1e9 != modified.Unix() || b/1e9 != modified.Unix() {
		t.Errorf("times %d and %d", a, b)
	}
	if got := (Version{1, modified, ""}).TimeNs(); got != modified.UnixNano() {
		t.Errorf("time %d", got)
	}
}

func TestOpenAddresses(t *testing.T) {
	for _, address := range []string{"", "relative", "ftp://host/", "/does/not/exist", "file:///does/not/exist", "s3://", "http://[bad"} {
		if o, err := Open(context.Background(), address, HTTPOptions{}); err == nil {
			o.Close()
			t.Errorf("%q was taken", address)
		}
	}
}

func TestDefaultTransportIsNotUsed(t *testing.T) {
	o := newHTTP(mustParse("http://x/"), HTTPOptions{})
	if o.client.Transport == nil || o.client.Transport == http.DefaultTransport {
		t.Error("the origin's time-outs and connections must be its own")
	}
}
