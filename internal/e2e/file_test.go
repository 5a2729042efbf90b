package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/guest"
	"spillway/internal/lab"
)

// eachWay runs a test for every way in which a guest sees a share and sends from it.
func eachWay(t *testing.T, files *media, l *lab.Lab, run func(t *testing.T, arm lab.Arm)) {
	for _, arm := range []lab.Arm{lab.VM, lab.Lease, lab.Offload} {
		t.Run(string(arm), func(t *testing.T) { run(t, arm) })
	}
	for _, arm := range offloading {
		t.Run(string(arm)+" without mount", func(t *testing.T) {
			serveWithoutMount(t, l, arm)
			run(t, arm)
		})
		restartServer(t, l, arm)
	}
}

// TestNoSuchFile: what is no regular file beneath the share is not found, at once and without a word about why, on new connections and on
// leased ones.
func TestNoSuchFile(t *testing.T) {
	files := newMedia(t)
	outside := filepath.Join(t.TempDir(), "secret.mp4")
	must(t, os.WriteFile(outside, []byte("not for clients"), 0o644))
	at := func(name string) string { return filepath.Join(files.dir, name) }
	must(t, os.Symlink(outside, at("outside.mp4")))
	must(t, os.Symlink("../../../../../../../../etc/passwd", at("passwd")))
	must(t, os.Symlink(filepath.Dir(outside), at("away")))
	must(t, os.Symlink("loop", at("loop")))
	must(t, os.Symlink("nowhere", at("dangling")))
	must(t, unix.Mkfifo(at("fifo"), 0o644))
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(7, 250)))) // a loop device that nobody has
	socket, err := net.Listen("unix", at("socket"))
	must(t, err)
	defer socket.Close()
	l := newLab(t, files)
	targets := []string{
		"missing.mp4", "tablet", "tablet/", "", "10m.mp4/", "10m.mp4/x", "outside.mp4", "passwd", "away/secret.mp4", "loop", "dangling", "fifo",
		"null", "disk", "socket", "..%2fsecret.mp4", "..%2F..%2F..%2Fetc%2Fpasswd", "%2e%2e/%2e%2e/etc/passwd", "tablet/..%2f..%2f..%2fetc/passwd",
		"%2fetc%2fpasswd", "..%5c..%5cetc%5cpasswd", "10m.mp4%00", "a%00b", "./10m.mp4", "tablet/../10m.mp4",
	}
	eachWay(t, files, l, func(t *testing.T, arm lab.Arm) {
		leased := dial(t, l, arm)
		for _, name := range targets {
			for _, c := range []*client{dial(t, l, arm), leased} {
				if c == leased {
					c.get("10m.mp4", files.files["10m.mp4"])
				}
				began := time.Now()
				status, body := c.getStatus("/media/" + name)
				if status != http.StatusNotFound || bytes.Contains(body, []byte("not for clients")) || bytes.Contains(body, []byte("root:")) {
					t.Errorf("%q: status %d, body %.100q; want 404", name, status, body)
				}
				if took := time.Since(began); took > hangLimit {
					t.Errorf("%q: took %v", name, took)
				}
			}
		}
		leased.get("10m.mp4", files.files["10m.mp4"])
	})
}

// TestSymlinkInside: a link within the tree may be followed by the guest, but never by the host, which then sends nothing; without a mount it
// is the host that looks, so there is no such file.
func TestSymlinkInside(t *testing.T) {
	files := newMedia(t)
	must(t, os.Symlink("10m.mp4", filepath.Join(files.dir, "link.mp4")))
	must(t, os.Symlink("tablet", filepath.Join(files.dir, "linked")))
	l := newLab(t, files)
	for _, arm := range offloading {
		t.Run(string(arm), func(t *testing.T) {
			c := dial(t, l, arm)
			for range 2 {
				c.get("link.mp4", files.files["10m.mp4"])
				c.get("linked/1 (1).m4s", files.files["tablet/1 (1).m4s"])
				c.get("10m.mp4", files.files["10m.mp4"])
			}
			var s guest.Snapshot
			eventually(t, "the links are refused as forbidden and the others sent", func() bool {
				s = serverStats(t, l, arm)
				// In the arm offload a response may find the one before it, which the guest has sent, not acknowledged yet.
				return s.Fallbacks["forbidden"] > 0 && s.Fallbacks["forbidden"]+s.Counts.Sends+s.Fallbacks["unacked"] == 6
			})
			if s.Counts.SentBytes != s.Counts.Sends*uint64(len(files.files["10m.mp4"])) {
				t.Errorf("the host has sent %d bytes of %d files: not only the one that is no link", s.Counts.SentBytes, s.Counts.Sends)
			}
		})
		t.Run(string(arm)+" without mount", func(t *testing.T) {
			serveWithoutMount(t, l, arm)
			if status, _ := dial(t, l, arm).getStatus(target("link.mp4")); status != http.StatusNotFound {
				t.Errorf("status %d, want 404", status)
			}
		})
	}
}

// TestFileReplaced: after a rename a client gets the old file, the new one, or a connection that is closed, and never a mix; soon it gets the new
// one. The validator in the header belongs to the body.
func TestFileReplaced(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	eachWay(t, files, l, func(t *testing.T, arm lab.Arm) {
		for _, sameSize := range []bool{true, false} {
			replaced(t, files, l, arm, sameSize)
		}
	})
}

func replaced(t *testing.T, files *media, l *lab.Lab, arm lab.Arm, sameSize bool) {
	const name = "10m.mp4"
	current := files.files[name]
	leased := dial(t, l, arm)
	if !leased.get(name, current) {
		return
	}
	etags := map[string]string{} // by validator, "old" or "new"
	etags[etag(t, dial(t, l, arm), name)] = "old"

	size := len(current)
	if !sameSize {
		size = 3_000_000
	}
	next := files.fresh(size)
	files.files[name] = next
	must(t, os.WriteFile(filepath.Join(files.dir, "next"), next, 0o644))
	must(t, os.Rename(filepath.Join(files.dir, "next"), filepath.Join(files.dir, name)))
	refused := 0
	seen := func(c *client) (content string) {
		resp, got, err := c.fetchAny(name)
		switch {
		case err != nil:
			refused++
			if !closedByPeer(err) {
				t.Errorf("%v; want a whole body or a closed connection", err)
			}
			if !bytes.HasPrefix(current, got) && !bytes.HasPrefix(next, got) {
				t.Error("a short body is of neither file")
			}
			return "refused"
		case resp.StatusCode == http.StatusServiceUnavailable:
			return "refused"
		case bytes.Equal(got, current):
			content = "old"
		case bytes.Equal(got, next):
			content = "new"
		default:
			t.Fatalf("status %d, %d bytes that are neither the old file nor the new one", resp.StatusCode, len(got))
		}
		tag := resp.Header.Get("ETag")
		if known := etags[tag]; known != "" && known != content {
			t.Errorf("the %s file came with the ETag of the %s one", content, known)
		}
		etags[tag] = content
		return content
	}
	seen(leased)
	eventually(t, "the new file comes", func() bool {
		c := dial(t, l, arm)
		defer c.Close()
		return seen(c) == "new"
	})
	if _, got, err := leased.fetchAny(name); err == nil && !bytes.Equal(got, next) {
		t.Errorf("%d bytes of the old file after the new one was served", len(got))
	}
	t.Logf("same size %v: %d refusals until the new file came", sameSize, refused)
}

func etag(t *testing.T, c *client, name string) string {
	t.Helper()
	defer c.Close()
	if !c.send(c.request(http.MethodHead, name)) {
		t.FailNow()
	}
	resp, err := c.header(http.MethodHead)
	must(t, err)
	return resp.Header.Get("ETag")
}

// fetchAny asks for a file and returns what came.
func (c *client) fetchAny(name string) (*http.Response, []byte, error) {
	if _, err := io.WriteString(c.TCPConn, c.request(http.MethodGet, name)); err != nil {
		return nil, nil, io.EOF // an earlier refusal has closed the connection
	}
	resp, err := c.header(http.MethodGet)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// TestFileTruncatedInTransfer: the client gets a short body and a closed connection. What lies before the cut is right.
func TestFileTruncatedInTransfer(t *testing.T) {
	files := newBigMedia(t)
	l := newLab(t, files)
	want := files.files[bigFile]
	const kept = 30_000_001 // within a page
	for _, arm := range []lab.Arm{lab.VM, lab.Lease, lab.Offload} {
		t.Run(string(arm), func(t *testing.T) {
			must(t, os.WriteFile(filepath.Join(files.dir, bigFile), want, 0o644))
			time.Sleep(1100 * time.Millisecond) // the guest's attributes are of the file as it was before
			c := dial(t, l, arm, receiveBuffer(smallBuffer))
			c.begin(bigFile, want, readSome)
			must(t, os.Truncate(filepath.Join(files.dir, bigFile), kept))
			c.takeCut(want[readSome:])
			eventually(t, "the file has its new length", func() bool {
				_, body, err := dial(t, l, arm).fetchAny(bigFile)
				return err == nil && bytes.Equal(body, want[:kept])
			})
		})
	}
	noLeases(t, l)
}

// TestFilesChangeUnderLoad: files are replaced all the time while many clients ask for them. Every body that comes whole is one of the versions.
func TestFilesChangeUnderLoad(t *testing.T) {
	files := newMedia(t)
	const name, versions, size = "live.m4s", 6, 1 << 20
	var all [][]byte
	for range versions {
		all = append(all, files.fresh(size))
	}
	put := func(i int) {
		must(t, os.WriteFile(filepath.Join(files.dir, "next"), all[i%versions], 0o644))
		must(t, os.Rename(filepath.Join(files.dir, "next"), filepath.Join(files.dir, name)))
	}
	put(0)
	l := newLab(t, files)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	counts := make([]int, 4)
	for i := range counts {
		arm := offloading[i%2]
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := dial(t, l, arm)
				for range 20 {
					_, body, err := c.fetchAny(name)
					if err != nil {
						if !closedByPeer(err) {
							t.Errorf("%s: %v", arm, err)
						}
						break
					}
					whole := false
					for _, v := range all {
						whole = whole || bytes.Equal(body, v)
					}
					if !whole {
						t.Errorf("%s: %d bytes that are no version of the file", arm, len(body))
						return
					}
					counts[i]++
				}
				c.Close()
			}
		})
	}
	for i := range 30 {
		put(i)
		time.Sleep(100 * time.Millisecond)
	}
	close(stop)
	clients.Wait()
	for i, n := range counts {
		if n == 0 {
			t.Errorf("client %d (%s) never got a whole body", i, offloading[i%2])
		}
	}
	noLeases(t, l)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
