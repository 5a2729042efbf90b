package tcprepair

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// StartWindow lets a restored socket begin with the congestion window that its connection had. Without it the kernel begins with ten segments
// (TCP_INIT_CWND, include/net/tcp.h), as for a path of which nothing is known. A sockops program, attached to this process's
// cgroup, sets the window when the connection is established (tcp_init_transfer, net/ipv4/tcp_input.c), for the sockets that Set was called for and no
// others. It goes when the process does. Its methods may be called by several goroutines at once, except Close; a nil *StartWindow does nothing.
type StartWindow struct {
	segments *ebpf.Map // socket → segments, a BPF_MAP_TYPE_SK_STORAGE
	program  *ebpf.Program
	attached link.Link
}

// Of struct bpf_sock_ops and its neighbours (include/uapi/linux/bpf.h).
const (
	sockOpsOp           = 0   // offset of op
	sockOpsSk           = 184 // offset of sk
	activeEstablished   = 4   // BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
	tcpBPFInitialWindow = 1001
	skStorageNoPrealloc = 1 // BPF_F_NO_PREALLOC, which the map's type wants
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
	w.segments, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "spillway_window", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: skStorageNoPrealloc,
		Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Value: &btf.Int{Name: "unsigned int", Size: 4, Encoding: btf.Unsigned},
	})
	if err != nil {
		return nil, err
	}
	w.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "spillway_window", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "Apache-2.0",
		Instructions: startWindowProgram(w.segments.FD()),
	})
	if err != nil {
		return nil, err
	}
	w.attached, err = link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupSockOps, Program: w.program})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// startWindowProgram is:
//
//	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->sk) {
//		u32 *segments = bpf_sk_storage_get(&map, ctx->sk, 0, 0);
//		if (segments && *segments) {
//			u32 w = *segments;
//			*segments = 0;
//			bpf_setsockopt(ctx, IPPROTO_TCP, TCP_BPF_IW, &w, sizeof(w));
//		}
//	}
//	return 1;
func startWindowProgram(mapFD int) asm.Instructions {
	return asm.Instructions{
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
		asm.LoadMem(asm.R2, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "out"),
		asm.StoreImm(asm.R0, 0, 0, asm.Word),
		asm.StoreMem(asm.RFP, -8, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, unix.IPPROTO_TCP),
		asm.Mov.Imm(asm.R3, tcpBPFInitialWindow),
		asm.Mov.Reg(asm.R4, asm.RFP),
		asm.Add.Imm(asm.R4, -8),
		asm.Mov.Imm(asm.R5, 4),
		asm.FnSetsockopt.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
		asm.Return(),
	}
}

// Set makes the socket on fd begin with a window of so many segments when it is restored next. The caller owns fd.
func (w *StartWindow) Set(fd int, segments uint32) error {
	if w == nil || segments == 0 {
		return nil
	}
	if err := w.segments.Put(int32(fd), segments); err != nil {
		return fmt.Errorf("tcprepair: start window: %w", err)
	}
	return nil
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
	if w.segments != nil {
		errs = append(errs, w.segments.Close())
	}
	return errors.Join(errs...)
}

// ownCgroup is the directory of this process's cgroup in the cgroup2 file system.
func ownCgroup() (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	mount := ""
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		// proc_pid_mountinfo(5): the mount point is the fifth field, the type follows the separator.
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			mount = fields[4]
			break
		}
	}
	if mount == "" {
		return "", errors.New("no cgroup2 file system is mounted; mount -t cgroup2 none /sys/fs/cgroup")
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) { // cgroups(7): 0::PATH is the one of cgroup2
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			dir := filepath.Join(mount, path)
			if _, err := os.Stat(dir); err == nil {
				return dir, nil
			}
		}
	}
	return mount, nil // the path is not within what is mounted here, as in a container
}
