package channel

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connect returns both ends of a unix channel.
func connect(t *testing.T, l Listener) (guest, host Conn) {
	t.Helper()
	guest, err := Dial(testContext(t), l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, guest)
	host, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return guest, closeAfter(t, host)
}

// leaveStale leaves a socket file as a killed daemon does.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
}

func TestUnixBothDirections(t *testing.T) {
	checkFDs(t)
	guest, host := connect(t, mustListen(t, socketAddress(t)))
	mustWrite(t, guest, "from the guest")
	mustRead(t, host, "from the guest")
	mustWrite(t, host, "from the host")
	mustRead(t, guest, "from the host")

	// More than the kernel buffers: Write must go on until everything is out.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	failed := make(chan error, 1)
	go func() {
		n, err := guest.Write(big)
		if err == nil && n != len(big) {
			err = io.ErrShortWrite
		}
		failed <- errors.Join(err, guest.Close())
	}()
	got, err := io.ReadAll(host)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("read %d bytes, %v; want the %d bytes written", len(got), err, len(big))
	}
	if err := receive(t, failed, "the write's end"); err != nil {
		t.Error(err)
	}
}

func TestUnixSocketFile(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	l := mustListen(t, addr)
	info, err := os.Lstat(addr.Path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fs.ModeSocket | socketMode; info.Mode() != want {
		t.Errorf("mode is %v, want %v", info.Mode(), want)
	}
	if l.Addr() != addr {
		t.Errorf("Addr() = %v, want %v", l.Addr(), addr)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(addr.Path)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v, want net.ErrClosed", err)
	}
	if _, err := Dial(t.Context(), addr); !errors.Is(err, ErrHostAway) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Dial without a file = %v, want ErrHostAway and its cause", err)
	}
}

func TestUnixGroup(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	other := 65534
	if os.Geteuid() != 0 {
		other = 0
	}
	l, err := Listen(addr, other)
	if other == 0 { // who may not give a file away leaves none
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Listen = %v, want a refusal", err)
		}
		if entries, _ := os.ReadDir(filepath.Dir(addr.Path)); len(entries) != 0 {
			t.Errorf("left behind: %v", entries)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, l)
	info, err := os.Stat(addr.Path)
	if err != nil {
		t.Fatal(err)
	}
	if gid := info.Sys().(*syscall.Stat_t).Gid; int(gid) != other || info.Mode().Perm() != socketMode {
		t.Errorf("the group is %d, the mode %v", gid, info.Mode())
	}
}

func TestUnixStaleFileIsReplaced(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	leaveStale(t, addr.Path)
	if _, err := Dial(t.Context(), addr); !errors.Is(err, ErrHostAway) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Dial to a stale file = %v, want ErrHostAway and its cause", err)
	}
	guest, host := connect(t, mustListen(t, addr))
	mustWrite(t, guest, "hello")
	mustRead(t, host, "hello")
}

func TestUnixLiveListenerIsLeftAlone(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	l := mustListen(t, addr)
	_, err := Listen(addr, NoGroup)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "this process itself") {
		t.Errorf("second Listen = %v, want ErrInUse and advice", err)
	}
	// The live daemon must not have seen a connection: its first one is ours.
	guest, host := connect(t, l)
	mustWrite(t, guest, "first")
	mustRead(t, host, "first")
}

func TestUnixDatagramSocketIsLeftAlone(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr.Path})
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, c)
	if _, err := Listen(addr, NoGroup); !errors.Is(err, ErrInUse) {
		t.Errorf("Listen = %v, want ErrInUse", err)
	}
}

func TestUnixOtherFileIsLeftAlone(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	if err := os.WriteFile(addr.Path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(addr, NoGroup); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Listen = %v, want a refusal", err)
	}
	if got, err := os.ReadFile(addr.Path); err != nil || string(got) != "precious" {
		t.Errorf("the file now holds %q, %v", got, err)
	}
}

func TestUnixDirectoryMissing(t *testing.T) {
	checkFDs(t)
	_, err := Listen(Address{Kind: Unix, Path: filepath.Join(t.TempDir(), "missing", "vm0.sock")}, NoGroup)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "directory must exist") {
		t.Errorf("Listen = %v, want ErrNotExist and advice", err)
	}
}

func TestUnixSuccessorsFileStays(t *testing.T) {
	checkFDs(t)
	addr := socketAddress(t)
	old := mustListen(t, addr)
	if err := os.Remove(addr.Path); err != nil {
		t.Fatal(err)
	}
	successor := mustListen(t, addr)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	guest, host := connect(t, successor)
	mustWrite(t, guest, "still here")
	mustRead(t, host, "still here")
}

// Daemons that start together over a stale file: one gets the address, and keeps it.
func TestUnixOneWinner(t *testing.T) {
	checkFDs(t)
	for range 20 {
		addr := socketAddress(t)
		leaveStale(t, addr.Path)
		const daemons = 4
		listeners := make([]Listener, daemons)
		var wg sync.WaitGroup
		for i := range daemons {
			wg.Go(func() {
				l, err := Listen(addr, NoGroup)
				if err == nil {
					listeners[i] = l
				} else if !errors.Is(err, ErrInUse) {
					t.Errorf("Listen = %v, want ErrInUse", err)
				}
			})
		}
		wg.Wait()
		winners := 0
		for _, l := range listeners {
			if l == nil {
				continue
			}
			winners++
			connect(t, l)
			l.Close()
		}
		if winners != 1 {
			t.Fatalf("%d listeners at one address", winners)
		}
	}
}

// testInterrupts checks what every Conn must do: deadlines and Close end a Read that waits. fill must make Write wait.
func testInterrupts(t *testing.T, c Conn) {
	t.Helper()
	past, never := time.Unix(1, 0), time.Time{}
	result := make(chan error)
	read := func() {
		_, err := c.Read(make([]byte, 1))
		result <- err
	}
	flood := func() {
		_, err := c.Write(make([]byte, 16<<20))
		result <- err
	}
	for _, test := range []struct {
		name      string
		work      func()
		interrupt func() error
		restore   func() error
		want      error
	}{
		{
			"read deadline", read,
			func() error { return c.SetReadDeadline(past) }, func() error { return c.SetReadDeadline(never) },
			os.ErrDeadlineExceeded,
		},
		{
			"write deadline", flood,
			func() error { return c.SetWriteDeadline(past) }, func() error { return c.SetWriteDeadline(never) },
			os.ErrDeadlineExceeded,
		},
		{"close", read, c.Close, func() error { return nil }, errClosed},
	} {
		go test.work()
		if err := test.interrupt(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		err := receive(t, result, test.name)
		closed := errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EBADF)
		if !errors.Is(err, test.want) && !(test.want == errClosed && closed) {
			t.Errorf("%s: work ended with %v, want %v", test.name, err, test.want)
		}
		if err := test.restore(); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// errClosed stands for os.ErrClosed (files), net.ErrClosed (sockets) and EBADF (vsock).
var errClosed = errors.New("closed")

func TestUnixInterrupts(t *testing.T) {
	checkFDs(t)
	guest, _ := connect(t, mustListen(t, socketAddress(t)))
	testInterrupts(t, guest)
}

func TestUnixAcceptInterrupt(t *testing.T) {
	checkFDs(t)
	l := mustListen(t, socketAddress(t))
	result := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		result <- err
	}()
	l.Close()
	if err := receive(t, result, "Accept"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
}
