// Command guest is the init of the package's test VM. As PID 1 it runs guestinit; as "/init echo" it is the one command of
// that guest: a TCP server that answers with what it reads, and the same on the virtio-serial port "spillway.0".
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/guestinit"
)

// pause is for a host or a port that is not there.
const pause = 20 * time.Millisecond

func main() {
	if len(os.Args) > 1 && os.Args[1] == "echo" {
		go echoPort("spillway.0")
		fail(echoTCP(":7"))
	}
	fail(guestinit.Main())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func echoTCP(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("echo listens")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// echoPort answers on the port for ever.
func echoPort(name string) {
	for ; ; time.Sleep(pause) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			if data, _ := os.ReadFile(file); strings.TrimSpace(string(data)) != name {
				continue
			}
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(file)), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println(echo(os.NewFile(uintptr(fd), name)))
		}
	}
}

// echo answers until the port fails. A read gives end of file while the host is away; the port stays open, as closing it
// would discard what the host sends meanwhile.
func echo(port *os.File) error {
	defer port.Close()
	buf := make([]byte, 4096)
	for {
		n, err := port.Read(buf)
		switch {
		case errors.Is(err, io.EOF):
			time.Sleep(pause)
		case err != nil:
			return err
		default:
			if _, err := port.Write(buf[:n]); err != nil {
				return err
			}
		}
	}
}
