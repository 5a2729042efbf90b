package qemu

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"time"
)

const (
	tailBytes    = 8 << 10
	tailLines    = 40
	pollInterval = 20 * time.Millisecond
)

// tail returns the last lines of a file, without carriage returns; empty when there is none.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(size-tailBytes, 0), io.SeekStart)
	}
	data, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(strings.ReplaceAll(string(data), "\r", ""))
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(len(lines)-tailLines, 0):], "\n")
}

// ConsoleTail returns the last lines of the guest's console.
func (vm *VM) ConsoleTail() string { return tail(vm.cfg.ConsolePath()) }

// WaitConsole waits until the guest's console shows a line that contains text, and returns that line. It looks at the console
// from the start of the VM on. When QEMU exits first the error wraps ErrExited, when the context ends first ErrTimeout;
// both carry the console's last lines.
func (vm *VM) WaitConsole(ctx context.Context, text string) (string, error) {
	const op = "wait for the console of"
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	scanner := consoleScanner{path: vm.cfg.ConsolePath(), text: []byte(text)}
	defer scanner.close()
	for {
		// Read once more after an exit: the line may be the guest's last.
		exited := vm.exited()
		if line, found, err := scanner.scan(); err != nil || found {
			if err != nil {
				return "", vm.fail(op, err)
			}
			return line, nil
		}
		if exited {
			return "", vm.fail(op, vm.exitError())
		}
		select {
		case <-ticker.C:
		case <-vm.done:
		case <-ctx.Done():
			return "", vm.fail(op, timeoutError(ctx))
		}
	}
}

// consoleScanner looks for a text in the complete lines of a file that grows.
type consoleScanner struct {
	path string
	text []byte
	file *os.File
	rest []byte // the line that has no end yet
}

func (s *consoleScanner) scan() (line string, found bool, err error) {
	if s.file == nil {
		if s.file, err = os.Open(s.path); err != nil {
			if os.IsNotExist(err) { // QEMU is about to create it
				err = nil
			}
			s.file = nil
			return "", false, err
		}
	}
	fresh, err := io.ReadAll(s.file)
	if err != nil {
		return "", false, err
	}
	s.rest = append(s.rest, fresh...)
	for {
		complete, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			return "", false, nil
		}
		s.rest = rest
		if bytes.Contains(complete, s.text) {
			return string(bytes.TrimRight(complete, "\r")), true, nil
		}
	}
}

func (s *consoleScanner) close() {
	if s.file != nil {
		s.file.Close()
	}
}
