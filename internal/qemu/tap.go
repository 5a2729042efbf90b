package qemu

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// open opens the tap device for QEMU. The caller closes the file.
//
// A tun descriptor belongs to the network namespace of the thread that opens /dev/net/tun (drivers/net/tun.c,
// tun_chr_open), so that only this step has to run inside the tap's namespace.
func (t Tap) open() (*os.File, error) {
	if t.NetNS == "" {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return t.openHere()
	}
	type result struct {
		file *os.File
		err  error
	}
	results := make(chan result)
	go func() {
		// Never unlocked: the thread, changed as it is, ends with the goroutine.
		runtime.LockOSThread()
		if err := enterNetNS(t.NetNS); err != nil {
			results <- result{nil, fmt.Errorf("tap %s: %w", t.IfName, err)}
			return
		}
		file, err := t.openHere()
		results <- result{file, err}
	}()
	r := <-results
	return r.file, r.err
}

// enterNetNS moves the calling thread into a network namespace.
func enterNetNS(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// openHere opens the tap in the calling thread's namespace.
func (t Tap) openHere() (*os.File, error) {
	// TUNSETIFF would create a tap that does not exist, and it would have no address and no route.
	if _, err := net.InterfaceByName(t.IfName); err != nil {
		return nil, fmt.Errorf("tap %s: %w", t.IfName, err)
	}
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", t.IfName, &os.PathError{Op: "open", Path: device, Err: err})
	}
	request, err := unix.NewIfreq(t.IfName)
	if err == nil {
		// The virtio-net header carries offloads (TSO, checksums): without it the guest is four times as slow.
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap %s: TUNSETIFF: %w", t.IfName, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}
