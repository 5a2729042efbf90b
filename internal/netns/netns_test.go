package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that happens at once on an idle machine.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// current is the namespace of the calling thread.
func current() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

func newNamespace(t *testing.T, name string) *Namespace {
	t.Helper()
	ns, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestDo(t *testing.T) {
	ns := newNamespace(t, "one")
	outside, err := current()
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	if err := ns.Do(func() (err error) { inside, err = current(); return err }); err != nil || inside == outside {
		t.Errorf("inside is %s, outside %s, %v", inside, outside, err)
	}
	for range 20 { // no thread of the process may be left inside
		got, err := current()
		if err != nil || got != outside {
			t.Errorf("after Do this thread is in %s, %v", got, err)
		}
		runtime.Gosched()
	}
	cause := errors.New("cause")
	if err := ns.Do(func() error { return cause }); !errors.Is(err, cause) || !strings.Contains(err.Error(), "one") {
		t.Errorf("Do says %v", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do hides that the function ended its goroutine")
	}
}

func TestNamed(t *testing.T) {
	name := fmt.Sprintf("spwtest-%d-%x", os.Getpid(), rand.Uint32())
	ns, err := Named(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Delete(name) })
	if ns.Path() != filepath.Join("/run/netns", name) {
		t.Errorf("path is %s", ns.Path())
	}
	if _, err := Named(name); err == nil {
		t.Error("a name can be used twice")
	}
	again, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	var a, b string
	err = errors.Join(
		ns.Do(func() (err error) { a, err = current(); return err }),
		again.Do(func() (err error) { b, err = current(); return err }),
	)
	if err != nil || a != b {
		t.Errorf("Open found %s, want %s, %v", b, a, err)
	}
	if err := errors.Join(ns.Close(), again.Close(), Delete(name)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", ns.Path(), err)
	}
	if err := Delete(name); err != nil {
		t.Errorf("the second Delete: %v", err)
	}
	if _, err := Open(name); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("Open of what is gone says %v", err)
	}
}

// TestVeth carries a connection of each family over a link, and sees its bytes in the counters.
func TestVeth(t *testing.T) {
	left, right := newNamespace(t, "left"), newNamespace(t, "right")
	err := errors.Join(
		left.Veth("toright", 10, right, "eth0"),
		left.Addresses("toright", netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("fd01::1/64")),
		right.Addresses("eth0", netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd01::2/64")),
		right.DefaultRoutes(netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")),
		left.Sysctl("net/ipv4/ip_forward", "1"),
		left.Limit("toright", 1e9),
	)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 300_000)
	for _, address := range []string{"10.1.0.1:0", "[fd01::1]:0"} {
		var l net.Listener
		if err := left.Do(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		served := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = c.Write(content)
				err = errors.Join(err, c.Close())
			}
			served <- err
		}()
		c, err := right.Dial(&net.Dialer{Timeout: patience}, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", address, len(got), err)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	c, err := left.Counters("toright")
	if err != nil || c.TxBytes < uint64(2*len(content)) || c.RxBytes == 0 || c.RxBytes > c.TxBytes {
		t.Errorf("counters are %+v, %v", c, err)
	}
}

// TestTap: the tap is persistent, and nothing of it stays open.
func TestTap(t *testing.T) {
	ns := newNamespace(t, "host")
	before := openFiles(t)
	if err := errors.Join(ns.Tap("tap0"), ns.Addresses("tap0", netip.MustParsePrefix("10.2.0.1/24")), ns.Up("tap0")); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestCongestion: connections to the addresses use it, on a direct way and through a gateway, in both families; others do not.
func TestCongestion(t *testing.T) {
	left, right := newNamespace(t, "left"), newNamespace(t, "right")
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2"), netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("fd02::2")}
	err := errors.Join(
		left.Veth("toright", 10, right, "eth0"),
		left.Addresses("toright", netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("fd01::1/64")),
		right.Addresses("eth0", netip.PrefixFrom(addrs[0], 24), netip.PrefixFrom(addrs[1], 64)),
		right.Addresses("lo", netip.PrefixFrom(addrs[2], 32), netip.PrefixFrom(addrs[3], 128)),
		left.DefaultRoutes(addrs[0], addrs[1]),
	)
	if err != nil {
		t.Fatal(err)
	}
	of := func(addr netip.Addr) (control string) {
		t.Helper()
		var l net.Listener
		if err := right.Do(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()); return err }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := left.Dial(&net.Dialer{Timeout: patience}, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err == nil {
			cerr := raw.Control(func(fd uintptr) { control, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
			err = errors.Join(err, cerr)
		}
		if err != nil {
			t.Fatal(err)
		}
		return control
	}
	// Both are in every kernel; the kernel's default may be one of them.
	if err := left.Congestion("reno", addrs...); err != nil {
		t.Fatal(err)
	}
	for i := range len(addrs) + 1 { // one after the other changes
		for j, addr := range addrs {
			if got, want := of(addr), map[bool]string{true: "cubic", false: "reno"}[j < i]; got != want {
				t.Errorf("to %v connections use %s, want %s", addr, got, want)
			}
		}
		if i < len(addrs) {
			if err := left.Congestion("cubic", addrs[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := left.Congestion("nosuch", addrs[0]); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a congestion control that there is not: %v", err)
	}
}

// TestDeleteUnmounted: the file of a namespace whose maker was killed before it was mounted there.
func TestDeleteUnmounted(t *testing.T) {
	name := fmt.Sprintf("spw-t%d-%06x", os.Getpid(), rand.Uint32()&0xffffff)
	if err := os.MkdirAll(namedDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(Path(name), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(Path(name)) })
	if err := Delete(name); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(Path(name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
}

// TestErrors: each says what it was about.
func TestErrors(t *testing.T) {
	ns := newNamespace(t, "host")
	for what, err := range map[string]error{
		"nolink":    ns.Up("nolink"),
		"absent":    ns.Addresses("absent", netip.MustParsePrefix("10.2.0.1/24")),
		"missing":   ns.Limit("missing", 1e9),
		"10.8.0.1":  ns.Congestion("reno", netip.MustParseAddr("10.8.0.1")),
		"uncounted": func() error { _, err := ns.Counters("uncounted"); return err }(),
		"10.9.0.1":  ns.DefaultRoutes(netip.MustParseAddr("10.9.0.1")),
		"10.3.0.1":  errors.Join(ns.Addresses("lo", netip.MustParsePrefix("10.3.0.1/24")), ns.Addresses("lo", netip.MustParsePrefix("10.3.0.1/24"))),
		"sysctl/of": ns.Sysctl("no/such/sysctl/of/ours", "1"),
	} {
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "namespace host") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestStart: a process runs inside, its result comes, and Pdeathsig means this process and not a thread of it.
func TestStart(t *testing.T) {
	ns := newNamespace(t, "host")
	var inside string
	if err := ns.Do(func() (err error) { inside, err = current(); return err }); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	ended, err := ns.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if <-ended; !cmd.ProcessState.Success() || strings.TrimSpace(out.String()) != inside {
		t.Errorf("it ran in %q, %v, want %s", out.String(), cmd.ProcessState, inside)
	}

	cmd = exec.Command("false")
	if ended, err = ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	<-ended
	if <-ended; cmd.ProcessState.ExitCode() != 1 { // whoever asks again gets an answer too
		t.Errorf("a process that failed has ended with %v", cmd.ProcessState)
	}
	if _, err := ns.Start(exec.Command("/no/such/program")); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("Start of nothing says %v", err)
	}

	cmd = exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err = ns.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 { // threads come and go
		_ = ns.Do(func() error { return nil })
	}
	select {
	case <-ended:
		t.Errorf("the process has ended with a thread: %v", cmd.ProcessState)
	case <-time.After(20 * time.Millisecond):
	}
	_ = cmd.Process.Kill()
	<-ended
}
