package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway/internal/guestinit"
)

// echoed sends a line and checks that it comes back.
func echoed(conn net.Conn, line string) error {
	conn.SetDeadline(time.Now().Add(bootLimit))
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if got != line+"\n" {
		return fmt.Errorf("%q came back as %q", line, got)
	}
	return nil
}

// TestGuest boots one guest and tries everything that this package and guestinit promise about it.
func TestGuest(t *testing.T) {
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "segment"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	const tapName = "tap-test"
	nsPath, inside := newTapNetNS(t, tapName)
	cfg := testConfig(t, guestinit.Spec{
		Hostname: "guest",
		Interfaces: []guestinit.Interface{{
			MAC:   mac.String(),
			Addrs: []netip.Prefix{guest4, guest6},
			Routes: []guestinit.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: host4.Addr()},
				{Dst: netip.MustParsePrefix("::/0"), Via: host6.Addr()},
			},
		}},
		Sysctls: map[string]string{"net.ipv4.tcp_fin_timeout": "17"},
		Mounts: []guestinit.Mount{
			{Source: "media", Target: "/media", Type: "9p", Options: guestinit.Options9p, ReadOnly: true},
			{Source: "media-fs", Target: "/media-fs", Type: "virtiofs", ReadOnly: true},
		},
		Commands: []guestinit.Command{{Name: "echo", Args: []string{"/init", "echo"}}},
	})
	cfg.Taps = []Tap{{IfName: tapName, MAC: mac, NetNS: nsPath}}
	cfg.Shares = []Share9p{{Tag: "media", Path: share}}
	cfg.Virtiofs = []ShareVirtiofs{{Tag: "media-fs", Path: share}}
	daemon, control := filepath.Join(cfg.RunDir, "daemon.sock"), filepath.Join(cfg.RunDir, "ctl.sock")
	cfg.Channels = []Channel{
		{Name: "spillway.0", SocketPath: daemon}, // nobody listens there yet
		{Name: guestinit.ControlPort, SocketPath: control, Listen: true},
	}
	vm := boot(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	ctl, err := guestinit.DialControl(ctx, control)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("accelerator", func(t *testing.T) {
		if want := bestAccel(); vm.Accel() != want {
			t.Errorf("accelerator %q, want %q", vm.Accel(), want)
		}
	})
	t.Run("control", func(t *testing.T) { testControl(t, ctx, ctl) })
	ctl.Close() // QEMU serves one connection at a time
	t.Run("control for one host after another", func(t *testing.T) {
		for n := range 50 {
			if err := pingOnce(ctx, control); err != nil {
				t.Fatalf("host %d: %v", n, err)
			}
		}
	})
	if ctl, err = guestinit.DialControl(ctx, control); err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	for kind, name := range map[string]string{"9p": "/media/segment", "virtiofs": "/media-fs/segment"} {
		t.Run(kind, func(t *testing.T) {
			if got, err := ctl.Cat(ctx, name); err != nil || string(got) != "from the host" {
				t.Errorf("Cat = %q, %v", got, err)
			}
		})
	}
	t.Run("network", func(t *testing.T) {
		for _, addr := range []netip.Addr{guest4.Addr(), guest6.Addr()} {
			if err := inside(func() error { return echoTCP(addr) }); err != nil {
				t.Errorf("%v: %v", addr, err)
			}
		}
	})
	t.Run("channel survives its daemon", func(t *testing.T) {
		for range 2 {
			if err := echoChannel(daemon); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("restart", func(t *testing.T) { testRestart(t, ctx, ctl) })
	t.Run("attach", func(t *testing.T) {
		again, err := Attach(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if again.PID() != vm.PID() || again.Accel() != vm.Accel() {
			t.Errorf("attached to pid %d (%s), want %d (%s)", again.PID(), again.Accel(), vm.PID(), vm.Accel())
		}
	})
	t.Run("power off", func(t *testing.T) {
		if err := ctl.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
		if err := vm.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		for _, socket := range cfg.withDefaults().ownSockets() {
			if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", socket, err)
			}
		}
		for _, s := range vm.servers {
			if err := s.process.Signal(syscall.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("the server of a virtiofs share, pid %d, is left: %v", s.process.Pid, err)
			}
		}
		if _, err := Attach(ctx, cfg); !errors.Is(err, ErrNotRunning) {
			t.Errorf("Attach after the end: %v, want ErrNotRunning", err)
		}
	})
}

func testControl(t *testing.T, ctx context.Context, ctl *guestinit.Control) {
	if err := ctl.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/proc/sys/kernel/hostname":          "guest\n",
		"/proc/sys/net/ipv4/tcp_fin_timeout": "17\n",
	} {
		if got, err := ctl.Cat(ctx, path); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", path, got, err, want)
		}
	}
	var refused *guestinit.ControlError
	if _, err := ctl.Cat(ctx, "/missing"); !errors.As(err, &refused) {
		t.Errorf("Cat of a missing file: %v, want a ControlError", err)
	}
	if err := ctl.DropCaches(ctx); err != nil {
		t.Error(err)
	}
}

// pingOnce is a host that comes, asks and goes.
func pingOnce(ctx context.Context, control string) error {
	ctl, err := guestinit.DialControl(ctx, control)
	if err != nil {
		return err
	}
	defer ctl.Close()
	return ctl.Ping(ctx)
}

// echoTCP tries the guest's TCP server until the command behind it listens.
func echoTCP(addr netip.Addr) error {
	deadline := time.Now().Add(bootLimit)
	for {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(addr, 7).String())
		if err == nil {
			defer conn.Close()
			return echoed(conn, "hello")
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// echoChannel is a daemon that accepts QEMU, exchanges one line with the guest and goes away.
func echoChannel(socketPath string) error {
	l, err := net.Listen("unix", socketPath)
	if err != nil {
		return err
	}
	defer l.Close()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(bootLimit))
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	return echoed(conn, "hello")
}

func testRestart(t *testing.T, ctx context.Context, ctl *guestinit.Control) {
	before, err := ctl.Processes(ctx)
	if err != nil || len(before) != 1 || before[0].Name != "echo" || before[0].PID == 0 {
		t.Fatalf("Processes = %+v, %v", before, err)
	}
	if err := ctl.Kill(ctx, "echo"); err != nil {
		t.Fatal(err)
	}
	for {
		now, err := ctl.Processes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if p := now[0]; p.PID != 0 && p.PID != before[0].PID {
			if p.Restarts != 1 || !strings.Contains(p.LastExit, "killed") {
				t.Errorf("restarted as %+v", p)
			}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestGuestDies boots a guest whose init fails: QEMU ends, and the error says why.
func TestGuestDies(t *testing.T) {
	cfg := testConfig(t, guestinit.Spec{Mounts: []guestinit.Mount{{Source: "x", Target: "/x", Type: "nosuchfs"}}})
	const cause = `mount nosuchfs "x" at /x`
	failure := bootToDeath(t, cfg)
	if !strings.Contains(failure.Console, cause) {
		t.Logf("boot again: %v", failure) // it may have died of TCG
		failure = bootToDeath(t, cfg)
	}
	if !strings.Contains(failure.Console, cause) {
		t.Errorf("the console's tail does not give the cause: %v", failure)
	}
}

// bootToDeath boots a guest that must die before it is ready.
func bootToDeath(t *testing.T, cfg Config) *Error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	vm, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Stop(context.Background()) })
	_, err = vm.WaitConsole(ctx, guestinit.ReadyLine)
	var failure *Error
	if !errors.Is(err, ErrExited) || !errors.As(err, &failure) || failure.Running {
		t.Fatalf("WaitConsole: %v, want ErrExited and no process", err)
	}
	return failure
}
