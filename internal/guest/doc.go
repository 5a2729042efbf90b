// Package guest is the VM's side of Spillway: a net.Listener whose connections move to the host and back while a server, net/http or any
// other, uses them and cannot tell.
//
// An [Agent] keeps the channel to the host daemon. A [Conn] is local (an ordinary TCP connection) or leased (the host owns the socket;
// bytes travel as frames). Its ReadFrom is where a handover begins: when the source is a range of a file that the host has, header
// and range leave in one message and no byte of the file enters the VM. Whatever stands in the way has a reason ([wire.Reason]), is
// counted, and the bytes are served locally: a client never sees the difference.
//
// A Conn has the methods of net.TCPConn that servers call, but it is none: a type assertion to *net.TCPConn fails, and a server that then goes on
// without, as net/http does, works as before; one that insists has to assert an interface with the methods that it calls. SyscallConn and File are
// left out on purpose: the descriptor means nothing while the host has the connection. Of what the host's socket does, only TCP_NODELAY (always
// on) and keepalive (as at the handover) can differ from what was set.
//
// Lock order: Conn.flushing, then Conn.writing, then Conn.mu, then Agent.mu. Frames are written under Conn.mu, so that their order on the channel is the
// order of the events; the goroutine that reads the channel takes Conn.mu but never waits for the host.
//
// Needs CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW (or root) in the guest, and what package tcprepair needs of the kernel: without them [NewAgent]
// fails and says so, unless the mode is Off, so that a server that was meant to offload does not quietly do without. Whether there is a host is another
// matter: without one everything is served locally, until there is.
package guest
