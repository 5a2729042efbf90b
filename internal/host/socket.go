package host

import (
	"errors"
	"fmt"
	"os"
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
	start      *tcprepair.StartWindow // nil: it cannot be had
	pool       sockets
	congestion map[string]bool // the congestion controls that are loaded
}

// socket is the host's socket of one connection as package lease moves it (lease.HostSocket). Its file belongs to the netpoller, so that
// a waiting client costs no thread.
type socket struct {
	kernel *kernel
	file   *os.File // nil until Restore
	raw    syscall.RawConn

	keepAlive tcpstate.KeepAlive // as the guest had it, for Thaw
	start     uint32             // send sequence number when it was restored
	read      uint32             // sequence number of the next byte of the client's that nobody has read
	halted    bool               // Halt was called
	sent      uint64             // bytes that had been on the wire at the snapshot of a halted socket
	snapshot  tcpstate.State     // as the guest got it
	// clientWaits tells that the client has spoken just before the snapshot: until it has its answer, it will hardly say more.
	clientWaits bool
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
	if !s.kernel.congestion[st.Congestion] {
		// For a name that it does not know the kernel would load a module, which a guest must not decide.
		st.Congestion = ""
	}
	// The host corks with MSG_MORE where it wants to; whatever else it writes shall leave. The guest's own socket keeps its setting.
	st.NoDelay = true
	_ = s.kernel.start.Set(fd, st.Cwnd) // without it, the connection is slower to begin with
	if err := tcprepair.Restore(fd, &st); err != nil {
		unix.Close(fd) // silent
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
	return s.control(func(fd int) (err error) {
		if s.halted {
			err = tcprepair.SnapshotHalted(fd, st, s.read, s.start)
		} else {
			err = tcprepair.Snapshot(fd, st, s.read)
		}
		s.snapshot = *st
		return err
	})
}

// Halt implements lease.HostSocket.
func (s *socket) Halt() error {
	s.halted = true
	return s.control(tcprepair.Halt)
}

// strayTime is how long a segment may need from the redirect, where it was meant for our socket, to this socket, before it counts as lost. It
// is a softirq's way through ip_rcv, some microseconds.
const strayTime = 50 * time.Microsecond

// Seal implements lease.HostSocket.
func (s *socket) Seal(pass func(p []byte, end bool)) error {
	return s.control(func(fd int) error {
		if err := tcprepair.Hide(fd, &s.snapshot); err != nil {
			return err
		}
		if unread, err := tcprepair.UnreadBytes(fd); err != nil || unread > 0 || !s.clientWaits {
			time.Sleep(strayTime)
		}
		n, fin, err := s.kernel.freezer.Seal(fd, &s.snapshot)
		if err != nil {
			return err
		}
		if err := s.checkHalt(fd); err != nil {
			return err
		}
		if n > 0 || fin {
			late := make([]byte, n)
			if err := tcprepair.PeekLate(fd, late); err != nil {
				return err
			}
			pass(late, fin)
		}
		if s.snapshot.RecvSeq += uint32(n); fin {
			s.snapshot.RecvSeq++
		}
		return tcprepair.Confirm(fd, &s.snapshot)
	})
}

// maxResent is how many segments a halted socket may have sent nevertheless, when its retransmission timer ran out. The guest's socket, which
// begins with ten segments (TCP_INIT_CWND, include/net/tcp.h), soon comes to where the client is; a client that is further on than it will ever send
// unanswered would wait for ever.
const maxResent = 4

// checkHalt finds a client that has got more than the guest was told of.
func (s *socket) checkHalt(fd int) error {
	if !s.halted {
		return nil
	}
	p, err := tcprepair.ProgressOf(fd)
	if err == nil && p.Acked > s.sent+maxResent*uint64(s.snapshot.MSS) {
		err = fmt.Errorf("the client has %d bytes more than the guest was told: the handback took too long", p.Acked-s.sent)
	}
	return err
}

// Thaw implements lease.Socket.
func (s *socket) Thaw() error {
	s.halted = false
	return s.control(func(fd int) error { return tcprepair.Thaw(fd, s.keepAlive) })
}

// Release implements lease.Socket. The socket leaves the kernel's connection table at once, so that the close may wait.
func (s *socket) Release() error { return s.control(tcprepair.Park) }

// Abort implements lease.Socket.
func (s *socket) Abort() error { return s.control(tcprepair.Abort) }

// Close closes the socket and waits until nobody uses it any more. A goroutine that waits for the client is woken.
func (s *socket) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// interruptWrite wakes a writer that waits for the client, and fails all later writes.
func (s *socket) interruptWrite() { _ = s.file.SetWriteDeadline(time.Unix(1, 0)) }

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

// progress returns how far the client's stream has come since the connection was restored.
func (s *socket) progress() (p tcprepair.Progress, err error) {
	err = s.control(func(fd int) (err error) {
		p, err = tcprepair.ProgressOf(fd)
		return err
	})
	return p, err
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
