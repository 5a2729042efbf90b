package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spillway/internal/tcprepair"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// sockets makes sockets for tcprepair.Restore; a tcprepair.Pool in the product.
type sockets interface {
	Get(family int) (fd int, err error)
	Close()
}

// kernel is what all leases use of the kernel's repair interface.
type kernel struct {
	freezer    *tcprepair.Freezer
	holder     *tcprepair.Holder
	halter     *tcprepair.Halter      // nil: it cannot be had
	start      *tcprepair.StartWindow // nil: it cannot be had
	pool       sockets
	congestion map[string]bool // the congestion controls that are loaded
	owned      sync.Map        // ends of a connection → its socket here
}

// ends are the addresses of a connection.
type ends struct{ local, remote netip.AddrPort }

// mayGo tells whether a segment may be sent on to the guest: not if the connection is here.
func (k *kernel) mayGo(local, remote netip.AddrPort) bool {
	s, owned := k.owned.Load(ends{local, remote})
	if !owned {
		return true
	}
	held := s.(*socket).held.Load()
	if held == nil {
		return false
	}
	<-*held
	_, owned = k.owned.Load(ends{local, remote})
	return !owned
}

// holdOn keeps what Seal holds from being sent on until settleHeld: nobody has the connection meanwhile.
func (s *socket) holdOn() {
	held := make(chan struct{})
	s.held.Store(&held)
}

// settleHeld lets what is held be sent on, unless the connection is here again.
func (s *socket) settleHeld() {
	if held := s.held.Swap(nil); held != nil {
		close(*held)
	}
}

// socket is the host's socket of one connection as package lease moves it (lease.HostSocket). Its file belongs to the netpoller, so that
// a waiting client costs no thread.
type socket struct {
	kernel *kernel
	mark   uint32   // SO_MARK; 0: none
	file   *os.File // nil until Restore
	raw    syscall.RawConn
	ends   ends

	keepAlive tcpstate.KeepAlive            // as the guest had it, for Thaw
	start     uint32                        // send sequence number when it was restored
	read      uint32                        // sequence number of the next byte of the client's that nobody has read
	written   atomic.Int64                  // bytes that the kernel has taken for the client
	halted    bool                          // Halt was called, and Resume has to be
	snapshot  tcpstate.State                // as the guest got it
	leaving   bool                          // Snapshot is for another host
	from      *arrived                      // Restore is of what another host had; nil: of a HANDOVER
	held      atomic.Pointer[chan struct{}] // not nil: what the client says is held until it is closed
}

// arrived is what a connection has beside its state that comes from another host.
type arrived struct {
	late []byte // the client has said this, and nobody has read it
}

// Restore implements lease.HostSocket. After an error there is no socket.
func (s *socket) Restore(as *tcpstate.State) error {
	st := *as
	family := unix.AF_INET
	if st.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := s.kernel.pool.Get(family)
	if err != nil {
		return err
	}
	if s.mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(s.mark)); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("setsockopt(SO_MARK)", err)
		}
	}
	if !s.kernel.congestion[st.Congestion] {
		// For a name that it does not know the kernel would load a module, which a guest must not decide.
		st.Congestion = ""
	}
	// The host corks with MSG_MORE where it wants to; whatever else it writes shall leave. The guest's own socket keeps its setting.
	st.NoDelay = true
	s.ends = ends{st.Local, st.Remote}
	s.kernel.owned.Store(s.ends, s)
	_ = s.kernel.start.Set(fd, &st) // without it, the connection is slower to begin with
	restore := func() error { return tcprepair.Restore(fd, &st) }
	if s.from != nil {
		restore = func() error { return tcprepair.RestoreHeld(fd, &st, s.from.late) }
	}
	if err := restore(); err != nil {
		unix.Close(fd) // silent
		s.kernel.owned.CompareAndDelete(s.ends, s)
		return err
	}
	s.keepAlive, s.start, s.read = st.KeepAlive, st.SendSeq, st.RecvSeq
	s.file = os.NewFile(uintptr(fd), "client") // fd is non-blocking, so the file is one for the netpoller
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return fmt.Errorf("client's socket: %w", err)
	}
	return nil
}

// control runs f with the file descriptor.
func (s *socket) control(f func(fd int) error) error {
	if s.raw == nil {
		return nil // Restore failed: there is no socket to do anything with
	}
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// Snapshot implements lease.HostSocket. The options in st are those of the guest's HANDOVER, which nobody has changed since.
func (s *socket) Snapshot(st *tcpstate.State) error {
	return s.control(func(fd int) error {
		err := tcprepair.Snapshot(fd, st, s.read, s.end(), s.halted, s.leaving)
		s.snapshot = *st
		return err
	})
}

// Halt implements lease.HostSocket.
func (s *socket) Halt() error {
	return s.control(func(fd int) error {
		err := s.kernel.halter.Halt(fd, s.end())
		s.halted = err == nil
		return err
	})
}

// end is the sequence number behind the last byte that was written.
func (s *socket) end() uint32 { return s.start + uint32(s.written.Load()) }

// sent returns how many of the bytes that were written had been sent when Snapshot was called.
func (s *socket) sent() int64 { return s.written.Load() - int64(s.end()-s.snapshot.SendSeq) }

// resume undoes Halt.
func (s *socket) resume(fd int) {
	if s.halted {
		s.halted = false
		s.kernel.halter.Resume(fd)
	}
}

// Seal implements lease.HostSocket.
func (s *socket) Seal() (late []byte, end bool, err error) {
	err = s.control(func(fd int) error {
		n, fin, err := s.kernel.holder.Seal(fd, &s.snapshot)
		if err != nil {
			return err
		}
		if late, end = make([]byte, n), fin; n > 0 {
			if err := tcprepair.ReadLate(fd, late); err != nil {
				return err
			}
		}
		if s.snapshot.RecvSeq += uint32(n); fin {
			s.snapshot.RecvSeq++
		}
		return nil
	})
	return late, end, err
}

// Thaw implements lease.Socket.
func (s *socket) Thaw() error {
	return s.control(func(fd int) error {
		defer s.resume(fd)
		return tcprepair.Thaw(fd, s.keepAlive)
	})
}

// Release implements lease.Socket. The socket leaves the kernel's connection table at once, so that the close may wait.
func (s *socket) Release() error {
	return s.control(func(fd int) error {
		defer s.resume(fd)
		if err := tcprepair.Park(fd); err != nil {
			return err
		}
		s.kernel.owned.CompareAndDelete(s.ends, s)
		return tcprepair.Confirm(fd, &s.snapshot)
	})
}

// Abort implements lease.Socket.
func (s *socket) Abort() error {
	return s.control(func(fd int) error {
		defer s.resume(fd)
		return tcprepair.Abort(fd)
	})
}

// Close closes the socket and waits until nobody uses it any more. A goroutine that waits for the client is woken.
func (s *socket) Close() error {
	if s.file == nil {
		return nil
	}
	s.kernel.owned.CompareAndDelete(s.ends, s)
	return s.file.Close()
}

// interruptWrite wakes a writer that waits for the client, and fails all later writes.
func (s *socket) interruptWrite() { _ = s.file.SetWriteDeadline(time.Unix(1, 0)) }

// push sends what waits for more because of MSG_MORE (tcp_sock_set_nodelay, net/ipv4/tcp.c).
func (s *socket) push() {
	_ = s.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }) // a broken connection is found anyway
}

// resumeWrite undoes interruptWrite.
func (s *socket) resumeWrite() { _ = s.file.SetWriteDeadline(time.Time{}) }

// outstanding returns the bytes that the client has not acknowledged yet.
func (s *socket) outstanding() (n int, err error) {
	err = s.control(func(fd int) (err error) {
		n, err = tcprepair.UnackedBytes(fd)
		return err
	})
	return n, err
}

// What the leases of a VM may have queued that was not sent yet, in bytes, if that is what they all wait for: each has its part of queuedTotal when it
// begins. What is under way is the client's receive window's matter, as with any server.
const (
	queuedTotal = 64 << 20
	queuedMin   = 64 << 10
	queuedMax   = 1 << 20 // more makes no connection faster
)

// boundQueue bounds what waits to be sent, one of so many leases, by TCP_NOTSENT_LOWAT.
func (s *socket) boundQueue(leases int) {
	bound := min(max(queuedTotal/max(leases, 1), queuedMin), queuedMax)
	_ = s.control(func(fd int) error { // it is there since Linux 3.12
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bound)
	})
}

// unsent returns the bytes that wait to be sent.
func (s *socket) unsent() (n int, err error) {
	err = s.control(func(fd int) (err error) {
		n, err = tcprepair.UnsentBytes(fd)
		return err
	})
	return n, err
}

// unread returns the bytes of the client that nobody has read.
func (s *socket) unread() (n int, err error) {
	err = s.control(func(fd int) (err error) {
		n, err = tcprepair.UnreadBytes(fd)
		return err
	})
	return n, err
}

// state returns the state of the connection.
func (s *socket) state() (state tcprepair.ConnState, err error) {
	err = s.control(func(fd int) (err error) {
		state, err = tcprepair.TCPState(fd)
		return err
	})
	return state, err
}

// isClosed tells whether the connection is over in the kernel, as after the client's reset.
func (s *socket) isClosed() bool {
	state, err := s.state()
	return err == nil && state == tcprepair.Closed
}

// shutdown sends the FIN.
func (s *socket) shutdown() error {
	return s.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR)) })
}

// clientReason tells whether err, of a call on a client's socket, means that the client is gone. Everything else is the kernel's or ours.
func clientReason(err error) wire.Reason {
	for _, gone := range []unix.Errno{unix.ECONNRESET, unix.EPIPE, unix.ETIMEDOUT, unix.ENOTCONN, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		if errors.Is(err, gone) {
			return wire.ReasonClientGone
		}
	}
	return wire.ReasonKernel
}
