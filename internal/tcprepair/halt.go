package tcprepair

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Halter makes sockets send nothing new, however much waits in their send queues: the first step of giving a connection back in the middle of a transfer.
// An egress program in this process's cgroup drops what lies beyond a sequence number of the socket, so that the kernel keeps it in the send queue
// (tcp_write_xmit, net/ipv4/tcp_output.c), and lets acknowledgements and retransmissions pass. It is attached as long as a socket is halted,
// and costs nothing at other times. Its methods may be called by several goroutines at once, except Close; a nil *Halter cannot halt.
type Halter struct {
	limits  *ebpf.Map // socket → limit and a mark that there is one, a BPF_MAP_TYPE_SK_STORAGE
	program *ebpf.Program
	cgroup  *os.File // to attach it to

	mu       sync.Mutex
	halted   int
	attached link.Link // while halted is not 0
}

// Of struct __sk_buff (include/uapi/linux/bpf.h).
const (
	skBuffLen = 0   // offset of len
	skBuffSk  = 168 // offset of sk
)

// limited marks a value of Halter.limits as one that counts; the limit is in its lower half.
const limited = 1 << 32

// NewHalter loads the program. It needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, and a cgroup2 file system. The caller closes the Halter.
func NewHalter() (_ *Halter, err error) {
	h := &Halter{}
	defer func() {
		if err != nil {
			h.Close()
			err = fmt.Errorf("tcprepair: halt: %w", err)
		}
	}()
	if h.cgroup, err = ownCgroup(); err != nil {
		return nil, err
	}
	h.limits, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "spillway_limit", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: skStorageNoPrealloc,
		Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Value: &btf.Int{Name: "unsigned long long", Size: 8, Encoding: btf.Unsigned},
	})
	if err != nil {
		return nil, err
	}
	h.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spillway_halt", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "Apache-2.0",
		Instructions: haltProgram(h.limits.FD()),
	})
	return h, err
}

// haltProgram is:
//
//	struct bpf_sock *sk = ctx->sk ? bpf_sk_fullsock(ctx->sk) : NULL;
//	u64 *limit = sk ? bpf_sk_storage_get(&map, sk, 0, 0) : NULL;
//	if (!limit || !(*limit >> 32))
//		return 1;
//	… the TCP header behind the IPv4 or IPv6 header …
//	return payload == 0 || (s32)(sequence + payload - (u32)*limit) <= 0;
func haltProgram(limits int) asm.Instructions {
	// bpf_skb_load_bytes(ctx, r2, fp+to, size)
	load := func(to, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to), asm.Mov.Imm(asm.R4, size),
			asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "pass"),
		}
	}
	const sequence, byteRead = -8, -16 // on the stack
	return slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R1, asm.R6, skBuffSk, asm.DWord),
			asm.JEq.Imm(asm.R1, 0, "pass"),
			asm.FnSkFullsock.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.LoadMapPtr(asm.R1, limits),
			asm.Mov.Reg(asm.R2, asm.R0),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnSkStorageGet.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.RSh.Imm(asm.R2, 32),
			asm.JEq.Imm(asm.R2, 0, "pass"),
			asm.Mov.Imm(asm.R2, 0),
		},
		load(byteRead, 1),
		asm.Instructions{ // r8: the length of the IP header
			asm.LoadMem(asm.R8, asm.RFP, byteRead, asm.Byte),
			asm.Mov.Reg(asm.R2, asm.R8),
			asm.RSh.Imm(asm.R2, 4),
			asm.JNE.Imm(asm.R2, 4, "ipv6"),
			asm.And.Imm(asm.R8, 0xf),
			asm.LSh.Imm(asm.R8, 2),
			asm.Ja.Label("tcp"),
			asm.Mov.Imm(asm.R8, ipv6HeaderSize).WithSymbol("ipv6"),
			asm.Mov.Reg(asm.R2, asm.R8).WithSymbol("tcp"),
			asm.Add.Imm(asm.R2, tcpSequencePos),
		},
		load(sequence, 4),
		asm.Instructions{asm.Mov.Reg(asm.R2, asm.R8), asm.Add.Imm(asm.R2, tcpOffsetPos)},
		load(byteRead, 1),
		asm.Instructions{
			asm.LoadMem(asm.R2, asm.RFP, byteRead, asm.Byte),
			asm.RSh.Imm(asm.R2, 4),
			asm.LSh.Imm(asm.R2, 2), // the length of the TCP header
			asm.LoadMem(asm.R3, asm.R6, skBuffLen, asm.Word),
			asm.Sub.Reg(asm.R3, asm.R8),
			asm.Sub.Reg(asm.R3, asm.R2), // the payload's
			asm.JEq.Imm(asm.R3, 0, "pass"),
			asm.LoadMem(asm.R2, asm.RFP, sequence, asm.Word),
			asm.HostTo(asm.BE, asm.R2, asm.Word),
			asm.Add.Reg(asm.R2, asm.R3),
			asm.Sub.Reg(asm.R2, asm.R7),
			asm.LSh.Imm(asm.R2, 32), // the 32 bits that count, with their sign
			asm.Mov.Imm(asm.R0, 0),
			asm.JSGT.Imm(asm.R2, 0, "out"),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
			asm.Return().WithSymbol("out"),
		},
	)
}

// Halt makes the socket on fd, live or in repair mode, send nothing new until Resume. written is the sequence number behind the last byte in its send queue, as
// TCP_QUEUE_SEQ would tell. The caller owns fd, and writes nothing to it meanwhile. Unsent tells how much of the queue has not been on the wire.
func (h *Halter) Halt(fd int, written uint32) error {
	if h == nil {
		return &Error{Op: "halt", Left: LeftLive, Err: errors.ErrUnsupported}
	}
	if err := h.attach(); err != nil {
		return &Error{Op: "halt", Left: LeftLive, Err: err}
	}
	// Twice: what has left since the first reading must not be dropped when it is retransmitted. After the first time, nothing new leaves. TCP_INFO waits for a
	// segment that is on its way past the program on another CPU (lock_sock_fast in tcp_get_info, net/ipv4/tcp.c); SIOCOUTQNSD does not.
	for range 2 {
		c := calls{fd: fd}
		i := c.info()
		err := c.err()
		if err == nil {
			err = h.limits.Put(int32(fd), limited|uint64(written-i.notSentBytes))
		}
		if err != nil {
			h.Resume(fd)
			return &Error{Op: "halt", Left: LeftLive, Err: err}
		}
	}
	return nil
}

// Resume undoes Halt, of which it must be the only one, and sends what has waited. The caller owns fd.
func (h *Halter) Resume(fd int) {
	_ = h.limits.Delete(int32(fd)) // a closed socket has none
	h.detach()
	c := calls{fd: fd}
	c.setTCP(unix.TCP_NODELAY, 1) // pushes (tcp_sock_set_nodelay, net/ipv4/tcp.c)
}

// attach attaches the program unless it is.
func (h *Halter) attach() (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.halted == 0 {
		h.attached, err = attachCgroup(h.cgroup, ebpf.AttachCGroupInetEgress, h.program)
		if err != nil {
			return err
		}
	}
	h.halted++
	return nil
}

// detach takes the program away when nobody needs it any more.
func (h *Halter) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.halted--; h.halted == 0 {
		_ = h.attached.Close()
		h.attached = nil
	}
}

// Close releases the program.
func (h *Halter) Close() error {
	if h == nil {
		return nil
	}
	var errs []error
	if h.attached != nil {
		errs = append(errs, h.attached.Close())
	}
	if h.program != nil {
		errs = append(errs, h.program.Close())
	}
	if h.limits != nil {
		errs = append(errs, h.limits.Close())
	}
	if h.cgroup != nil {
		errs = append(errs, h.cgroup.Close())
	}
	return errors.Join(errs...)
}
