package feature

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kvmGetAPIVersion is KVM_GET_API_VERSION, _IO(0xAE, 0x00), and kvmAPIVersion the one answer that a program may accept
// (include/uapi/linux/kvm.h; Documentation/virt/kvm/api.rst section 4.1).
const (
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// withDevice runs f on an opened device node. That there is no node, or no driver behind it, is a verdict.
func withDevice(path string, f func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return absentIf(&os.PathError{Op: "open", Path: path, Err: err}, unix.ENOENT, unix.ENXIO, unix.ENODEV)
	}
	return errors.Join(f(fd), unix.Close(fd))
}

func probeKVM() error {
	return withDevice("/dev/kvm", func(fd int) error {
		version, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmGetAPIVersion, 0)
		if errno != 0 {
			return absentIf(fmt.Errorf("KVM_GET_API_VERSION: %w", errno), unix.ENOTTY)
		}
		if version != kvmAPIVersion {
			return absentf("KVM API version %d, want %d", version, kvmAPIVersion)
		}
		return hardwareVirtualization()
	})
}

// hardwareVirtualization tells whether the CPU can run a guest's kernel by itself. A KVM without it, such as PVM's, which works inside a VM
// that has no nested virtualization, is for kernels that were made for it: every other boots at a crawl, or not at all.
func hardwareVirtualization() error {
	if runtime.GOARCH != "amd64" {
		return nil
	}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !hasVirtualization(string(text)) {
		return absentf("/dev/kvm is there, but the CPU has neither vmx nor svm")
	}
	return nil
}

// hasVirtualization looks for the CPU's flags of VT-x and AMD-V in /proc/cpuinfo.
func hasVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			f := strings.Fields(flags)
			return slices.Contains(f, "vmx") || slices.Contains(f, "svm")
		}
	}
	return false
}

func probeTun() error {
	return withDevice("/dev/net/tun", func(fd int) error {
		var features uint32
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNGETFEATURES, uintptr(unsafe.Pointer(&features)))
		if errno != 0 {
			return absentIf(fmt.Errorf("TUNGETFEATURES: %w", errno), unix.ENOTTY, unix.EINVAL)
		}
		const want = unix.IFF_TAP | unix.IFF_VNET_HDR
		if features&want != want {
			return absentf("TUNGETFEATURES: %#x lacks IFF_TAP or IFF_VNET_HDR", features)
		}
		return nil
	})
}

func probeVirtioPorts() error {
	_, err := os.Stat("/sys/class/virtio-ports")
	return absentIf(err, os.ErrNotExist)
}

func probeVhostVsock() error {
	return withDevice("/dev/vhost-vsock", func(int) error { return nil })
}

// capability is the feature that this process has one of the capabilities in its effective set.
func capability(name, why string, anyOf ...int) Feature {
	return Feature{
		Name: name, Why: why, Kind: KindCapability,
		Brings: "root, or AmbientCapabilities= in the unit",
		probe: func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData // version 3 has two words of 32 capabilities
			if err := unix.Capget(&header, &data[0]); err != nil {
				return fmt.Errorf("capget: %w", err)
			}
			for _, c := range anyOf {
				if data[c/32].Effective&(1<<(c%32)) != 0 {
					return nil
				}
			}
			return absentf("not in the effective capabilities of this process")
		},
	}
}
