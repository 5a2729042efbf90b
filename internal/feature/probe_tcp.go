package feature

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// withSocket runs f on a fresh socket, which it closes.
func withSocket(domain, typ, proto int, f func(fd int) error) error {
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// withRepair runs f on a fresh TCP socket in repair mode. The socket is closed, so it never leaves repair mode by the
// option that may be missing.
func withRepair(f func(fd int) error) error {
	return withSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
			return absentIf(fmt.Errorf("TCP_REPAIR: %w", err), unix.ENOPROTOOPT)
		}
		return f(fd)
	})
}

func probeRepair() error {
	return withRepair(func(fd int) error {
		// Reading and setting a sequence number shows that repair mode is more than a flag.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, 2 /* TCP_SEND_QUEUE, uapi/linux/tcp.h */); err != nil {
			return absentIf(fmt.Errorf("TCP_REPAIR_QUEUE: %w", err), unix.ENOPROTOOPT)
		}
		const seq = 0x1234567
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, seq); err != nil {
			return absentIf(fmt.Errorf("set TCP_QUEUE_SEQ: %w", err), unix.ENOPROTOOPT)
		}
		got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return absentIf(fmt.Errorf("get TCP_QUEUE_SEQ: %w", err), unix.ENOPROTOOPT)
		}
		if got != seq {
			return absentf("TCP_QUEUE_SEQ: set %#x, read back %#x", seq, got)
		}
		return nil
	})
}

func probeRepairWindow() error {
	return withRepair(func(fd int) error {
		var window [5]uint32 // struct tcp_repair_window (uapi/linux/tcp.h); kernels may append fields
		size := uint32(unsafe.Sizeof(window))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW,
			uintptr(unsafe.Pointer(&window)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return absentIf(fmt.Errorf("TCP_REPAIR_WINDOW: %w", errno), unix.ENOPROTOOPT)
		}
		return nil
	})
}

func probeRepairSilentOff() error {
	return withRepair(func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)
		if err != nil {
			return absentIf(fmt.Errorf("TCP_REPAIR=-1: %w", err), unix.EINVAL)
		}
		return nil
	})
}

func probeSocketFilter() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spillway_probe", Type: ebpf.SocketFilter, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return absentIf(fmt.Errorf("load: %w", err), unix.ENOSYS, ebpf.ErrNotSupported)
	}
	defer program.Close()
	return withSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program.FD()); err != nil {
			return absentIf(fmt.Errorf("SO_ATTACH_BPF: %w", err), unix.ENOPROTOOPT)
		}
		return nil
	})
}

func probeTransparent4() error {
	return withSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		if err != nil {
			return absentIf(fmt.Errorf("IP_TRANSPARENT: %w", err), unix.ENOPROTOOPT)
		}
		return nil
	})
}

func probeTransparent6() error {
	err := withSocket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		if err != nil {
			return absentIf(fmt.Errorf("IPV6_TRANSPARENT: %w", err), unix.ENOPROTOOPT)
		}
		return nil
	})
	return absentIf(err, unix.EAFNOSUPPORT)
}

func probeMPTCP() error {
	err := withSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, func(int) error { return nil })
	// Not built: EPROTONOSUPPORT; switched off by net.mptcp.enabled: ENOPROTOOPT (net/mptcp/protocol.c).
	return absentIf(err, unix.EPROTONOSUPPORT, unix.ENOPROTOOPT)
}

// probeSendfile sends a byte of a file into a socket and reads it on the other side.
func probeSendfile() error {
	file, err := unix.MemfdCreate("spillway-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(file)
	if _, err := unix.Write(file, []byte{'x'}); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var offset int64
	if n, err := unix.Sendfile(pair[0], file, &offset, 1); n != 1 || err != nil {
		return absentIf(fmt.Errorf("sendfile of 1 byte: %d, %w", n, err), unix.ENOSYS, unix.EINVAL)
	}
	got := make([]byte, 2)
	if n, err := unix.Read(pair[1], got); n != 1 || got[0] != 'x' {
		return absentf("sendfile of 1 byte delivered %d bytes %q: %v", n, got[:max(n, 0)], err)
	}
	return nil
}
