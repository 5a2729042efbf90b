package tcprepair

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Holder stops the input of sockets whose connection has a new owner, as a Freezer does, and sends on what comes nevertheless: segments that were on
// their way to the old socket when it left the kernel's table. Without it the peer would send them again, after its retransmission timer.
// Its methods may be called by several goroutines at once, except Close.
type Holder struct {
	program *ebpf.Program
	held    *ebpf.Map // a ring of IP packets
	scratch *ebpf.Map // a place for one packet for each CPU: the stack is too small
	reader  *ringbuf.Reader
	raw4    int
	raw6    int
	mayGo   func(local, remote netip.AddrPort) bool
	done    chan struct{}
}

const (
	maxPacket   = 1<<16 - 1 // the longest IPv4 packet, as which the kernel hands on many segments in one (GRO)
	ringSize    = 1 << 20
	maxIPHeader = 64
	headerStart = 1 // BPF_HDR_START_NET (include/uapi/linux/bpf.h)

	// resendAfter leaves the new owner time to hear of what the peer has said before: out of order, a segment would wait for one that never comes.
	resendAfter = 500 * time.Microsecond
)

// NewHolder loads the program and starts the goroutine that sends on what is held, if mayGo still allows it then: a connection that has come back to this
// process meanwhile may be on its way to the new owner again, whose kernel might not know it at the moment and would reset it. The raw sockets
// that it sends by belong to the network namespace of the calling thread. It needs CAP_NET_RAW beyond what NewFreezer needs. The caller closes the Holder.
func NewHolder(mayGo func(local, remote netip.AddrPort) bool) (_ *Holder, err error) {
	h := &Holder{raw4: -1, raw6: -1, mayGo: mayGo, done: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = h.free()
			err = fmt.Errorf("tcprepair: hold (CAP_BPF or CAP_SYS_ADMIN, and CAP_NET_RAW are needed): %w", err)
		}
	}()
	if h.held, err = ebpf.NewMap(&ebpf.MapSpec{Name: "spillway_held", Type: ebpf.RingBuf, MaxEntries: ringSize}); err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	h.scratch, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "spillway_packet", Type: ebpf.Array, KeySize: 4, ValueSize: maxIPHeader + maxPacket + 1, MaxEntries: uint32(cpus),
	})
	if err != nil {
		return nil, err
	}
	h.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spillway_hold", Type: ebpf.SocketFilter, License: "Apache-2.0",
		Instructions: holdProgram(h.held.FD(), h.scratch.FD()),
	})
	if err != nil {
		return nil, err
	}
	if h.reader, err = ringbuf.NewReader(h.held); err != nil {
		return nil, err
	}
	if h.raw4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW); err != nil {
		return nil, err
	}
	h.raw6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil && err != unix.EAFNOSUPPORT {
		return nil, err
	}
	go h.resend()
	return h, nil
}

// holdProgram copies the packet, from its IP header on, into the ring, and drops it. What is too long, or finds the ring full, is only dropped.
func holdProgram(ring, scratch int) asm.Instructions {
	const byteRead = -8 // on the stack
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, skBuffLen, asm.Word), // from the TCP header on
		asm.JGT.Imm(asm.R7, maxPacket, "drop"),
		asm.JLT.Imm(asm.R7, tcpHeaderMin, "drop"),
		// The first byte of the IP header, which lies before the data, and from it the length of the header: r9.
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, byteRead), asm.Mov.Imm(asm.R4, 1),
		asm.Mov.Imm(asm.R5, headerStart),
		asm.FnSkbLoadBytesRelative.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R9, asm.RFP, byteRead, asm.Byte),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.RSh.Imm(asm.R2, 4),
		asm.JNE.Imm(asm.R2, 4, "ipv6"),
		asm.And.Imm(asm.R9, 0xf),
		asm.LSh.Imm(asm.R9, 2),
		asm.JLT.Imm(asm.R9, ipv4HeaderMin, "drop"),
		asm.Ja.Label("copy"),
		asm.Mov.Imm(asm.R9, ipv6HeaderSize).WithSymbol("ipv6"),
		// r8: this CPU's scratch.
		asm.FnGetSmpProcessorId.Call().WithSymbol("copy"),
		asm.StoreMem(asm.RFP, byteRead, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, scratch),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, byteRead),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0), asm.Mov.Reg(asm.R3, asm.R8), asm.Mov.Reg(asm.R4, asm.R9),
		asm.Mov.Imm(asm.R5, headerStart),
		asm.FnSkbLoadBytesRelative.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		// The rest need not lie in one piece, which the other function would want.
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.R8), asm.Add.Reg(asm.R3, asm.R9), asm.Mov.Reg(asm.R4, asm.R7),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "drop"),
		asm.LoadMapPtr(asm.R1, ring),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Reg(asm.R3, asm.R7), asm.Add.Reg(asm.R3, asm.R9),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("drop"),
		asm.Return(),
	}
}

// resend sends on what is held until the Holder is closed. Each packet may be late, but a moment.
func (h *Holder) resend() {
	defer close(h.done)
	for {
		r, err := h.reader.Read()
		if err != nil {
			return // closed
		}
		time.Sleep(resendAfter)
		for _, segment := range segments(r.RawSample) {
			if h.mayGo(ends(segment)) {
				h.send(segment)
			}
		}
	}
}

// send puts one packet on its way. Errors are left to the peer, which sends again what is lost.
func (h *Holder) send(packet []byte) {
	if packet[0]>>4 == 4 {
		_ = unix.Sendto(h.raw4, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
		return
	}
	_ = unix.Sendto(h.raw6, packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])})
}

// Close ends the sending on and releases the program. Sockets that were sealed stay so.
func (h *Holder) Close() error {
	if h == nil {
		return nil
	}
	err := h.reader.Close()
	<-h.done
	h.reader = nil
	return errors.Join(err, h.free())
}

// free closes what NewHolder has made, or a part of it.
func (h *Holder) free() error {
	var errs []error
	if h.reader != nil {
		errs = append(errs, h.reader.Close())
	}
	for _, fd := range []int{h.raw4, h.raw6} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if h.program != nil {
		errs = append(errs, h.program.Close())
	}
	for _, m := range []*ebpf.Map{h.held, h.scratch} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
