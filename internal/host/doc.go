// Package host is the engine of the host daemon: it takes over the connections that guests hand over, sends ranges of shared
// files on them with sendfile(2), relays what the client says, and gives the connections back.
//
// # Step of the data path
//
// A guest speaks over its channel (packages channel, session, wire); [Daemon] listens at the channels of every VM. HANDOVER makes
// a lease: the connection is restored on a socket of this host (tcprepair), to which the redirect delivers the client's packets from
// now on. SEND moves a range of a file from the page cache to that socket; the bytes never enter the VM. HANDBACK ends the lease.
//
//	channel ─► session ─► handler ─► leaseConn's inbox ─► sender ──► client's socket
//	                         │                                          │
//	                         └─► desk (STAT, READ)      channel ◄── receiver
//
// # Who waits for whom
//
// The handler runs on the goroutine that reads the channel and serves all leases of the session, so it waits for nobody: it parses,
// checks, and puts work into a lease's inbox or into the desk's, both bounded. Each lease has two goroutines: the sender executes
// the inbox in order and is the only one that writes to the client's socket and changes the lease's state; the receiver turns
// client bytes into DATA frames. One sweeper for all leases ends those whose client takes nothing, and those whose guest does not
// answer. An idle lease holds no buffer.
//
// # Trust
//
// The guest is not trusted. The channel's path says which VM it is, and with that which local addresses it may claim, which shares
// it may name and how many leases it may have. A frame that breaks the protocol ends its session and nothing else. The remote
// address of a connection is the guest's to choose: the host sends what the guest could send itself with raw sockets, but from the
// host's output path. Where a firewall on the forward path must bind the VMs, the same rules belong to the output path for the VMs'
// addresses.
//
// # Who looks after it
//
// The admin socket ([Daemon.AdminHandler]) tells what the daemon does and takes recalls. It reads counters that are atomic, or under locks that are held
// for microseconds, so that it can be asked at any time.
//
// # Needs
//
// Linux 5.10 or later; CAP_NET_ADMIN, CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_BIND_SERVICE, as packages tcprepair and redirect say.
// The package must not be imported by guest code: the two ends meet in packages wire and lease.
package host
