// Package tcprepair takes an established TCP connection out of one kernel socket and puts it into another one, or back
// into the same one, without a byte on the wire. It is the kernel half of a handover and of a handback.
//
// # The ways through
//
// The side that gives a connection away, and may get it back on the same fd:
//
//	ReadOptions → Freezer.Freeze → Extract ─┬→ Thaw                             the transfer failed: it goes on here
//	                                        ├→ Confirm → Release → close        the other side has it for good
//	                                        └→ Confirm … Park → RestoreInPlace  the other side gave it back
//
// The side that takes it:
//
//	Pool.Get (or Freezer.NewTransparent) → Restore           live; later Freeze → Extract → Confirm → Release → close
//
// Probe ends a connection whose new owner died silently. Abort is the way out when the connection cannot be saved: it makes the owner's close send a RST.
//
// # States of a socket
//
// A live socket becomes frozen by Freeze: an eBPF socket filter drops every segment before TCP sees it, because a socket in
// repair mode still receives and acknowledges. Extract puts it into repair mode as well: from then on close(2) is silent.
// Park moves it to TCP_CLOSE, out of the kernel's connection table. An [Error] names the state that a failed call left
// behind.
//
// Between Park and RestoreInPlace the kernel has no socket for the connection: a segment that arrives draws a RST. Park only
// while no segment can come, that is while the host's restored socket still catches them, and as late as possible.
//
// # Rules
//
// Every function borrows fd: none closes it, except where its comment says so. One fd belongs to one goroutine at a time.
// With a Go net.Conn, call inside the function given to syscall.RawConn.Control. From Park until RestoreInPlace returns no
// other goroutine may read, write or poll the fd: it would see EPOLLHUP, or an error that it takes for the end. A goroutine
// that is blocked in Read or Write must first be woken with a deadline.
//
// A State holds no queued bytes. Extract refuses a connection with unread, out-of-order, unsent or unacknowledged bytes.
// Not carried either: the congestion window, RTT and SACK state, ECN, and socket options beyond those in
// [spillway/internal/tcpstate.State].
//
// The package decides nothing: which connections may be handed over, when, and to whom is the caller's matter. It must not
// be used on listeners, on MPTCP sockets, or on sockets with a filter of their own (it would be replaced).
//
// # Needs
//
// Linux 5.10 or later with CONFIG_CHECKPOINT_RESTORE; CAP_NET_ADMIN (TCP_REPAIR, IP_TRANSPARENT), CAP_NET_BIND_SERVICE for
// restoring ports below net.ipv4.ip_unprivileged_port_start, and CAP_BPF or CAP_SYS_ADMIN for NewFreezer, unless
// kernel.unprivileged_bpf_disabled is 0.
package tcprepair
