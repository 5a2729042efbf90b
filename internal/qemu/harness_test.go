package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"spillway/internal/guestinit"
)

// bootLimit is for one boot beside other load; alone it takes two to five seconds under TCG.
const bootLimit = 60 * time.Second

// testKernel returns the kernel that scripts/setup.sh unpacked into the checkout.
func testKernel(t *testing.T) Kernel {
	t.Helper()
	kernel, err := FindKernel(filepath.Join("..", "..", "build", "cache", "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}

// buildGuest builds the static init binary once for all tests.
var buildGuest = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "spillway-guest-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binary, err := buildGuest(); err == nil {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

func guestBinary(t *testing.T) string {
	t.Helper()
	binary, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// Addresses of the test's point-to-point network between host namespace and guest.
var (
	host4  = netip.MustParsePrefix("192.0.2.1/24") // RFC 5737
	guest4 = netip.MustParsePrefix("192.0.2.2/24")
	host6  = netip.MustParsePrefix("2001:db8::1/64") // RFC 3849
	guest6 = netip.MustParsePrefix("2001:db8::2/64")
	mac    = net.HardwareAddr{0x52, 0x54, 0x00, 0x77, 0x00, 0x10}
)

// testConfig prepares a run directory with kernel and initramfs.
func testConfig(t *testing.T, spec guestinit.Spec) Config {
	t.Helper()
	kernel := testKernel(t)
	elf, err := kernel.ELF()
	if err != nil {
		t.Fatal(err)
	}
	modules, err := kernel.Modules(append(GuestModules(), "virtiofs")...)
	if err != nil {
		t.Fatal(err)
	}
	guest := guestBinary(t)
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initramfs.cpio")
	start := time.Now()
	if err := (Initramfs{InitPath: guest, Modules: modules, Spec: spec}).WriteFile(initrd); err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs written in %v", time.Since(start))
	return Config{Name: "spillway-test", Kernel: elf, Initrd: initrd, RunDir: dir}
}

// boot starts a VM and waits for the guest. A boot that dies early is tried once more: under TCG that happens to a few per
// cent of them.
func boot(t *testing.T, cfg Config) *VM {
	t.Helper()
	for attempt := 1; ; attempt++ {
		vm, err := bootOnce(t, cfg)
		if err == nil {
			return vm
		}
		if attempt == 2 || !errors.Is(err, ErrExited) && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
		t.Logf("boot again: %v", err)
	}
}

func bootOnce(t *testing.T, cfg Config) (*VM, error) {
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	start := time.Now()
	vm, err := Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := vm.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	started := time.Since(start)
	line, err := vm.WaitConsole(ctx, guestinit.ReadyLine)
	if err != nil {
		vm.Stop(ctx)
		return nil, err
	}
	t.Logf("QEMU %v with %v: started in %v, ready in %v (%s)", vm.Version(), vm.Accel(), started, time.Since(start), line)
	return vm, nil
}

// newTapNetNS makes a network namespace with a tap that has the host's addresses, and returns its path and a function that
// runs code inside it.
func newTapNetNS(t *testing.T, ifName string) (path string, inside func(func() error) error) {
	t.Helper()
	var ns netns.NsHandle
	run := func(f func() error) error {
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends, and with it its place in the namespace
			if ns == 0 {
				var err error
				if ns, err = netns.New(); err != nil {
					result <- err
					return
				}
			} else if err := netns.Set(ns); err != nil {
				result <- err
				return
			}
			result <- f()
		}()
		return <-result
	}
	if err := run(func() error {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: ifName}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		for _, p := range []netip.Prefix{host4, host6} {
			addr, err := netlink.ParseAddr(p.String())
			if err != nil {
				return err
			}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(tap, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(tap)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", int(ns)), run
}
