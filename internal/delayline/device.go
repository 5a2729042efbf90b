package delayline

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deviceQueue is how many packets a device keeps for a reader that is late: 10 ms of full-sized packets at 10 Gbit/s.
const deviceQueue = 8192

// burstsPerSecond bounds super-packets: none takes longer than 1 ms on the line. The first byte of one arrives with its last: at 100 Mbit/s, that of 64 KB would
// come 5 ms late. TCP bounds its bursts to the same time (tcp_tso_autosize, net/ipv4/tcp_output.c).
const burstsPerSecond = 1000

// minBurst is the smallest bound, bytes: two full-sized packets.
const minBurst = 2 * defaultMTU

// defaultMTU of a TUN device, bytes (ETH_DATA_LEN, which tun_net_init of drivers/net/tun.c sets).
const defaultMTU = 1500

// OpenDevice makes the TUN device of that name in the network namespace of the calling thread, which it must be locked to. It is down and has no address
// yet. The device exists as long as its file is open in any process. The file is for New, and for nothing else.
func OpenDevice(name string, cfg Config) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		if err = setUp(fd, name, cfg); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make TUN device %s (root and /dev/net/tun are needed): %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// setUp makes fd the device's.
func setUp(fd int, name string, cfg Config) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	offloads := unix.TUN_F_CSUM // checksums are left open on the way, as on a veth
	if cfg.Loss == 0 {
		offloads |= unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		return os.NewSyscallError("ioctl TUNSETOFFLOAD", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	err = netlink.LinkSetTxQLen(link, deviceQueue)
	if burst := cfg.BitsPerSecond / 8 / burstsPerSecond; cfg.BitsPerSecond > 0 && burst < maxPacket {
		err = errors.Join(err, netlink.LinkSetGSOMaxSize(link, int(max(burst, minBurst))))
	}
	return err
}
