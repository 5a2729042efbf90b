package bench

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	redrawEvery  = 100 * time.Millisecond // on a terminal
	repeatEvery  = 5 * time.Second        // elsewhere: a log shall not fill up
	fallbackCols = 80                     // when the terminal does not say
)

// Progress shows what is being done at every moment. On a terminal it is one line that is written over; elsewhere (a pipe, a CI log)
// each step is a line of its own when it begins and when it ends, and every 5 s while it goes on. It is safe for concurrent use.
type Progress struct {
	w        io.Writer
	terminal *os.File // nil: w is none
	now      func() time.Time

	mu      sync.Mutex // guards the fields below and the order of writes
	step    string     // empty: nothing is under way
	began   time.Time
	drawn   time.Time
	visible bool // the terminal's line is not empty
}

// NewProgress writes to w, for which os.Stderr is the usual choice. A nil w shows nothing.
func NewProgress(w io.Writer) *Progress {
	if w == nil {
		w = io.Discard
	}
	p := &Progress{w: w, now: time.Now}
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.terminal = f
		}
	}
	return p
}

// Step begins a step, and ends the one before.
func (p *Progress) Step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end("")
	p.step, p.began = fmt.Sprintf(format, args...), p.now()
	p.draw("…")
}

// Update says how far the step has come, as in "12 of 351 segments". Most calls write nothing.
func (p *Progress) Update(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	every := repeatEvery
	if p.terminal != nil {
		every = redrawEvery
	}
	if p.step == "" || p.now().Sub(p.drawn) < every {
		return
	}
	p.draw(fmt.Sprintf(format, args...))
}

// Done ends the step. The result, if there is one, stays to be seen, with the time that the step took.
func (p *Progress) Done(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(fmt.Sprintf(format, args...))
}

// Write implements io.Writer, for whole lines of others (a log) that must not tear the progress line.
func (p *Progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	return p.w.Write(b)
}

// end writes the step's last line. p.mu is held.
func (p *Progress) end(result string) {
	if p.step == "" {
		return
	}
	if result == "" {
		result = "done"
	}
	p.erase()
	fmt.Fprintf(p.w, "%s: %s (%s)\n", p.step, result, p.elapsed())
	p.step = ""
}

// draw shows the step with a note. p.mu is held.
func (p *Progress) draw(note string) {
	p.drawn = p.now()
	line := fmt.Sprintf("%s: %s", p.step, note)
	if elapsed := p.elapsed(); elapsed > 0 {
		line += fmt.Sprintf(" (%s)", elapsed)
	}
	if p.terminal == nil {
		fmt.Fprintln(p.w, line)
		return
	}
	if runes, cols := []rune(line), p.columns(); len(runes) >= cols { // a wrapped line could not be written over
		line = string(runes[:cols-1])
	}
	p.erase()
	fmt.Fprint(p.w, line)
	p.visible = true
}

// erase empties the terminal's line. p.mu is held.
func (p *Progress) erase() {
	if p.visible {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.visible = false
	}
}

func (p *Progress) elapsed() time.Duration {
	return p.now().Sub(p.began).Round(100 * time.Millisecond)
}

func (p *Progress) columns() int {
	size, err := unix.IoctlGetWinsize(int(p.terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col < 2 {
		return fallbackCols
	}
	return int(size.Col)
}
