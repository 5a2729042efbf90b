package status

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo-terminal: what is written to tty can be read from pty.
func openTerminal(t *testing.T, rows uint16) (pty, tty *os.File) {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pty.Close() })
	fd := int(pty.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return pty, tty
}

// readUntil reads what was written to a terminal up to a mark.
func readUntil(t *testing.T, pty *os.File, mark string) string {
	t.Helper()
	var got bytes.Buffer
	for buf := make([]byte, 4096); !bytes.HasSuffix(got.Bytes(), []byte(mark)); {
		n, err := pty.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		got.Write(buf[:n])
	}
	return strings.TrimSuffix(got.String(), mark)
}

// TestScreenOnATerminal: each text is written over the last one, and one that is too long does not scroll.
func TestScreenOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	pty, tty := openTerminal(t, 4)
	s := newScreen(tty)
	for _, text := range []string{"one\ntwo\n", "three\n", "1\n2\n3\n", "1\n2\n3\n4\n5\n"} {
		if err := s.draw([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	fmt.Fprint(tty, "END")
	want := "\x1b[?7l\x1b[2J\x1b[H" + "one\x1b[K\r\ntwo\x1b[K\r\n" + "\x1b[J" +
		"\x1b[?7l\x1b[H" + "three\x1b[K\r\n" + "\x1b[J" +
		"\x1b[?7l\x1b[H" + "1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\r\n" + "\x1b[J" +
		"\x1b[?7l\x1b[H" + "1\x1b[K\r\n2\x1b[K\r\n3 more lines have no place in this terminal; without --watch they are all there\x1b[K\r\n" + "\x1b[J" +
		"\x1b[?7h\r\n"
	if got := readUntil(t, pty, "END"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestScreenElsewhere: no control sequences where nobody understands them.
func TestScreenElsewhere(t *testing.T) {
	t.Setenv("TERM", "dumb")
	pty, tty := openTerminal(t, 3)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, to := range []*os.File{tty, w} {
		s := newScreen(to)
		for _, text := range []string{"one\ntwo\n", "three\nfour\n", "{}\n"} {
			if err := s.draw([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		s.close()
		fmt.Fprint(to, "END")
	}
	w.Close()
	const want = "one\ntwo\n\nthree\nfour\n{}\n"
	if got := strings.ReplaceAll(readUntil(t, pty, "END"), "\r", ""); got != want {
		t.Errorf("a dumb terminal: %q", got)
	}
	if got := readUntil(t, r, "END"); got != want {
		t.Errorf("a pipe: %q", got)
	}
	r.Close()
	if err := newScreen(w).draw([]byte("x\n")); err == nil {
		t.Error("a failure to write is not told")
	}
}
