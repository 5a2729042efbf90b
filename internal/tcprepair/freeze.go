package tcprepair

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// Freezer holds the program that stops a socket's input. It keeps nothing about the sockets it froze. Its methods may be
// called by several goroutines at once, except Close, which must come last.
type Freezer struct {
	drop *ebpf.Program
	fd   uint32 // of drop
}

// NewFreezer loads the drop program into the kernel: `r0 = 0; exit` as a socket filter keeps zero bytes of every segment.
// Attaching a loaded program costs about 1 µs; a classic filter (SO_ATTACH_FILTER) is compiled anew for each socket, which
// costs over 30. The caller closes the Freezer.
func NewFreezer() (*Freezer, error) {
	drop, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "spillway_drop",
		Type:         ebpf.SocketFilter,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Apache-2.0",
	})
	if err != nil {
		return nil, fmt.Errorf("tcprepair: load the drop program (CAP_BPF or CAP_SYS_ADMIN is needed): %w", err)
	}
	return &Freezer{drop: drop, fd: uint32(drop.FD())}, nil
}

// Close releases the program. Sockets that are frozen stay so.
func (f *Freezer) Close() error { return f.drop.Close() }

// Freeze stops the input of the connection on fd: every segment that arrives is dropped until Thaw or RestoreInPlace, and
// the peer will send it again. Bytes that are already queued can still be read, and bytes can be written, but no
// acknowledgement comes in. SO_KEEPALIVE is cleared, since unanswered probes would kill the connection: ReadOptions tells
// what it was, and must come first. The caller owns fd. After an error the socket is live.
func (f *Freezer) Freeze(fd int) error {
	c := calls{fd: fd}
	c.set(unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.fd)
	if c.errno != 0 {
		return &Error{Op: "freeze", Left: LeftLive, Err: c.plainTCPError()}
	}
	c.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	if err := c.err(); err != nil {
		undo := calls{fd: fd}
		undo.detach()
		return &Error{Op: "freeze", Left: LeftLive, Err: err}
	}
	return nil
}

// Thaw undoes Freeze, and Extract if that was called, even when it refused: the connection goes on as if nothing had
// happened, apart from segments that the peer must send again. ka is what ReadOptions told. The caller owns fd. Thaw does not
// undo Park.
func Thaw(fd int, ka tcpstate.KeepAlive) error {
	c := calls{fd: fd}
	c.detach()
	if err := c.err(); err != nil {
		return &Error{Op: "thaw", Left: LeftRepair, Err: err}
	}
	c.goLive()
	c.keepAliveOn(ka)
	if err := c.err(); err != nil {
		return &Error{Op: "thaw", Left: LeftRepair, Err: err}
	}
	return nil
}

// detach removes the drop program. ENOENT: there was none.
func (c *calls) detach() {
	failed := c.errno != 0
	c.set(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if !failed && c.errno == unix.ENOENT {
		c.forget()
	}
}

// goLive leaves repair mode without the window probe. Leaving clears SO_REUSEADDR (do_tcp_setsockopt, net/ipv4/tcp.c), without
// which no listener could be started anew on the connection's port: it is put back.
func (c *calls) goLive() {
	off := unix.TCP_REPAIR_OFF_NO_WP
	c.setTCP(unix.TCP_REPAIR, uint32(off))
	c.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// keepAliveOn undoes what Freeze did to the keepalive; its parameters have stayed.
func (c *calls) keepAliveOn(ka tcpstate.KeepAlive) {
	if ka.Enabled {
		c.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	}
}
