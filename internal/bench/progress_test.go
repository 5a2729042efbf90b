package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestInterleave(t *testing.T) {
	var got []string
	err := Interleave(t.Context(), []string{"a", "b", "c"}, 3, func(_ context.Context, arm string, round int) error {
		got = append(got, fmt.Sprint(arm, round))
		return nil
	})
	want := []string{"a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}

	broken := errors.New("broken")
	calls := 0
	err = Interleave(t.Context(), []string{"a", "b"}, 5, func(context.Context, string, int) error { calls++; return broken })
	if !errors.Is(err, broken) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls = 0
	err = Interleave(ctx, []string{"a", "b"}, 5, func(context.Context, string, int) error { calls++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// script runs a progress through its life; the clock moves one second with each look at it.
func script(p *Progress) {
	clock := time.Unix(0, 0)
	p.now = func() time.Time { return clock }
	p.Update("nothing is under way")
	p.Step("booting the VM")
	for i := range 12 {
		clock = clock.Add(time.Second)
		p.Update("%d of 12", i+1)
	}
	fmt.Fprintln(p, "a log line")
	p.Done("up")
	p.Step("vm, tablet")
	clock = clock.Add(time.Millisecond)
	p.Update("too early to be drawn")
	p.Step("lease, tablet, a very long name of a step that is certainly wider than the terminal")
	p.Done("")
}

func TestProgressInALog(t *testing.T) {
	var b bytes.Buffer
	script(NewProgress(&b))
	want := `booting the VM: …
booting the VM: 5 of 12 (5s)
booting the VM: 10 of 12 (10s)
a log line
booting the VM: up (12s)
vm, tablet: …
vm, tablet: done (0s)
lease, tablet, a very long name of a step that is certainly wider than the terminal: …
lease, tablet, a very long name of a step that is certainly wider than the terminal: done (0s)
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	script(NewProgress(nil))
}

// openTerminal returns both ends of a pseudo-terminal of the given width: what is written to tty can be read from pty.
func openTerminal(t *testing.T, cols uint16) (pty, tty *os.File) {
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
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: cols}); err != nil {
		t.Fatal(err)
	}
	return pty, tty
}

func TestProgressOnATerminal(t *testing.T) {
	const cols = 40
	pty, tty := openTerminal(t, cols)
	script(NewProgress(tty))
	fmt.Fprintln(tty, "END")

	var got strings.Builder
	for buf := make([]byte, 4096); !strings.HasSuffix(got.String(), "END\r\n"); {
		n, err := pty.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		got.Write(buf[:n])
	}
	// What stays on the screen: each line as it was last written over.
	var screen []string
	drawn := 0
	for line := range strings.Lines(got.String()) {
		line = strings.TrimSuffix(line, "\r\n")
		parts := strings.Split(line, "\r\x1b[K")
		drawn += len(parts)
		for _, part := range parts[:len(parts)-1] {
			if len([]rune(part)) >= cols {
				t.Errorf("%q would wrap", part)
			}
		}
		screen = append(screen, parts[len(parts)-1])
	}
	want := []string{
		"a log line", "booting the VM: up (12s)", "vm, tablet: done (0s)",
		"lease, tablet, a very long name of a step that is certainly wider than the terminal: done (0s)", "END",
	}
	if diff := cmp.Diff(want, screen); diff != "" {
		t.Errorf("screen (-want +got):\n%s", diff)
	}
	if drawn < 12 {
		t.Errorf("the line was written over %d times, want each second", drawn)
	}
}
