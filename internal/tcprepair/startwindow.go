package tcprepair

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"spillway/internal/tcpstate"
)

// StartWindow lets a restored socket begin with the congestion window that its connection had. Without it the kernel begins with ten segments
// (TCP_INIT_CWND, include/net/tcp.h), as for a path of which nothing is known. A sockops program, attached to this process's
// cgroup, sets the window when the connection is established (tcp_init_transfer, net/ipv4/tcp_input.c), for the sockets that Set was called for and no
// others. It goes when the process does. Its methods may be called by several goroutines at once, except Close; a nil *StartWindow does nothing.
type StartWindow struct {
	windows  *ebpf.Map // socket → startWindow, a BPF_MAP_TYPE_SK_STORAGE
	program  *ebpf.Program
	attached link.Link
}

// startWindow is what the program finds: both in segments, 0: leave it alone.
type startWindow struct {
	segments uint32
	limit    uint32
}

// Of struct bpf_sock_ops and its neighbours (include/uapi/linux/bpf.h).
const (
	sockOpsOp           = 0   // offset of op
	sockOpsSk           = 184 // offset of sk
	activeEstablished   = 4   // BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
	tcpBPFInitialWindow = 1001
	tcpBPFWindowClamp   = 1002 // TCP_BPF_SNDCWND_CLAMP
	skStorageNoPrealloc = 1    // BPF_F_NO_PREALLOC, which the map's type wants
)

// NewStartWindow loads the program and attaches it. It needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, and a cgroup2 file system. The caller closes it.
func NewStartWindow() (_ *StartWindow, err error) {
	w := &StartWindow{}
	defer func() {
		if err != nil {
			w.Close()
			err = fmt.Errorf("tcprepair: start window: %w", err)
		}
	}()
	dir, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	w.windows, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "spillway_window", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: skStorageNoPrealloc,
		Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Value: &btf.Int{Name: "unsigned long long", Size: 8, Encoding: btf.Unsigned},
	})
	if err != nil {
		return nil, err
	}
	w.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spillway_window", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "Apache-2.0",
		Instructions: startWindowProgram(w.windows.FD()),
	})
	if err != nil {
		return nil, err
	}
	w.attached, err = attachCgroup(dir, ebpf.AttachCGroupSockOps, w.program)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// startWindowProgram is:
//
//	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->sk) {
//		struct startWindow *w = bpf_sk_storage_get(&map, ctx->sk, 0, 0);
//		if (w) {
//			struct startWindow now = *w;
//			*w = {};
//			if (now.segments)
//				bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_IW, &now.segments, sizeof(u32));
//			if (now.limit)
//				bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_SNDCWND_CLAMP, &now.limit, sizeof(u32));
//		}
//	}
//	return 1;
func startWindowProgram(mapFD int) asm.Instructions {
	const stack = -8 // of now
	set := func(option int32, offset int16, next string) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.RFP, stack+offset, asm.Word),
			asm.JEq.Imm(asm.R2, 0, next),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, unix.IPPROTO_TCP),
			asm.Mov.Imm(asm.R3, option),
			asm.Mov.Reg(asm.R4, asm.RFP),
			asm.Add.Imm(asm.R4, int32(stack+offset)),
			asm.Mov.Imm(asm.R5, 4),
			asm.FnSetsockopt.Call(),
		}
	}
	limit := set(tcpBPFWindowClamp, 4, "out")
	limit[0] = limit[0].WithSymbol("limit")
	return slices.Concat(asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, sockOpsOp, asm.Word),
		asm.JNE.Imm(asm.R2, activeEstablished, "out"),
		asm.LoadMem(asm.R2, asm.R6, sockOpsSk, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "out"),
		asm.LoadMapPtr(asm.R1, mapFD),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord),
		asm.StoreMem(asm.RFP, stack, asm.R2, asm.DWord),
		asm.StoreImm(asm.R0, 0, 0, asm.Word),
		asm.StoreImm(asm.R0, 4, 0, asm.Word),
	}, set(tcpBPFInitialWindow, 0, "limit"), limit, asm.Instructions{
		asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
		asm.Return(),
	})
}

// growth is how many segments a window that has reached its slow start threshold may grow on one socket: what congestion avoidance adds within as many round
// trips.
const growth = 4

// Set makes the socket on fd begin with the congestion window of st when it is restored next. The caller owns fd.
//
// With a slow start threshold in st, the new socket's window does not grow far beyond it, as long as the socket lives: the kernel offers no way to set the
// threshold that would not limit the window, too (bpf_sol_tcp_setsockopt, net/core/filter.c). So it is for connections that change hands again soon,
// and that would each time begin to double their window until packets are lost.
func (w *StartWindow) Set(fd int, st *tcpstate.State) error {
	limit := windowLimit(st)
	if w == nil || st.Cwnd <= initialWindow && limit == 0 {
		return nil
	}
	if err := w.windows.Put(int32(fd), startWindow{segments: st.Cwnd, limit: limit}); err != nil {
		return fmt.Errorf("tcprepair: start window: %w", err)
	}
	return nil
}

// windowLimit is what the congestion window may grow to, segments; 0: anything.
func windowLimit(st *tcpstate.State) uint32 {
	if st.Ssthresh == 0 || strings.HasPrefix(st.Congestion, "bbr") { // its threshold is an estimate that it shows and does not use
		return 0
	}
	return max(st.Ssthresh, st.Cwnd+growth)
}

// Close detaches the program. Windows that were set stay.
func (w *StartWindow) Close() error {
	if w == nil {
		return nil
	}
	var errs []error
	if w.attached != nil {
		errs = append(errs, w.attached.Close())
	}
	if w.program != nil {
		errs = append(errs, w.program.Close())
	}
	if w.windows != nil {
		errs = append(errs, w.windows.Close())
	}
	return errors.Join(errs...)
}
