package tcprepair

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// This file holds every raw system call of the package, and all its use of unsafe. unix.RawSyscall6 is used rather than the
// wrappers of package unix since those allocate, lack the repair options, and tell the Go scheduler of calls that never block.

// Values of TCP_REPAIR_QUEUE (include/uapi/linux/tcp.h).
const (
	recvQueue = 1 // TCP_RECV_QUEUE
	sendQueue = 2 // TCP_SEND_QUEUE
)

// repairOption is struct tcp_repair_opt (include/uapi/linux/tcp.h).
type repairOption struct {
	code  uint32 // a TCPOPT_ number
	value uint32
}

// info is the head of struct tcp_info (include/uapi/linux/tcp.h), in the length it has had since Linux 4.18.
type info struct {
	state        uint8
	_            [4]uint8
	options      uint8 // TCPI_OPT_ bits
	wscale       uint8 // tcpi_snd_wscale in the low, tcpi_rcv_wscale in the high four bits
	_            uint8
	rtoUs        uint32 // tcpi_rto, offset 8
	_            [3]uint32
	unackedSegs  uint32 // tcpi_unacked, offset 24
	_            [4]uint32
	sinceDataMs  uint32 // tcpi_last_data_sent, offset 44
	_            [5]uint32
	rttUs        uint32 // tcpi_rtt, offset 68
	_            uint32
	sndSsthresh  uint32 // tcpi_snd_ssthresh, offset 76, segments
	sndCwnd      uint32 // tcpi_snd_cwnd, offset 80, segments
	_            [15]uint32
	notSentBytes uint32 // tcpi_notsent_bytes, offset 144
	_            [11]uint32
	delivered    uint32 // tcpi_delivered, offset 192, segments
}

// calls runs system calls on one socket and remembers the first that failed; those after it are not made. It lets a sequence
// of ten calls be read as one, with one check at its end.
type calls struct {
	fd    int
	errno unix.Errno
	call  string // "setsockopt", "bind" …
	level int    // of the option, if one
	opt   int
}

// err is the first failure, or nil.
func (c *calls) err() error {
	if c.errno == 0 {
		return nil
	}
	call := c.call
	if c.opt != 0 {
		call += " " + optionName(c.level, c.opt)
	}
	return &CallError{Call: call, Errno: c.errno}
}

// forget drops the failure, so that the sequence may go on after an expected one.
func (c *calls) forget() { c.errno = 0 }

func (c *calls) fail(errno unix.Errno, call string, level, opt int) {
	if errno != 0 {
		c.errno, c.call, c.level, c.opt = errno, call, level, opt
	}
}

func (c *calls) setRaw(level, opt int, p unsafe.Pointer, size uintptr) {
	if c.errno != 0 {
		return
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(c.fd), uintptr(level), uintptr(opt), uintptr(p), size, 0)
	c.fail(errno, "setsockopt", level, opt)
}

// getRaw returns the length that the kernel answered.
func (c *calls) getRaw(level, opt int, p unsafe.Pointer, size uint32) uint32 {
	if c.errno != 0 {
		return 0
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(c.fd), uintptr(level), uintptr(opt), uintptr(p),
		uintptr(unsafe.Pointer(&size)), 0)
	c.fail(errno, "getsockopt", level, opt)
	return size
}

func (c *calls) set(level, opt int, v uint32) {
	c.setRaw(level, opt, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

func (c *calls) setTCP(opt int, v uint32) { c.set(unix.IPPROTO_TCP, opt, v) }

func (c *calls) get(level, opt int) uint32 {
	var v uint32
	c.getRaw(level, opt, unsafe.Pointer(&v), uint32(unsafe.Sizeof(v)))
	return v
}

// get64 and set64 are for options of 64 bits: SO_MAX_PACING_RATE has them since Linux 5.0.
func (c *calls) get64(level, opt int) (v uint64) {
	c.getRaw(level, opt, unsafe.Pointer(&v), uint32(unsafe.Sizeof(v)))
	return v
}

func (c *calls) set64(level, opt int, v uint64) {
	c.setRaw(level, opt, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

func (c *calls) getTCP(opt int) uint32 { return c.get(unix.IPPROTO_TCP, opt) }

func (c *calls) info() (i info) {
	c.getRaw(unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(&i), uint32(unsafe.Sizeof(i)))
	return i
}

// window reads struct tcp_repair_window, whose layout tcpstate.Window has. Kernels may append fields to it: they are left out.
func (c *calls) window(w *tcpstate.Window) {
	c.getRaw(unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(w), uint32(unsafe.Sizeof(*w)))
}

func (c *calls) setWindow(w *tcpstate.Window) {
	c.setRaw(unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(w), unsafe.Sizeof(*w))
}

func (c *calls) setRepairOptions(o []repairOption) {
	c.setRaw(unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, unsafe.Pointer(unsafe.SliceData(o)), uintptr(len(o))*unsafe.Sizeof(o[0]))
}

// name is a name in a socket option: TCP_CA_NAME_MAX and TCP_ULP_NAME_MAX are both 16 (include/net/tcp.h).
type name [16]byte

// getName returns the bytes of n that are the name.
func (c *calls) getName(opt int, n *name) []byte {
	size := min(c.getRaw(unix.IPPROTO_TCP, opt, unsafe.Pointer(n), uint32(len(n))), uint32(len(n)))
	for i, b := range n[:size] {
		if b == 0 {
			return n[:i]
		}
	}
	return n[:size]
}

func (c *calls) setName(opt int, s string) {
	var n name
	c.setRaw(unix.IPPROTO_TCP, opt, unsafe.Pointer(&n), uintptr(copy(n[:], s)))
}

func (c *calls) setLinger(l unix.Linger) {
	c.setRaw(unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&l), unsafe.Sizeof(l))
}

// ioctl makes one of the requests that answer an int.
func (c *calls) ioctl(request uintptr, text string) int {
	var v int32
	if c.errno == 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(c.fd), request, uintptr(unsafe.Pointer(&v)))
		c.fail(errno, text, 0, 0)
	}
	return int(v)
}

// sockaddr is a struct sockaddr_in or sockaddr_in6, as domain wants it: an IPv4 address for an AF_INET6 socket is
// IPv4-mapped, as it is on a connection that a dual-stack listener accepted.
type sockaddr struct {
	raw  [unix.SizeofSockaddrInet6]byte
	size uintptr
}

func newSockaddr(domain int, a netip.AddrPort) (sa sockaddr) {
	binary.NativeEndian.PutUint16(sa.raw[0:], uint16(domain))
	binary.BigEndian.PutUint16(sa.raw[2:], a.Port())
	if domain == unix.AF_INET && a.Addr().Is4() {
		ip := a.Addr().As4()
		copy(sa.raw[4:], ip[:])
		sa.size = unix.SizeofSockaddrInet4
		return sa
	}
	ip := a.Addr().As16()
	copy(sa.raw[8:], ip[:])
	sa.size = unix.SizeofSockaddrInet6
	return sa
}

func (sa *sockaddr) family() int { return int(binary.NativeEndian.Uint16(sa.raw[0:])) }

func (c *calls) bind(sa *sockaddr) {
	if c.errno == 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(c.fd), uintptr(unsafe.Pointer(&sa.raw)), sa.size)
		c.fail(errno, "bind", 0, 0)
	}
}

func (c *calls) connect(sa *sockaddr) {
	if c.errno == 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(c.fd), uintptr(unsafe.Pointer(&sa.raw)), sa.size)
		c.fail(errno, "connect", 0, 0)
	}
}

// disconnect is connect(AF_UNSPEC): in repair mode the socket goes to TCP_CLOSE without a segment. It leaves ECONNABORTED in
// SO_ERROR (tcp_disconnect, net/ipv4/tcp.c), which reading clears.
func (c *calls) disconnect() {
	c.connect(&sockaddr{size: unix.SizeofSockaddrInet4})
	c.get(unix.SOL_SOCKET, unix.SO_ERROR)
}

// setTransparent decides whether the socket may have an address that is not this machine's, and whether the redirect sees it.
func (c *calls) setTransparent(ipv6, on bool) {
	if ipv6 {
		c.set(unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, truth(on))
	} else {
		c.set(unix.IPPROTO_IP, unix.IP_TRANSPARENT, truth(on))
	}
}

// send puts p into the queue that repair mode has selected, all of it.
func (c *calls) send(p []byte) {
	if c.errno == 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 && int(n) != len(p) {
			errno = unix.ENOBUFS
		}
		c.fail(errno, "sendto", 0, 0)
	}
}

// discard takes n bytes from the receive queue: with MSG_TRUNC they are not copied (tcp(7)).
func (c *calls) discard(n int) {
	if c.errno == 0 {
		got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 && int(got) != n {
			errno = unix.ENODATA
		}
		c.fail(errno, "recvfrom", 0, 0)
	}
}

// localAddress is getsockname.
func (c *calls) localAddress() (sa sockaddr) {
	size := uint32(len(sa.raw))
	if c.errno == 0 {
		_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(c.fd), uintptr(unsafe.Pointer(&sa.raw)),
			uintptr(unsafe.Pointer(&size)))
		c.fail(errno, "getsockname", 0, 0)
	}
	sa.size = uintptr(size)
	return sa
}

// optionName is the option's name for messages.
func optionName(level, opt int) string {
	switch level {
	case unix.SOL_SOCKET:
		switch opt {
		case unix.SO_ATTACH_BPF:
			return "SO_ATTACH_BPF"
		case unix.SO_DETACH_FILTER:
			return "SO_DETACH_FILTER"
		case unix.SO_ERROR:
			return "SO_ERROR"
		case unix.SO_KEEPALIVE:
			return "SO_KEEPALIVE"
		case unix.SO_LINGER:
			return "SO_LINGER"
		case unix.SO_MAX_PACING_RATE:
			return "SO_MAX_PACING_RATE"
		case unix.SO_MEMINFO:
			return "SO_MEMINFO"
		case unix.SO_PROTOCOL:
			return "SO_PROTOCOL"
		case unix.SO_REUSEADDR:
			return "SO_REUSEADDR"
		}
	case unix.IPPROTO_TCP:
		switch opt {
		case unix.TCP_CONGESTION:
			return "TCP_CONGESTION"
		case unix.TCP_INFO:
			return "TCP_INFO"
		case unix.TCP_KEEPCNT:
			return "TCP_KEEPCNT"
		case unix.TCP_KEEPIDLE:
			return "TCP_KEEPIDLE"
		case unix.TCP_KEEPINTVL:
			return "TCP_KEEPINTVL"
		case unix.TCP_MAXSEG:
			return "TCP_MAXSEG"
		case unix.TCP_NODELAY:
			return "TCP_NODELAY"
		case unix.TCP_QUEUE_SEQ:
			return "TCP_QUEUE_SEQ"
		case unix.TCP_REPAIR:
			return "TCP_REPAIR"
		case unix.TCP_REPAIR_OPTIONS:
			return "TCP_REPAIR_OPTIONS"
		case unix.TCP_REPAIR_QUEUE:
			return "TCP_REPAIR_QUEUE"
		case unix.TCP_REPAIR_WINDOW:
			return "TCP_REPAIR_WINDOW"
		case unix.TCP_TIMESTAMP:
			return "TCP_TIMESTAMP"
		case unix.TCP_ULP:
			return "TCP_ULP"
		}
	case unix.IPPROTO_IP:
		switch opt {
		case unix.IP_TRANSPARENT:
			return "IP_TRANSPARENT"
		case unix.IP_TOS:
			return "IP_TOS"
		}
	case unix.IPPROTO_IPV6:
		switch opt {
		case unix.IPV6_TRANSPARENT:
			return "IPV6_TRANSPARENT"
		case unix.IPV6_TCLASS:
			return "IPV6_TCLASS"
		}
	}
	return strconv.Itoa(level) + "/" + strconv.Itoa(opt)
}
