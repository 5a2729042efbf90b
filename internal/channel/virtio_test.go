package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const portName = "spillway.0"

var portAddress = Address{Kind: Virtio, Name: portName}

// fakePorts makes a sysfs class with one directory for each name ("" for a port that has none), and an empty /dev.
func fakePorts(t *testing.T, names ...string) ports {
	t.Helper()
	root := t.TempDir()
	p := ports{sysfs: filepath.Join(root, "sys"), dev: filepath.Join(root, "dev"), open: openPort}
	if err := os.Mkdir(p.dev, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		dir := filepath.Join(p.sysfs, fmt.Sprintf("vport0p%d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name+"\n"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// plugPTY lets a pseudo-terminal stand for the port's device: a character device that is polled, takes few bytes at a time
// and reads as ended when its other side closes. It returns that other side, the host's.
func plugPTY(t *testing.T, p ports) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host := closeAfter(t, os.NewFile(uintptr(fd), "ptmx"))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0 // raw: no echo, no lines, no translation
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	link(t, p, fmt.Sprintf("/dev/pts/%d", number))
	return host
}

// link makes target the device node of port 1.
func link(t *testing.T, p ports, target string) {
	t.Helper()
	node := filepath.Join(p.dev, "vport0p1")
	os.Remove(node)
	if err := os.Symlink(target, node); err != nil {
		t.Fatal(err)
	}
}

// plugSocket lets one end of a socket pair stand for the port's device and returns the other one.
func plugSocket(t *testing.T, p *ports) (host *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.open = func(string) (int, error) { return pair[0], nil }
	return closeAfter(t, os.NewFile(uintptr(pair[1]), "host"))
}

func mustDialVirtio(t *testing.T, p ports) Conn {
	t.Helper()
	c, err := dialVirtio(portAddress, p)
	if err != nil {
		t.Fatal(err)
	}
	return closeAfter(t, c)
}

func TestVirtioNoPort(t *testing.T) {
	checkFDs(t)
	for _, test := range []struct {
		name    string
		ports   []string
		present []string
		message string
	}{
		{"no driver", nil, nil, "virtio_console"},
		{"other ports", []string{"org.qemu.guest_agent.0", "", "spillway.01"}, []string{"org.qemu.guest_agent.0", "spillway.01"}, "guest_agent.0, spillway.01"},
	} {
		_, err := dialVirtio(portAddress, fakePorts(t, test.ports...))
		var missing *NoPortError
		if !errors.As(err, &missing) {
			t.Fatalf("%s: %v, want NoPortError", test.name, err)
		}
		if missing.Name != portName || !slices.Equal(missing.Present, test.present) {
			t.Errorf("%s: %+v, want present %q", test.name, missing, test.present)
		}
		for _, part := range []string{test.message, "-device virtserialport,chardev=spillway,name=" + portName} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %q does not say %q", test.name, err, part)
			}
		}
	}
}

func TestVirtioRefusals(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	refusing := func(err error) func(string) (int, error) {
		return func(string) (int, error) { return -1, os.NewSyscallError("open", err) }
	}
	regular := filepath.Join(t.TempDir(), "regular")
	if err := os.WriteFile(regular, []byte("no device"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		open    func(string) (int, error)
		want    error
		message string
	}{
		{"no node", openPort, unix.ENOENT, "devtmpfs"},
		{"busy", refusing(unix.EBUSY), unix.EBUSY, "another process"},
		{"forbidden", refusing(unix.EACCES), unix.EACCES, "root"},
		{"unplugged", refusing(unix.ENXIO), unix.ENXIO, ""},
		{"not a device", func(string) (int, error) { return openPort(regular) }, os.ErrNoDeadline, "cannot be polled"},
	} {
		p.open = test.open
		_, err := dialVirtio(portAddress, p)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.message) {
			t.Errorf("%s: %v, want %v with %q", test.name, err, test.want, test.message)
		}
	}
}

func TestVirtioBothDirections(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	host := plugPTY(t, p)
	guest := mustDialVirtio(t, p)
	mustWrite(t, host, "from the host")
	mustRead(t, guest, "from the host")

	// A terminal takes 4 KiB at most and then answers EAGAIN: Write must go on until everything is out.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	failed := make(chan error, 1)
	go func() {
		n, err := guest.Write(big)
		if err == nil && n != len(big) {
			err = io.ErrShortWrite
		}
		failed <- err
	}()
	got := make([]byte, len(big))
	if n, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, big) {
		t.Errorf("read %d bytes, %v; want the %d bytes written", n, err, len(big))
	}
	if err := receive(t, failed, "the write's end"); err != nil {
		t.Error(err)
	}
}

func TestVirtioInterrupts(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	plugPTY(t, p)
	testInterrupts(t, mustDialVirtio(t, p))
}

// With the host away the driver ends reads and makes writes wait. A socket whose peer has shut down its sending side does
// the same.
func TestVirtioHostLeaves(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	host := plugSocket(t, &p)
	guest := mustDialVirtio(t, p)
	mustWrite(t, guest, "before")
	mustRead(t, host, "before")

	result := make(chan error, 1)
	go func() {
		_, err := guest.Write(make([]byte, 16<<20)) // nobody reads it
		result <- err
	}()
	if err := unix.Shutdown(int(host.Fd()), unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if n, err := guest.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read = %d, %v; want io.EOF itself, as io.ReadFull needs", n, err)
	}
	if err := receive(t, result, "the blocked write"); !errors.Is(err, ErrHostAway) {
		t.Errorf("blocked Write = %v, want ErrHostAway", err)
	}
	if err := guest.SetWriteDeadline(time.Time{}); err != nil {
		t.Error(err)
	}
	if _, err := guest.Write([]byte("after")); !errors.Is(err, ErrHostAway) {
		t.Errorf("Write after the end = %v, want ErrHostAway", err)
	}
}

func TestVirtioHostAwayAtDial(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	plugSocket(t, &p).Close()
	if _, err := dialVirtio(portAddress, p); !errors.Is(err, ErrHostAway) {
		t.Errorf("dial = %v, want ErrHostAway", err)
	}
}

// The host goes and comes back under a running Keep.
func TestVirtioKeep(t *testing.T) {
	checkFDs(t)
	p := fakePorts(t, "other", portName)
	ctx, cancel := context.WithCancel(testContext(t))
	began := make(chan struct{})
	k := newKeeper(
		func(context.Context) (Conn, error) { return dialVirtio(portAddress, p) },
		func(_ context.Context, c Conn) error {
			began <- struct{}{}
			_, err := io.Copy(c, c)
			return err
		}, KeepOptions{})
	ended := make(chan error, 1)
	for _, word := range []string{"first", "second", "third"} {
		host := plugPTY(t, p)
		if word == "first" {
			go func() { ended <- k.run(ctx) }()
		}
		receive(t, began, "a session")
		mustWrite(t, host, word)
		mustRead(t, host, word)
		if word != "third" {
			host.Close()
		}
	}
	cancel()
	if err := receive(t, ended, "Keep's end"); !errors.Is(err, context.Canceled) {
		t.Errorf("Keep = %v, want context.Canceled", err)
	}
}
