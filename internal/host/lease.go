package host

import (
	"sync"
	"time"

	"spillway/internal/lease"
	"spillway/internal/tcpstate"
	"spillway/internal/wire"
)

// maxInbox bounds the items of a lease that wait. DATA is bounded by the window and merged, and of the others a guest that keeps the
// protocol never has more than one each; DATA between two of them makes the difference.
const maxInbox = 8

// buffer holds a DATA frame, or what a READ fetches.
type buffer [wire.HeaderSize + wire.MaxData]byte

// item is one thing for the sender to do.
type item struct {
	kind  wire.Type // DATA, SEND, END, CLOSE; HANDBACK: give the connection back; CLOSED: the lease ends for reason
	more  bool      // DATA: do not push
	data  []byte    // DATA: what of it is left
	whole int       // DATA: how much it was, once it is under way
	order *order    // SEND
	end   wire.Reason
	again bool // DATA, SEND: another host has done this for the guest; it has not left there
	aside bool // nothing of these: step aside
}

// order is a SEND.
type order struct {
	file     wire.FileRef
	offset   int64
	count    int64
	header   []byte // what of it is left
	giveBack bool
	begun    bool  // a byte of the header was written
	sent     int64 // bytes of the file that were
}

// leaseConn is one lease: the host's end of a connection that a guest has handed over.
type leaseConn struct {
	id      uint32
	vm      *vm
	handler *handler
	state   tcpstate.State // as HANDOVER brought it; the addresses, MSS and options are valid as long as the lease lives
	socket  socket

	// Only the sender uses these.
	end      lease.Host
	broken   wire.Reason   // a SEND failed half-way: nothing more may be sent, as it would be taken for the rest of the body
	eaten    int           // DATA bytes that no CREDIT has been sent for
	since    time.Time     // GRANTED, or the last KEEP
	leased   time.Duration // from since to HANDBACK
	cut      int64         // bytes of its file that were sent when it was given back in the middle
	spoke    bool          // HANDBACK brought something that the client has said
	listens  bool          // the receiver was started
	received chan struct{} // closed when the receiver is gone
	current  *item         // DATA or SEND under way
	todo     []item        // to be done before the inbox: what another host has left

	receiving sync.Mutex // held by whoever reads from the client's socket, until what was read is in the channel

	progress progress // the sweeper's

	mu   sync.Mutex
	work sync.Cond // for the sender: the inbox, or one of the fields below, has changed
	room sync.Cond // for the receiver: credit, ear or discard has changed

	heard      uint64 // frames that have come
	relayedAt  uint64 // heard when the client's last words were passed on
	inbox      []item
	live       bool        // the socket exists
	granted    time.Time   // when it came to exist
	doing      activity    // what the sender does
	allowed    int         // DATA bytes that the guest may still send
	taken      uint64      // DATA bytes that the guest has sent
	sending    bool        // a SEND is under way: the guest has no answer yet
	stopWait   func()      // ends the sender's wait for an origin; nil: it does not wait
	inFile     bool        // its file is being sent: a recall may interrupt it
	ended      bool        // END or CLOSE has come: no more DATA and SEND
	closing    bool        // CLOSE has come
	credit     int64       // DATA bytes that the guest takes from us
	ear        ear         // what the receiver does
	awaiting   bool        // HANDBACK is sent, TAKEN or KEEP is due
	asked      time.Time   // when HANDBACK was sent
	takenAt    time.Time   // when TAKEN came
	answer     wire.Type   // TAKEN or KEEP
	recall     recallState // the connection is wanted back
	recalledAt time.Time   // since then
	pause      *time.Timer // ends recallSoon
	orphan     bool        // the session has ended
	over       wire.Reason // the lease must end now, without what is in the inbox
	abort      bool        // and with RST
	eof        bool        // the client has closed its direction
	finished   bool        // its FIN came to another host: behind what is queued there is nothing
	discard    bool        // what the client still says is of no interest

	carry      carryState
	carryUntil time.Time // for the client to acknowledge what is on its way
	pieces     []piece   // that may not have left
	seen       bool      // the client has acknowledged something to another host
}

func newLeaseConn(h *handler, id uint32, st *tcpstate.State) *leaseConn {
	l := newLease(h.vm, id, st)
	l.handler = h
	return l
}

// newLease makes a lease that has no session yet.
func newLease(v *vm, id uint32, st *tcpstate.State) *leaseConn {
	l := &leaseConn{
		id: id, vm: v, state: *st,
		socket:   socket{kernel: &v.daemon.kernel, mark: v.mark},
		received: make(chan struct{}),
		allowed:  window, credit: window,
	}
	l.end.Socket = &l.socket
	l.work.L, l.room.L = &l.mu, &l.mu
	return l
}

// frame takes a frame of the lease. It is called by the handler and waits for nothing.
func (l *leaseConn) frame(head wire.Header, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard++
	switch head.Type {
	case wire.TypeData:
		return l.takeData(head.Flags, payload)
	case wire.TypeSend:
		return l.takeSend(head.Flags, payload)
	case wire.TypeCredit:
		m, err := wire.ParseCredit(payload)
		if err != nil {
			return err
		}
		if l.credit += int64(m.Bytes); l.credit > window {
			return breach("CREDIT for %d bytes that were never sent", l.credit-window)
		}
		l.room.Signal()
		return nil
	}
	if _, err := wire.Parse(head.Type, payload); err != nil {
		return err
	}
	switch head.Type {
	case wire.TypeEnd:
		return l.takeEnd()
	case wire.TypeClose:
		return l.takeClose(head.Flags)
	default: // TAKEN, KEEP
		if !l.awaiting || l.answer != 0 {
			return breach("%v without HANDBACK", head.Type)
		}
		l.answer, l.takenAt = head.Type, time.Now()
		l.work.Signal()
		return nil
	}
}

// takeData merges DATA into the inbox. l.mu is held.
func (l *leaseConn) takeData(flags wire.Flags, payload []byte) error {
	m, err := wire.ParseData(payload)
	switch {
	case err != nil:
		return err
	case l.ended:
		return breach("DATA after END or CLOSE")
	case len(m.Data) > l.allowed:
		return breach("DATA of %d bytes where the window leaves %d", len(m.Data), l.allowed)
	}
	l.allowed -= len(m.Data)
	l.taken += uint64(len(m.Data))
	more := flags&wire.FlagMore != 0
	if n := len(l.inbox); n > 0 && l.inbox[n-1].kind == wire.TypeData {
		last := &l.inbox[n-1]
		last.data, last.more = append(last.data, m.Data...), more
		return nil
	}
	return l.add(item{kind: wire.TypeData, more: more, data: append([]byte(nil), m.Data...)})
}

// takeSend puts a SEND into the inbox. l.mu is held.
func (l *leaseConn) takeSend(flags wire.Flags, payload []byte) error {
	m, err := wire.ParseSend(payload)
	switch {
	case err != nil:
		return err
	case l.ended:
		return breach("SEND after END or CLOSE")
	case l.sending:
		return breach("SEND while another one is under way")
	}
	l.sending = true
	return l.add(item{kind: wire.TypeSend, order: &order{
		file: m.File, offset: m.Offset, count: m.Count,
		header: append([]byte(nil), m.Header...), giveBack: flags&wire.FlagReturn != 0,
	}})
}

func (l *leaseConn) takeEnd() error {
	if l.ended {
		return breach("END after END or CLOSE")
	}
	l.ended = true
	return l.add(item{kind: wire.TypeEnd})
}

func (l *leaseConn) takeClose(flags wire.Flags) error {
	if flags&wire.FlagAbort != 0 {
		l.abort = true
		l.finishNow(wire.ReasonClosed)
		return nil
	}
	if l.closing {
		return breach("CLOSE after CLOSE")
	}
	l.ended, l.closing = true, true
	return l.add(item{kind: wire.TypeClose})
}

// add puts an item into the inbox. l.mu is held.
func (l *leaseConn) add(it item) error {
	if len(l.inbox) >= maxInbox {
		return breach("%d items wait already", len(l.inbox))
	}
	l.inbox = append(l.inbox, it)
	l.work.Signal()
	return nil
}

// finishNow ends the lease without what is in the inbox, and interrupts the sender when it waits for the client. The first reason counts.
// l.mu is held.
func (l *leaseConn) finishNow(reason wire.Reason) {
	if l.over != wire.ReasonOK {
		return
	}
	l.over = reason
	if l.live {
		l.socket.interruptWrite()
	}
	if l.stopWait != nil {
		l.stopWait()
	}
	l.work.Signal()
}

// stop is finishNow from outside.
func (l *leaseConn) stop(reason wire.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finishNow(reason)
}

// reset ends a lease whose client takes nothing: with RST, as nobody would read anything else.
func (l *leaseConn) reset(reason wire.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abort = true
	l.finishNow(reason)
}

// sessionEnded lets the sender finish what it has, and then close.
func (l *leaseConn) sessionEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orphan = true
	l.work.Signal()
	l.room.Signal()
}

// next waits for the next thing to do.
func (l *leaseConn) next() item {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.over != wire.ReasonOK:
			return item{kind: wire.TypeClosed, end: l.over}
		case l.carry == asked:
			return item{aside: true}
		case len(l.todo) > 0:
			l.doing = sends
			it := l.todo[0]
			l.todo = l.todo[1:]
			return it
		case len(l.inbox) > 0:
			l.doing = sends
			it := l.inbox[0]
			n := copy(l.inbox, l.inbox[1:])
			l.inbox[n] = item{}
			l.inbox = l.inbox[:n]
			if l.recall == recallTried {
				l.recall = recalled
			}
			return it
		case l.orphan:
			return item{kind: wire.TypeClosed, end: wire.ReasonSession}
		case l.recall == recallDue:
			l.doing, l.recall = drains, notRecalled
			return item{kind: wire.TypeHandback}
		case l.recall == recalled:
			l.doing, l.recall = drains, recallTried
			return item{kind: wire.TypeHandback}
		}
		l.doing = idles
		l.work.Wait()
	}
}

// settled tells whether nothing but a handback is to be done. l.mu is held.
func (l *leaseConn) settled() bool {
	return len(l.todo) == 0 && len(l.inbox) == 0 && l.carry == stays && l.over == wire.ReasonOK && !l.orphan && !l.ended && !l.eof
}
