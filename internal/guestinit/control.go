package guestinit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ControlPort is the name of the virtio-serial port that carries the control requests: one JSON object a line, one answer
// for each request. A guest without the port works without control.
const ControlPort = "spillway.ctl"

// Operations of the control port.
const (
	opPing       = "ping"
	opProcesses  = "ps"
	opSignal     = "signal"
	opCat        = "cat"
	opDropCaches = "dropcaches"
	opPowerOff   = "poweroff"
)

// request is one line from the host. Lines are at most maxRequestBytes long.
type request struct {
	ID     string // echoed; what was left for a host that went away reaches the next one, which must tell it from its own
	Op     string
	Name   string         `json:",omitempty"` // the command to signal
	Signal syscall.Signal `json:",omitempty"`
	Path   string         `json:",omitempty"` // the file to read
}

// response is one line to the host.
type response struct {
	ID        string
	Error     string    `json:",omitempty"`
	Data      []byte    `json:",omitempty"`
	Processes []Process `json:",omitempty"`
}

const (
	maxRequestBytes = 64 << 10
	maxFileBytes    = 4 << 20 // of a file that is read through the port

	controlPause    = 20 * time.Millisecond // while no host is there, or no port
	stopLimit       = 2 * time.Second       // for the commands to end before a power-off
	answerPause     = 50 * time.Millisecond // for QEMU to take the last answer
	dropAllCaches   = "3"                   // page cache, dentries and inodes: Documentation/admin-guide/sysctl/vm.rst
	dropCachesPath  = "/proc/sys/vm/drop_caches"
	virtioPortsPath = "/sys/class/virtio-ports"
)

// serveControl answers requests for the rest of the guest's life.
func serveControl(s *supervisor) {
	for {
		port, err := openPort(ControlPort)
		if err == nil {
			err = answerRequests(s, patientPort{port})
			port.Close()
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(s.console, "spillway: control port: %v\n", err)
		}
		time.Sleep(controlPause)
	}
}

// patientPort waits where a port reports the end of the file, which it does at once while no host is connected.
//
// The port must stay open meanwhile: closing it discards what the host has sent since the last read
// (drivers/char/virtio_console.c, port_fops_release), and that can be the first request of a host that just came.
type patientPort struct{ *os.File }

func (p patientPort) Read(buf []byte) (int, error) {
	for {
		n, err := p.File.Read(buf)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(controlPause)
	}
}

// openPort opens a virtio-serial port by its name, in non-blocking mode, which the Go runtime polls: a thread that blocks in
// read(2) on such a port costs a vCPU's wake-ups. The error is fs.ErrNotExist while there is no such port.
func openPort(name string) (*os.File, error) {
	names, err := filepath.Glob(virtioPortsPath + "/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		data, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(data)) != name {
			continue
		}
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(file)))
		fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: device, Err: err}
		}
		return os.NewFile(uintptr(fd), device), nil
	}
	return nil, &os.PathError{Op: "find port", Path: name, Err: os.ErrNotExist}
}

// answerRequests answers until the port fails or ends.
func answerRequests(s *supervisor, port io.ReadWriter) error {
	lines := bufio.NewScanner(port)
	lines.Buffer(nil, maxRequestBytes)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var req request
		if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
			// Half a line of an earlier host.
			fmt.Fprintf(s.console, "spillway: control port: request dropped: %v\n", err)
			continue
		}
		resp := s.answer(req)
		line, err := json.Marshal(resp)
		if err != nil {
			return err
		}
		if _, err := port.Write(append(line, '\n')); err != nil {
			return err
		}
		if req.Op == opPowerOff && resp.Error == "" {
			powerOff(s)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

// answer carries out one request, but for the power-off itself, which comes after its answer.
func (s *supervisor) answer(req request) response {
	resp := response{ID: req.ID}
	var err error
	switch req.Op {
	case opPing, opPowerOff:
	case opProcesses:
		resp.Processes = s.processes()
	case opSignal:
		err = s.signal(req.Name, req.Signal)
	case opCat:
		resp.Data, err = readFile(req.Path)
	case opDropCaches:
		unix.Sync()
		err = os.WriteFile(dropCachesPath, []byte(dropAllCaches), 0o200)
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	if err != nil {
		resp.Error = err.Error()
	}
	return resp
}

// readFile reads a file up to maxFileBytes; more is an error.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFileBytes)
	}
	return data, nil
}

// powerOff ends the guest and with it QEMU. It does not return when it succeeds.
func powerOff(s *supervisor) {
	s.stop(stopLimit)
	time.Sleep(answerPause)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintf(s.console, "spillway: power off: %v\n", err)
	}
}
