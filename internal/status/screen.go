package status

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Sequences of a terminal (ECMA-48, and DEC's private modes 7).
const (
	wrapOff     = "\x1b[?7l" // a line that is too long is cut by the terminal, so that lines can be written over
	wrapOn      = "\x1b[?7h"
	clearScreen = "\x1b[2J"
	cursorHome  = "\x1b[H"
	clearRest   = "\x1b[K" // of the line
	clearBelow  = "\x1b[J"
)

// screen shows one text after the other: on a terminal in the same place, elsewhere as blocks.
type screen struct {
	w        io.Writer
	terminal *os.File // nil: w is none
	drawn    bool
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb" {
		return s
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
		s.terminal = f
	}
	return s
}

// draw shows a text of whole lines in the place of the last one.
func (s *screen) draw(text []byte) error {
	var out bytes.Buffer
	switch {
	case s.terminal != nil:
		if out.WriteString(wrapOff); !s.drawn {
			out.WriteString(clearScreen)
		}
		out.WriteString(cursorHome)
		out.Write(bytes.ReplaceAll(s.crop(text), []byte("\n"), []byte(clearRest+"\n")))
		out.WriteString(clearBelow)
	default:
		if s.drawn && bytes.Count(text, []byte("\n")) > 1 {
			out.WriteByte('\n') // between blocks; JSON is one line each
		}
		out.Write(text)
	}
	s.drawn = true
	_, err := s.w.Write(out.Bytes())
	return err
}

// crop leaves out what has no place: the terminal would scroll, and the beginning be gone.
func (s *screen) crop(text []byte) []byte {
	size, err := unix.IoctlGetWinsize(int(s.terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Row < 3 {
		return text
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1] // what follows the last line end
	room := int(size.Row) - 1    // the cursor stands below
	if left := len(lines) - room; left > 0 {
		lines = append(lines[:room-1:room-1], fmt.Appendf(nil, "%d more lines have no place in this terminal; without --watch they are all there\n", left+1))
	}
	return bytes.Join(lines, nil)
}

// close leaves the terminal as it was, with the last text.
func (s *screen) close() {
	if s.terminal != nil {
		_, _ = io.WriteString(s.w, wrapOn+"\n") // behind the terminal's ^C
	}
}
