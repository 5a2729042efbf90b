package e2e

import (
	"io"
	"net/http"
	"testing"

	"golang.org/x/sys/unix"

	"spillway/internal/lab"
)

// TestUrgent: a byte that a client sends as urgent is one among the others, on a connection of any arm, also when it changes hands at this moment.
func TestUrgent(t *testing.T) {
	files := newMedia(t)
	l := newLab(t, files)
	check := watchResets(t, l)
	for _, arm := range []lab.Arm{lab.VM, lab.Offload, lab.Lease} {
		for range 10 {
			c := dial(t, l, arm)
			c.get("64k.m4s", files.files["64k.m4s"])
			for _, part := range []struct {
				text string
				flag int
			}{{"GET " + target("4k.m4s") + " HTTP/1.1\r\nHost: ", 0}, {"x", unix.MSG_OOB}, {"\r\n\r\n", 0}} {
				raw, err := c.SyscallConn()
				must(t, err)
				must(t, raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte(part.text), part.flag, nil) }))
				must(t, err)
				if part.flag != 0 {
					recall(t, l)
				}
			}
			resp, err := c.header(http.MethodGet)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %+v, %v", arm, resp, err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != string(files.files["4k.m4s"]) {
				t.Fatalf("%s: %d bytes, %v", arm, len(body), err)
			}
			c.get("64k.m4s", files.files["64k.m4s"])
			c.Close()
		}
	}
	noLeases(t, l)
	check()
}
